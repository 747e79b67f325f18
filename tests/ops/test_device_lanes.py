"""What the lanes would do on a GPU for AD-CAM: its launches on fake tensors, and no wait.

They are here because kernels are recorded by the tools of this folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import OpCounter
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_testing import Launch, needs_triton, record_launches

from adcam.cams import build_method
from adcam.labeling import map_maker
from adcam.labeling.device_steps import DeviceSteps, Lane, _Uploaded
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.mask_job import MaskJob
from adcam.ops import _backends
from adcam.settings import TestViews

DEVICE = torch.device("cuda")
SIZES = [(40, 64), (40, 64), (64, 40)]
CLASS_IDS = [(0, 2), (1,), (0, 1)]


class Waits(OpCounter):
    """Also notices copies between host and device that are waited for.

    Inference mode hands over operations that consist of others as one: they are taken apart.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func.namespace == "prim":  # asks a fake tensor for its device
            return func(*args, **options)
        with self:
            if (result := func.decompose(*args, **options)) is not NotImplemented:
                return result
        name = func.overloadpacket.__name__
        if name == "_to_copy":
            source, target = args[0].device, options.get("device") or args[0].device
            self._see_copy(name, source, target, options.get("non_blocking"))
        elif name == "copy_":
            is_free = args[2] if len(args) > 2 else options.get("non_blocking")
            self._see_copy(name, args[1].device, args[0].device, is_free)
        elif name.startswith("index"):
            for index in args[1] if isinstance(args[1], list | tuple) else ():
                if index is not None:
                    self._see_copy(name, index.device, args[0].device, False)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _see_copy(self, name: str, source: Any, target: Any, is_free: Any) -> None:
        if torch.device(source).type != torch.device(target).type and not is_free:
            self.waited.append(f"{name} from {source} to {target}")


def make_steps(checkpoint: Path, out: Path, **options: Any) -> DeviceSteps:
    """The steps of AD-CAM with masks made in a batch, by another name of the CPU."""
    labeler = PseudoLabeler.from_checkpoint(
        checkpoint, device="cpu", views=TestViews((48, 64), flip=True), method="ad_cam"
    )
    labeler.mask_maker = dataclasses.replace(labeler.mask_maker, crf_device="cpu:0")
    labeler.map_maker.methods = (build_method("ad_cam", **options),)
    job = MaskJob(labeler.mask_maker, out, labeler.class_set, None, labeler.label_thresholds)
    return DeviceSteps(labeler, job, batch_size=len(SIZES))


def run_fake(steps: DeviceSteps, monkeypatch: pytest.MonkeyPatch) -> tuple[Waits, list[Launch]]:
    """The lanes of network and masks, from the second batch on; no GPU needed."""
    from adcam.ops.color_diffusion import triton_kernels as color_kernels

    monkeypatch.setattr(_backends, "_device_reason", lambda tensors: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *args, **kwargs: 2)
    # What looks at values on the host.
    monkeypatch.setattr(map_maker, "check_class_ids", lambda *_, **__: None)
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: [None] * len(self))
    images: Any = tuple(
        SimpleNamespace(task=SimpleNamespace(class_ids=ids, index=0), img=torch.empty(*hw, 3))
        for ids, hw in zip(CLASS_IDS, SIZES, strict=True)
    )
    maker, network = steps._maker, steps._maker.network
    assert isinstance(network, nn.Module)
    lane = Lane(torch.device("cpu"), "one")
    color_kernels._neighbors.cache_clear()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), record_launches() as launches:
            for name, parameter in dict(network.named_parameters()).items():
                owner, _, key = name.rpartition(".")
                empty = torch.empty(parameter.shape, device=DEVICE)
                setattr(network.get_submodule(owner), key, nn.Parameter(empty, False))
            maker.device = DEVICE
            batches = [torch.empty(3, 3, n, n, dtype=torch.uint8, device=DEVICE) for n in (48, 64)]
            pixels = [torch.empty(*hw, 3, dtype=torch.uint8, device=DEVICE) for hw in SIZES]
            batch = _Uploaded(images, tuple(batches), tuple(pixels), None, 0.0)
            for _ in range(2):  # after the first batch, what is kept is there
                launches.clear()
                with Waits() as waits:
                    result = steps._label(steps._infer(batch, lane), lane)
    finally:
        lane.close()
        color_kernels._neighbors.cache_clear()
    maps = [x.shape for x in result.source.maps]
    assert maps == [(len(i), *hw) for i, hw in zip(CLASS_IDS, SIZES, strict=True)]
    assert {x.device.type for x in result.source.maps} == {"cuda"} and result.masks is not None
    assert [x.device.type for x in result.masks] == ["cpu"] * 2
    return waits, launches


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "exact": {"exact": True},
    "cut off at a quantile": {"clip_quantile": 0.9},
}


@needs_triton
@pytest.mark.parametrize("kind", OPTIONS)
def test_ad_cam_waits_for_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """From the network to masks by the steepest level, with labels given and without a CRF."""
    options = OPTIONS[kind]
    waits, launches = run_fake(make_steps(tiny_checkpoint, tmp_path, **options), monkeypatch)
    assert waits.waited == [] and ("sort" in waits.launched) == ("clip_quantile" in options)
    names = Counter(launch.name for launch in launches)
    # At each of two scales a refinement without artefacts; the colours once for both.
    refinement = {"prepare": 4, "gate_product": 2, "walk": 2, "fill_map": 2}
    assert {**refinement, "weigh_colors": 1, "step_by_color": 10}.items() <= names.items()
    dtypes = {x.values["features"].dtype for x in launches if x.name == "gate_product"}
    assert dtypes == {torch.float32 if options.get("exact") else torch.float16}


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.new_tensor([1, 2]),
        lambda x: x[:, [0, 1]],
        lambda x: x.__setitem__(0, torch.ones(4)),
        lambda x: x.cpu(),
        lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.long), dim=0),
        lambda x: x.index_select(0, x.argmax(dim=1).nonzero()[:, 0]),
        lambda x: bool((x > 0).any()),
    ],
)
def test_waits_are_noticed(wait: Any) -> None:
    with FakeTensorMode(), torch.inference_mode():
        x = torch.empty(3, 4, device=DEVICE)
        with Waits() as waits, contextlib.suppress(RuntimeError, NotImplementedError):
            wait(x)
        assert waits.waited
        with Waits() as waits:
            x.to("cpu", non_blocking=True)
            x[0] = x.flatten().quantile(0.9)
        assert waits.launched and not waits.waited
