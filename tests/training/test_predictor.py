"""What a segmentation network's lanes do on a GPU, as far as a CPU and fake tensors show it."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Waits
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adcam.labeling.lanes import Lane
from adcam.settings import SegTestSettings
from adcam.structures import Sample
from adcam.training import predictor
from adcam.training.predictor import Predictor, count_together
from adcam.training.segmenter import load_segmentation_settings

pytest.importorskip("mmseg", reason="mmsegmentation is not installed (extra `seg`)")

from adcam.seg.segmenter import Segmenter, SegViews, build_segmenter

# Warnings raised inside mmengine, mmcv and mmsegmentation are theirs.
pytestmark = pytest.mark.filterwarnings("default")

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "seg"
SHIPPED = {
    "deeplabv2": ("voc12/deeplabv2_r101_20k_voc12.py", {"model.backbone.depth": 50}),
    "deeplabv3plus": ("voc12/deeplabv3plus_r50_20k_voc12.py", {}),
    "upernet": ("voc12/upernet_deit-small_40k_voc12.py", {}),
    "deit": ("voc_animals/deit-tiny_fcn_voc-animals.py", {}),
    "efficientnet": ("voc_animals/efficientnet-lite0_fcn_voc-animals.py", {}),
}
SIZES = [(48, 64), (48, 64), (50, 60)]  # all are seen at 48×64
DEVICE = torch.device("cuda")


def build(
    kind: str = "deit", views: SegViews | None = None, *, amp: str = "none", **model: Any
) -> Segmenter:
    """The network of a config, with random weights."""
    name, changes = SHIPPED[kind]
    options = {f"model.{key}": value for key, value in model.items()}
    settings = load_segmentation_settings(CONFIGS / name, {**changes, **options})
    torch.manual_seed(0)
    return build_segmenter(
        settings.model, amp=amp, views=views or SegViews(), crop_size=(64, 64), sync=False
    ).eval()


def make_predictor(network: Any, **test: Any) -> Predictor:
    """A predictor of seven labels that behaves as on a GPU, wherever the network is."""
    model = object.__new__(Predictor)
    model._test = SegTestSettings(**test)
    model._segmenter = network
    model._values = np.arange(network.num_classes, dtype=np.uint8)
    model._is_on_device, model._memory, model._forward = True, None, network.run_network
    return model


def make_samples(sizes: Sequence[tuple[int, int]]) -> list[Sample]:
    rng = np.random.default_rng(0)
    imgs = [rng.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in sizes]
    return [Sample(str(i), img, (0, 3)) for i, img in enumerate(imgs)]


def move_to_fake_gpu(module: nn.Module) -> None:
    """Replace all tensors by ones of a GPU that have no values; call it in a FakeTensorMode."""
    for part in module.modules():
        for key, old in list(part._parameters.items()):
            if old is not None:
                empty = torch.empty(old.shape, dtype=old.dtype, device=DEVICE)
                part._parameters[key] = nn.Parameter(empty, requires_grad=False)
        for key, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[key] = torch.empty(buffer.shape, dtype=buffer.dtype, device=DEVICE)


def ask_fake_gpu(network: Segmenter, **test: Any) -> tuple[Waits, list[predictor._Image]]:
    """Lane of the network, and without a CRF that of the masks; no GPU needed."""
    model = make_predictor(network, **test)
    if not network.has_fixed_course:
        model._forward = None
    with FakeTensorMode(allow_non_fake_inputs=True):
        move_to_fake_gpu(network)
        images = [
            predictor._Image(
                sample.img_id, sample, torch.empty(*hw, 3, dtype=torch.uint8, device=DEVICE)
            )
            for sample, hw in zip(make_samples(SIZES), SIZES, strict=True)
        ]
        with Waits() as waits:
            asked = model._ask(images)
            done = predictor._return(asked) if model._test.crf == "none" else asked
    return waits, done


@pytest.mark.parametrize("kind", SHIPPED)
def test_a_network_waits_for_nothing(kind: str) -> None:
    network = build(kind, SegViews(scales=(0.75, 1.0), flip=True))
    assert network.has_fixed_course
    waits, done = ask_fake_gpu(network)
    assert waits.launched and waits.waited == []
    assert [image.mask.device.type for image in done] == ["cuda"] * 3
    assert [(image.sent.device.type, *image.sent.shape) for image in done] == [
        ("cpu", *hw) for hw in SIZES
    ]
    assert {image.sent.dtype for image in done} == {torch.uint8}  # one byte a pixel


@pytest.mark.parametrize(
    "test", [{"labels": "given"}, {"crf": "toco"}, {"crf": "toco", "labels": "given"}]
)
def test_labels_and_a_crf_let_the_network_wait_for_nothing(test: dict[str, Any]) -> None:
    waits, done = ask_fake_gpu(build(), **test)
    assert waits.launched and waits.waited == []
    if "crf" in test:
        assert {x.prob.device.type for x in done} == {"cuda"}
        assert {x.likely.device.type for x in done} == {"cpu"}


def test_sliding_windows_wait_and_have_no_graphs() -> None:
    window = {"mode": "slide", "stride": (32, 32), "crop_size": (32, 32)}
    network = build(**{"test_cfg": window})
    assert not network.has_fixed_course
    with pytest.raises(RuntimeError, match="_local_scalar_dense"):  # a value is looked at
        ask_fake_gpu(network)


def test_parts_that_are_not_known_have_no_graphs() -> None:
    network = build()
    assert network.has_fixed_course
    head = network.decode_head
    head.__class__ = type("Head", (type(head),), {})
    assert not network.has_fixed_course


def test_graphs_begin_outside_autocast_and_return_coarse_logits() -> None:
    """Autocast's copies of the weights would not be a graph's own, and full logits fill memory."""
    network = build(amp="bfloat16")
    seen = []

    def run(inputs: Tensor) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        logits = network.run_network(inputs)
        seen.append((tuple(inputs.shape), tuple(logits.shape), logits.dtype))
        return logits

    img = torch.zeros(48, 64, 3, dtype=torch.uint8)
    network.compute_on_device([img, img], run)
    assert seen == [((2, 3, 48, 64), (2, 7, 3, 4), torch.bfloat16)]


@pytest.mark.parametrize("amp", ["none", "bfloat16"])
@pytest.mark.parametrize("views", [SegViews(), SegViews((0.5, 1.0, 1.25), True, 40)])
def test_on_a_cpu_an_image_is_computed_as_it_always_was(amp: str, views: SegViews) -> None:
    """To the bit, by the steps as they stood before images of other sizes shared a pass."""
    network = build(views=views, amp=amp)
    (sample,) = make_samples([(45, 70)])
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    if amp != "none":
        autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)  # noqa: E731
    mean, std = network.data_preprocessor.mean, network.data_preprocessor.std
    img = torch.from_numpy(sample.img.copy())
    with torch.no_grad():
        pixels = (img[None].permute(0, 3, 1, 2).contiguous().float() - mean) / std
        total = torch.zeros(())
        for hw in views.sizes((45, 70)):
            inputs = F.interpolate(pixels, hw, mode="bilinear", antialias=True)
            for view in (inputs, inputs.flip(3)) if views.flip else (inputs,):
                with autocast():
                    meta = {"ori_shape": hw, "img_shape": hw, "pad_shape": hw}
                    logits = network.inference(view, [meta])
                logits = logits if view is inputs else logits.flip(3)
                logits = F.interpolate(logits.float(), (45, 70), mode="bilinear")
                total = total + logits.softmax(dim=1)
        expected = (total / total.sum(dim=1, keepdim=True))[0]
    assert torch.equal(torch.from_numpy(network.compute_probabilities(sample.img)), expected)
    # What a graph would hold, and what comes after it.
    assert torch.equal(network.compute_on_device([img], network.run_network)[0][0], expected)


class LogMarks:
    """Marks in the work of a GPU, and the threads that wait for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting: set[int] = set()
        monkeypatch.setattr(predictor, "mark_work", lambda device: SimpleNamespace())
        monkeypatch.setattr(predictor, "follow", lambda mark: None)
        monkeypatch.setattr(predictor, "wait_for", self.wait_for)
        self.before = lambda: None

    def wait_for(self, mark: Any) -> None:
        self.waiting.add(threading.get_ident())
        self.before()


@pytest.mark.parametrize("crf", ["none", "toco"])
def test_the_next_batch_is_seen_while_one_comes_back(
    crf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for the first batch is let go on by the network's second."""
    network = build()
    model = make_predictor(network, crf=crf)
    marks, threads, second = LogMarks(monkeypatch), set(), threading.Event()

    def run(inputs: Tensor) -> Tensor:
        if threads:
            second.set()
        threads.add(threading.get_ident())
        return network.run_network(inputs)

    def before() -> None:
        assert second.wait(60), "the network waits for what comes back"

    model._forward, marks.before = run, before  # type: ignore[assignment]
    groups = [[(i, sample)] for i, sample in enumerate(make_samples([(48, 64)] * 3))]
    found = dict(model.run(groups))
    assert sorted(found) == [0, 1, 2] and all(mask is not None for mask in found.values())
    assert len(threads) == 1 and threads.isdisjoint(marks.waiting)
    assert len(marks.waiting) == (1 if crf == "none" else 2)  # the caller, and the labels' lane


def test_what_another_lane_reads_is_kept() -> None:
    """Memory that is freed in one stream may be overwritten before another has read it."""
    network, samples = build(), make_samples([(48, 64)])
    for crf in ("none", "toco"):
        model = make_predictor(network, crf=crf)
        batch = predictor._Batch([predictor._Image(0, samples[0])])
        steps = [step for _, _, step in model._list_steps()]
        states = [batch := step(batch) for step in steps]
        sent, asked, *_, done = (state.images[0] for state in states)
        assert done.pixels is asked.pixels is sent.pixels and sent.pixels.numel() > 0
        if crf == "none":
            assert done.mask is asked.mask and done.mask.numel() > 0
        else:
            assert done.prob is states[2].images[0].prob and done.prob.numel() > 0


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that are there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (
                (storage := tensor.untyped_storage())._cdata not in self._sizes
            ):
                self._sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._free, storage._cdata)
        return result

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def count_bytes(network: Segmenter, num: int, hw: tuple[int, int]) -> int:
    """The peak of a batch, without the weights; nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        imgs = torch.empty(num, *hw, 3, dtype=torch.uint8)
        with Peak() as peak:
            network.compute_on_device([*imgs], network.run_network)
    return peak.most


@pytest.mark.parametrize(
    ("kind", "labels", "least"),
    [("upernet", 21, 0.8), ("deeplabv2", 21, 0.3), ("deit", 7, 0.05), ("deit", 600, 0.5)],
)
def test_the_memory_of_an_image_is_not_more_than_is_counted(
    kind: str, labels: int, least: float
) -> None:
    views = SegViews(scales=(1.0, 1.5), flip=True)
    network = build(kind, views, **{"decode_head.num_classes": labels})
    hw = (96, 128)
    pixels = max(h * w for h, w in views.sizes(hw))
    each = (count_bytes(network, 3, hw) - count_bytes(network, 1, hw)) / 2
    counted = predictor._BYTES_PER_PIXEL + predictor._BYTES_PER_LABEL * labels
    assert least * counted < each / pixels < counted


def test_the_batch_follows_from_the_size_of_the_memory() -> None:
    photo = 368 * 496  # of VOC, as a network sees it
    gib = 1 << 30
    counts = [count_together(photo, 21, memory=n * gib) for n in (80, 40, 24, 16, 8, 2, 1)]
    assert counts == [32, 32, 16, 8, 4, 1, 1]
    assert count_together(12_000_000, 21, memory=80 * gib) == 1
    assert count_together(photo, 1000, memory=80 * gib) == 8
    assert count_together(16, 2, memory=gib) == 32


def predict_on(device: torch.device, kind: str, **test: Any) -> tuple[Predictor, list[Any]]:
    """Predict several batches of one kind, with the graphs that the device allows."""
    network = build(kind, SegViews((0.75, 1.0), flip=True)).to(device)
    model = make_predictor(network, **test)
    model._forward = predictor._cache_graphs(network)
    samples = [*enumerate(make_samples(SIZES * 3))]
    found = dict(model.run([samples[i : i + 3] for i in (0, 3, 6)]))
    return model, [found[i] for i in range(9)]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", SHIPPED)
def test_graphs_and_lanes_of_a_gpu_give_the_masks_of_a_cpu(
    gpu: torch.device, full_float32: None, kind: str
) -> None:
    _, expected = predict_on(torch.device("cpu"), kind)
    model, masks = predict_on(gpu, kind)
    graphs: Any = model._forward
    assert len(graphs._graphs) == 2 and not graphs._is_off
    for mask, other in zip(masks, expected, strict=True):
        assert mask.dtype == np.uint8 and (mask == other).mean() > 0.99


@pytest.mark.gpu
@pytest.mark.parametrize("crf", ["none", "toco"])
def test_a_gpu_is_not_waited_for(gpu: torch.device, crf: str) -> None:
    model, _ = predict_on(gpu, "deit", crf=crf)  # kernels compiled, graphs captured
    batch = predictor._Batch([predictor._Image(i, x) for i, x in enumerate(make_samples(SIZES))])
    lane = Lane(gpu, "one")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for name, _, step in model._list_steps():
            if name in ("upload", "network") or crf == "none":
                batch = lane.submit(step, batch).result()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        lane.close()
    predictor.wait_for(batch.mark)


def test_the_backbone_of_the_demo_is_known_where_no_classifier_is_loaded() -> None:
    config = str(CONFIGS / "shapes" / "shapes-vit_fcn_shapes.py")
    code = f"""\
from adcam.training.segmenter import load_segmentation_settings
from adcam.training.segmenter_file import build_network

settings = load_segmentation_settings({config!r}, {{"weights": None}})
assert settings.model["backbone"]["name"] == "shapes_vit"
build_network(settings)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
