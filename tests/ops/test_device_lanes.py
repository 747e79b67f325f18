"""What the lanes would do on a GPU for AD-CAM: its launches on fake tensors, and no wait.

They are here because kernels are recorded by the tools of this folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import OpCounter, Waits
from test_dense_crf_triton import recorded
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_testing import Launch, needs_triton, record_launches

from adcam.cams import build_method
from adcam.evaluation import mapping
from adcam.evaluation.mapping import ImageMapper, MapTargets, MaskChoice, Wanted
from adcam.labeling import lanes, map_maker
from adcam.labeling.device_steps import DeviceSteps
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.lanes import Batch, Lanes, _OnDevice
from adcam.labeling.mask_job import MaskJob
from adcam.masks.background import BackgroundRule
from adcam.models.token_cam import TokenCAM
from adcam.ops import _backends
from adcam.ops.dense_crf import interface
from adcam.settings import MethodSpec, TestViews
from adcam.structures import Sample

DEVICE = torch.device("cuda")
SIZES = [(40, 64), (40, 64), (64, 40)]
CLASS_IDS = [(0, 2), (1,), (0, 1)]


@dataclasses.dataclass(frozen=True)
class Mark:
    """A place in the work of a GPU, who made it, and who waits for it."""

    log: list[str]
    name: str

    def wait(self) -> None:
        self.log.append(f"the GPU follows {self.name}")

    def synchronize(self) -> None:
        self.log.append(f"this process waits for {self.name}")


def make_steps(
    checkpoint: Path,
    out: Path,
    sides: Sequence[int] = (48, 64),
    network: TokenCAM | None = None,
    **options: Any,
) -> DeviceSteps:
    """The steps of AD-CAM with masks made in a batch, by another name of the CPU."""
    labeler = PseudoLabeler.from_checkpoint(checkpoint, device="cpu", method="ad_cam")
    labeler.map_maker = map_maker.MapMaker(
        network or labeler.map_maker.network,
        [build_method("ad_cam", **options)],
        views=TestViews(tuple(sides), flip=True),
        device="cpu",
    )
    labeler.mask_maker = dataclasses.replace(labeler.mask_maker, crf_device="cpu:0")
    job = MaskJob(labeler.mask_maker, out, labeler.class_set, None, labeler.label_thresholds)
    return DeviceSteps(labeler, job, batch_size=len(SIZES))


@dataclasses.dataclass(frozen=True)
class Seen:
    """What was seen of a batch in the lanes.

    Attributes:
        result: What is on its way back.
        waited: For each lane, what it waits for.
        launched: The operations.
        kernels: The kernels of Triton.
        counts: The number of both in each lane.
    """

    result: Any
    waited: dict[str, list[str]]
    launched: list[str]
    kernels: list[Launch]
    counts: dict[str, int]


def run_fake(
    of_all: Lanes,
    make_batch: Callable[[], Batch],
    networks: Sequence[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Seen:
    """The lanes after the upload, from the second batch on; no GPU needed."""
    from adcam.ops.color_diffusion import triton_kernels as color_kernels

    monkeypatch.setattr(_backends, "_device_reason", lambda tensors: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *args, **kwargs: 2)
    # What looks at values on the host.
    monkeypatch.setattr(map_maker, "check_class_ids", lambda *_, **__: None)
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: [None] * len(self))
    log: list[str] = []
    monkeypatch.setattr(lanes, "mark_work", lambda device: Mark(log, name))
    color_kernels._neighbors.cache_clear()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), record_launches() as kernels:
            for network in networks:
                for key, parameter in dict(network.named_parameters()).items():
                    owner, _, last = key.rpartition(".")
                    empty = torch.empty(parameter.shape, device=DEVICE)
                    setattr(network.get_submodule(owner), last, nn.Parameter(empty, False))
            for _ in range(2):  # after the first batch, what is kept is there
                kernels.clear()
                launched: list[str] = []
                waited: dict[str, list[str]] = {}
                counts: dict[str, int] = {}
                item: Any = pretend_upload(make_batch(), Mark(log, "upload"))
                for name, step, kind in of_all.steps:
                    log.clear()
                    before = len(kernels)
                    with Waits() as waits:
                        item = step(item) if isinstance(item, kind) else item
                    waited[name] = [*log, *waits.waited]
                    launched += waits.launched
                    counts[name] = len(waits.launched) + len(kernels) - before
    finally:
        color_kernels._neighbors.cache_clear()
    return Seen(item, waited, launched, kernels, counts)


def pretend_upload(batch: Batch, mark: Any) -> _OnDevice:
    """The pixels of a batch on the fake GPU, where its network is too from now on."""
    batch.maker.device = DEVICE
    byte: Any = functools.partial(torch.empty, dtype=torch.uint8, device=DEVICE)
    inputs = tuple(byte(len(batch.imgs), *x.shape) for x in batch.inputs[0])
    return _OnDevice(batch, mark, inputs, tuple(byte(img.shape) for img in batch.imgs), (0.0,))


def pretend_images(
    class_ids: Sequence[Any],
    sizes: Sequence[tuple[int, int]] = SIZES,
    sides: Sequence[int] = (48, 64),
) -> Any:
    return [
        SimpleNamespace(
            task=SimpleNamespace(class_ids=ids, index=0),
            img=torch.empty(*hw, 3),
            inputs=[torch.empty(3, n, n) for n in sides],
        )
        for ids, hw in zip(class_ids, sizes, strict=True)
    ]


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "exact": {"exact": True},
    "cut off at a quantile": {"clip_quantile": 0.9},
}


@needs_triton
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("labels", ["given", "predicted"])
def test_ad_cam_waits_for_nothing_but_scores_that_say_which_classes_there_are(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, labels: str
) -> None:
    """From the network to masks by the steepest level, without a CRF."""
    options = OPTIONS[kind]
    steps = make_steps(tiny_checkpoint, tmp_path, **options)
    labeler: Any = steps._labeler
    found = itertools.cycle(CLASS_IDS)
    monkeypatch.setattr(labeler, "predict_class_ids", lambda probs: next(found))
    images = pretend_images(CLASS_IDS if labels == "given" else [None] * len(SIZES))
    seen = run_fake(steps.lanes, lambda: steps.plan(images), [labeler.network], monkeypatch)
    assert seen.waited == {
        "upload": [],
        "network": ["the GPU follows upload"],
        # The lane of the network has gone on to the next batch.
        "maps": [] if labels == "given" else ["this process waits for network"],
        "masks": [f"the GPU follows {'network' if labels == 'given' else 'maps'}"],
    }
    (maps,) = seen.result.source.maps
    assert [x.shape for x in maps] == [
        (len(i), *hw) for i, hw in zip(CLASS_IDS, SIZES, strict=True)
    ]
    assert {x.device.type for x in maps} == {"cuda"}
    assert [x.device.type for x in seen.result.masks[0]] == ["cpu"] * 2
    assert ("sort" in seen.launched) == ("clip_quantile" in options)
    names = Counter(launch.name for launch in seen.kernels)
    # At each of two scales a refinement without artefacts; the colours once for both.
    refinement = {"prepare": 4, "gate_product": 2, "walk": 2, "fill_map": 2}
    assert {**refinement, "weigh_colors": 1, "step_by_color": 10}.items() <= names.items()
    dtypes = {x.values["features"].dtype for x in seen.kernels if x.name == "gate_product"}
    assert dtypes == {torch.float32 if options.get("exact") else torch.float16}


@needs_triton
@pytest.mark.parametrize("top_k", [0, 1])
def test_a_comparison_waits_for_nothing_but_scores_that_say_which_maps_it_needs(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, top_k: int
) -> None:
    """Two methods on one network whose classes come in another order, and masks by both."""
    known = PseudoLabeler.from_checkpoint(tiny_checkpoint, device="cpu")
    class_set, network = known.class_set, known.map_maker.network
    turned = dataclasses.replace(class_set, classes=class_set.classes[::-1])
    views = TestViews((48, 64), flip=True)
    specs = [MethodSpec(name, name, views=views) for name in ("cam", "ad_cam")]
    mapper = ImageMapper(
        specs,
        {"": SimpleNamespace(network=network, class_set=turned)},
        class_set,
        MapTargets(top_k=top_k),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    mapper.device = DEVICE
    monkeypatch.setattr(mapping, "_find_top", lambda probs, top_k: [1] * top_k)
    choices = {
        MaskChoice("cam", BackgroundRule("constant", 0.4)),
        MaskChoice("ad_cam", BackgroundRule("steepest", 0.58)),
    }
    images = [
        mapper.prepare(
            Wanted(
                i,
                Sample(str(i), np.zeros((*hw, 3), np.uint8), ids),
                {"cam", "ad_cam"},
                choices=choices,
            )
        )
        for i, (ids, hw) in enumerate(zip(CLASS_IDS, SIZES, strict=True))
    ]
    seen = run_fake(
        mapper._lanes,
        lambda: mapper._plan(0, images, mapper._groups[0].maker.forward),
        [network],
        monkeypatch,
    )
    assert seen.waited == {
        "upload": [],
        "network": ["the GPU follows upload"],
        "maps": ["this process waits for network"] if top_k else [],
        "masks": [f"the GPU follows {'maps' if top_k else 'network'}"],
    }
    # Scores, the maps of both methods and two kinds of masks come back together.
    assert seen.result.mark.name == "masks"
    assert [len(x) for x in (seen.result.maps, seen.result.masks)] == [2, 2]
    sent = [*itertools.chain(*seen.result.maps, *seen.result.masks), seen.result.source.scores]
    assert {x.device.type for x in sent} == {"cpu"}


# A batch of docs/performance.md: 24 images of one class and 8 of two, all of one size.
MANY = [(0,)] * 24 + [(0, 1)] * 8


@needs_triton
@pytest.mark.parametrize(("is_packed", "most"), [(True, 425), (False, 630)])
def test_operations_of_network_and_method(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_packed: bool,
    most: int,
) -> None:
    """Of a network of twelve blocks at three scales, mirrored."""
    sides, blocks = (32, 48, 64), {"embed_dim": 24, "depth": 12, "num_heads": 3}
    network = TokenCAM(
        "vit_tiny_patch16_224", num_fg_classes=3, img_size=32, backbone_kwargs=blocks
    ).eval()
    steps = make_steps(tiny_checkpoint, tmp_path, sides, network)
    images = pretend_images(MANY, [(40, 64)] * len(MANY), sides)
    if not is_packed:
        monkeypatch.setattr(TokenCAM, "_packs", lambda *_: False)
    seen = run_fake(steps.lanes, lambda: steps.plan(images), [network], monkeypatch)
    assert seen.counts["network"] + seen.counts["maps"] <= most


@needs_triton
def test_operations_of_masks(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a CRF that takes all images at once."""
    monkeypatch.setattr(interface, "_choose", lambda *_: "triton")
    maker = make_steps(tiny_checkpoint, tmp_path)._labeler.mask_maker
    maker = dataclasses.replace(maker, crf="irn")
    maps = [torch.zeros(len(ids), 9, 12) for ids in MANY]
    imgs = [torch.zeros(9, 12, 3, dtype=torch.uint8) for _ in MANY]
    with recorded(run=False) as launches, OpCounter() as counter:
        monkeypatch.setattr(torch, "empty", torch.zeros)
        maker.label_on_device(maps, MANY, imgs)
    assert len(launches) + len(counter.launched) <= 283


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
