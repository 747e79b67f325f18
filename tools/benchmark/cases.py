"""The registry of benchmark cases: what is timed, at which sizes, against what."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import rivals
import torch
from measure import ROOT, Check, Outcome, Variant, is_gpu
from processes import Work
from torch import Tensor
from torch.nn import functional as F

from adcam.cams.ad_cam import ADCAM
from adcam.data.dataset import ImageDataset
from adcam.data.png import read_mask
from adcam.data.score_maps import SCORE_MAP_HW, read_score_map
from adcam.data.shapes import make_shapes
from adcam.data.sources import build_dataset
from adcam.evaluation.masks_on_disk import score_masks
from adcam.files import write_json, write_text
from adcam.installation import why_not_importable
from adcam.labeling.executor import end_server
from adcam.labeling.generate import generate
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.run import RunResult, default_workers
from adcam.masks.crf import refine
from adcam.method_options import DEFAULT_RULES
from adcam.metrics.localization import MaxBoxAccuracy, compute_iou
from adcam.models.classifier_file import load_classifier, save_classifier
from adcam.models.token_cam import TokenCAM
from adcam.ops import (
    color_diffusion,
    common_neighbor,
    dense_crf,
    diffusion,
    refinement,
    token_attention,
    two_hop_walk,
)
from adcam.ops.color_diffusion import reference as color_reference
from adcam.ops.common_neighbor import reference as common_neighbor_reference
from adcam.ops.diffusion import reference as diffusion_reference
from adcam.ops.refinement import RefineOptions
from adcam.ops.token_attention import reference as token_attention_reference
from adcam.ops.two_hop_walk import reference as two_hop_reference
from adcam.settings import TestViews
from adcam.structures import TokenMaps

SCALES = (224, 336, 448)
HEADS, HEAD_WIDTH, NUM_CLASSES = 3, 64, 3  # DeiT-Tiny; labels of a CRF are one more
CRF_HW = (375, 500)
TOLERANCE, ROUNDED = 1e-3, 3e-2
"""The largest errors with which a case is timed, relative to the reference's largest value: of
float32, and of numbers that are rounded to bfloat16 or TF32."""
CRF_TOLERANCE = 1e-4
"""The same for the mean difference of a CRF's marginals."""
MASK_TOLERANCE, MASK_ROUNDED = 1e-3, 1e-2
"""The largest shares of pixels in which masks may be others than those of the plain recipe: in
float32 on the CPU, and where numbers are rounded further, by bfloat16 or by a GPU."""
CHECKED = 4
"""Of how many images masks are compared."""
THRESHOLD, CRF = 0.58, "toco"
SEGMENTER = ROOT / "configs" / "seg" / "voc_animals" / "deit-tiny_fcn_voc-animals.py"
"""The config of the segmentation network that is timed unless the user names a file."""


@dataclass(frozen=True)
class Setting:
    """The options of a run.

    Attributes:
        device: ``"cpu"`` or the name of a CUDA device.
        batch: How many images are computed at once, in cases that have batches.
        data: A VOC root with ``labels.csv`` and masks, or ``None`` for generated pictures.
        split: The list of ``data`` that names the images.
        checkpoint: The file of a classifier, or ``None`` for ``backbone`` with random weights.
        backbone: The network's name at timm.
        score_maps: A folder of score maps in wsolevaluation's format, or ``None`` for random ones.
        workers: The number of processes of ``generate``, or ``None`` for its default.
        scratch: An empty folder that is deleted after the run.
        segmenter: The file of a segmentation network, or ``None`` for one with random weights.
    """

    device: str
    batch: int
    data: Path | None
    split: str
    checkpoint: Path | None
    backbone: str
    score_maps: Path | None
    workers: int | None
    scratch: Path
    segmenter: Path | None = None

    def rand(self, *shape: int) -> Tensor:
        """Seeded numbers in [0, 1) on the device."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(shape, generator=generator).to(self.device)


@dataclass(frozen=True)
class Case:
    """Some work that is timed.

    Attributes:
        summary: A line that says what the work is and what its size means.
        sizes: The sizes that are timed if the user names none.
        tests: The test files that must pass before a number counts.
        build: A function from size and setting to the variants, of which adcam's is the first.
        repeats: The largest number of runs of a variant; 1 where a single run is long.
        gpu_tests: The files of the kernels' own tests. On a GPU, those that are marked ``gpu`` must
            pass too.
    """

    summary: str
    sizes: tuple[int, ...]
    tests: tuple[str, ...]
    build: Callable[[int, Setting], Mapping[str, Variant]]
    repeats: int = 20
    gpu_tests: tuple[str, ...] = ()


def _attention_like(setting: Setting, tokens: int) -> Tensor:
    """(B, N, N) rows that are peaked and sum to 1, as a ViT's are."""
    return (8 * setting.rand(setting.batch, tokens, tokens)).softmax(dim=-1)


def _gemm(setting: Setting, tokens: int) -> Callable[[], Any]:
    """One N×N×N product, which exact resource allocation cannot avoid."""
    left = setting.rand(setting.batch, tokens, tokens)
    return lambda: left @ left.mT


def _with_rivals(
    setting: Setting,
    reference: Callable[..., Any],
    arguments: Sequence[Any],
    ours: Mapping[str, Callable[[], Any]],
    gemms: Mapping[str, Callable[[], Any]],
) -> dict[str, Variant]:
    """Our ways beside the reference, all compared with it, and bare products, which are not.

    On a GPU, the rivals in float32 also run with TF32, which multiplies several times as fast.
    """
    compiled = torch.compile(reference, dynamic=False)
    check = Check(_compare(reference, arguments), TOLERANCE)
    runs: dict[str, Callable[[], Any]] = {
        **ours,
        "torch eager": partial(reference, *arguments),
        "torch.compile": partial(compiled, *arguments),
    }
    checked = {n: Variant(torch.inference_mode()(run), check=check) for n, run in runs.items()}
    variants = checked | {n: Variant(torch.inference_mode()(run)) for n, run in gemms.items()}
    if is_gpu(setting.device):
        for name in ("torch eager", "torch.compile", *gemms):
            if "float16" not in name:
                variants[f"{name}, TF32"] = _with_tf32(variants[name])
    return variants


def _with_tf32(variant: Variant) -> Variant:
    """The same computation, in which a GPU rounds the factors of its products to TF32."""

    def run() -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return variant.run()
        finally:
            torch.set_float32_matmul_precision(before)

    check = None if variant.check is None else replace(variant.check, tolerance=ROUNDED)
    return replace(variant, run=run, dtype="tf32", check=check)


def _compare(reference: Callable[..., Any], arguments: Sequence[Any]) -> Callable[[Any], float]:
    """A function that returns the error of a result; the reference is computed in float64.

    The error is the largest difference in the first and in the last image, relative to the largest
    value of the reference.
    """
    ends = (x[[0, -1]].double() if isinstance(x, Tensor) else x for x in arguments)
    return partial(_find_error, reference(*ends))


def _find_error(want: Tensor | Sequence[Tensor], got: Tensor | Sequence[Tensor]) -> float:
    wanted, found = ([x] if isinstance(x, Tensor) else x for x in (want, got))
    errors = [
        (ours[[0, -1]].double() - theirs).abs().max() / theirs.abs().max()
        for theirs, ours in zip(wanted, found, strict=True)
    ]
    return float(torch.stack(errors).max())  # NaN if any is


def _mark_graphs(variants: Mapping[str, Variant], names: Sequence[str]) -> dict[str, Variant]:
    return {name: replace(variant, graph=name in names) for name, variant in variants.items()}


def _build_token_attention(tokens: int, setting: Setting) -> dict[str, Variant]:
    q, k = (setting.rand(setting.batch, HEADS, 1 + tokens, HEAD_WIDTH) - 0.5 for _ in range(2))
    scale = HEAD_WIDTH**-0.5
    return _with_rivals(
        setting,
        _attention_reference,
        (q, k, scale),
        {
            "adcam": lambda: token_attention.token_attention(q, k, scale=scale),
            "explicit attention": lambda: rivals.explicit_attention(q, k, scale=scale),
        },
        {"gemm roofline": lambda: q @ k.mT},
    )


def _attention_reference(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return (
        token_attention_reference.patch_attention(q, k, scale, 1),
        token_attention_reference.cls_attention(q, k, scale, 1, 0),
    )


def _build_attend(tokens: int, setting: Setting) -> dict[str, Variant]:
    qkv = setting.rand(3, setting.batch, HEADS, 1 + tokens, HEAD_WIDTH) - 0.5
    scale = HEAD_WIDTH**-0.5
    variants = {}
    for dtype, tolerance in (("float32", TOLERANCE), ("bfloat16", ROUNDED)):
        q, k, v = qkv.to(getattr(torch, dtype))
        # The mean is added to a sum: it is what the first run, which is the check, puts there.
        ours, beside = (
            torch.zeros(setting.batch, tokens, tokens, device=setting.device) for _ in range(2)
        )
        fused = partial(F.scaled_dot_product_attention, q, k, v)
        mean = partial(token_attention.accumulate_token_attention, beside, q, k, scale=scale)
        wide_q, wide_k, wide_v = (x[[0, -1]].double() for x in (q, k, v))
        want = [
            token_attention_reference.attend(wide_q, wide_k, wide_v, scale),
            token_attention_reference.patch_attention(wide_q, wide_k, scale, 1),
        ]
        runs: dict[str, tuple[Callable[[], Any], Any]] = {
            "adcam": (
                partial(token_attention.attend_and_accumulate, ours, q, k, v, scale=scale),
                want,
            ),
            "fused attention": (fused, want[0]),
            "fused attention, then mean": (partial(_in_turn, fused, mean), want),
        }
        for name, (run, wanted) in runs.items():
            label = name if dtype == "float32" else f"{name}, bfloat16"
            check = Check(partial(_find_error, wanted), tolerance)
            variants[label] = Variant(torch.inference_mode()(run), dtype, check=check)
    return variants


def _in_turn(*runs: Callable[[], Any]) -> list[Any]:
    return [run() for run in runs]


def _build_common_neighbor(tokens: int, setting: Setting) -> dict[str, Variant]:
    attn = _attention_like(setting, tokens)
    return _with_rivals(
        setting,
        common_neighbor_reference.refine,
        (attn, "resource_allocation", 2.0),
        {"adcam": lambda: common_neighbor.common_neighbor(attn)},
        {"gemm roofline": _gemm(setting, tokens)},
    )


def _diffuse(maps: Tensor, affinity: Tensor) -> Tensor:
    matrix = diffusion_reference.transition(affinity, "sinkhorn", diffusion.SINKHORN_ITERS)
    return diffusion_reference.walk(maps, matrix, 2, None)


def _refine(maps: Tensor, attn: Tensor) -> Tensor:
    return _diffuse(maps, common_neighbor_reference.refine(attn, "resource_allocation", 2.0))


def _build_diffusion(tokens: int, setting: Setting) -> dict[str, Variant]:
    maps = setting.rand(setting.batch, NUM_CLASSES, tokens)
    affinity = _attention_like(setting, tokens)
    return _with_rivals(
        setting,
        _diffuse,
        (maps, affinity),
        {"adcam": lambda: diffusion.diffuse(maps, affinity)},
        {"gemm roofline": _gemm(setting, tokens)},
    )


_REFINE_GRAPHS = ("adcam", "adcam, exact", "adcam, attention in float16", "adcam, artefacts out")


def _build_refine(tokens: int, setting: Setting) -> dict[str, Variant]:
    maps = setting.rand(setting.batch, NUM_CLASSES, tokens)
    attn = _attention_like(setting, tokens)
    half = attn.half()
    grid_hw = _grid_of(tokens)
    apart = RefineOptions(artifact_ratio=0.65)
    exact = RefineOptions(exact=True)
    variants = _with_rivals(
        setting,
        _refine,
        (maps, attn),
        {
            "adcam": lambda: refinement.refine_maps(maps, attn, grid_hw),
            "adcam, exact": lambda: refinement.refine_maps(maps, attn, grid_hw, exact),
            "adcam, attention in float16": lambda: refinement.refine_maps(maps, half, grid_hw),
            "adcam, operation by operation": lambda: diffusion.diffuse(
                maps, common_neighbor.common_neighbor(attn)
            ),
            "adcam, artefacts out": lambda: refinement.refine_maps(maps, attn, grid_hw, apart),
        },
        {"gemm roofline": _gemm(setting, tokens), "gemm in float16": lambda: half @ half.mT},
    )
    plain = partial(refinement.refine_maps, backend="reference")
    without = Check(_compare(plain, (maps, attn, grid_hw, apart)), TOLERANCE)
    variants["adcam, artefacts out"] = replace(variants["adcam, artefacts out"], check=without)
    return _mark_graphs(variants, _REFINE_GRAPHS)


def _build_two_hop_walk(tokens: int, setting: Setting) -> dict[str, Variant]:
    maps = setting.rand(setting.batch, NUM_CLASSES, tokens)
    attn = _attention_like(setting, tokens)
    variants = _with_rivals(
        setting,
        two_hop_reference.walk,
        (maps, attn, 1),
        {
            "adcam": lambda: two_hop_walk.two_hop_walk(maps, attn),
            **{
                backend: partial(two_hop_walk.two_hop_walk, maps, attn, backend=backend)
                for backend in (("triton", "torch") if is_gpu(setting.device) else ("torch",))
            },
        },
        {"gemm roofline": _gemm(setting, tokens)},
    )
    return _mark_graphs(variants, ["adcam", "triton", "torch"])


def _build_color_diffusion(side: int, setting: Setting) -> dict[str, Variant]:
    maps, img = setting.rand(2, setting.batch, NUM_CLASSES, side, side)  # NUM_CLASSES = channels
    options: dict[str, Any] = {
        "num_steps": 10,
        "dilations": color_diffusion.DILATIONS,
        "contrast": 0.3,
        "distance_weight": 0.01,
    }
    variants = _with_rivals(
        setting,
        color_reference.diffuse_by_color,
        (maps, img, *options.values()),
        {"adcam": partial(color_diffusion.diffuse_by_color, maps, img, **options)},
        {},
    )
    return _mark_graphs(variants, ["adcam"])


def _grid_of(tokens: int) -> tuple[int, int]:
    """The grid nearest to a square."""
    height = next(side for side in range(math.isqrt(tokens), 0, -1) if tokens % side == 0)
    return height, tokens // height


def _build_dense_crf(labels: int, setting: Setting) -> dict[str, Variant]:
    prob, img = _make_scene(labels)
    again = dense_crf.DenseCRF(img)
    runs = {
        "adcam": partial(dense_crf.dense_crf, prob, img),
        "adcam, second pass": partial(again.infer, prob),
    }
    for backend, reason in dense_crf.available_backends().items():
        if reason is None and backend != "triton":  # has a case of its own, on the GPU
            runs[backend] = partial(dense_crf.dense_crf, prob, img, backend=backend)
    wanted = _crf_references([prob], [img])
    check = Check(lambda got: _find_crf_error(wanted, [got]), CRF_TOLERANCE)
    return {name: Variant(run, check=check) for name, run in runs.items()}


def _make_scene(labels: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth probabilities (labels, H, W) and a noisy image (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((labels + 3, 6, 8), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse[None], CRF_HW, mode="bicubic")[0].numpy()
    noisy = np.clip(smooth[:3] * 200 + rng.normal(20, 8, (3, *CRF_HW)), 0, 255)
    prob = np.exp(4 * smooth[3:])
    prob /= prob.sum(axis=0)
    return prob, np.ascontiguousarray(noisy.transpose(1, 2, 0).astype(np.uint8))


def _build_dense_crf_batch(labels: int, setting: Setting) -> dict[str, Variant]:
    scenes = [_make_scene(labels, seed=seed) for seed in range(setting.batch)]
    probs, imgs = [prob for prob, _ in scenes], [img for _, img in scenes]
    on_device = [torch.from_numpy(prob).to(setting.device) for prob in probs]
    device_imgs = [torch.from_numpy(img).to(setting.device) for img in imgs]
    prepared = dense_crf.DenseCRF(device_imgs[0])
    reasons = dense_crf.available_backends()
    runs: dict[str, Callable[[], Sequence[Any]]] = {
        "adcam": partial(dense_crf.dense_crf_batch, on_device, device_imgs),
        "torch": partial(dense_crf.dense_crf_batch, on_device, device_imgs, backend="torch"),
    }
    if setting.batch == 1:
        runs["adcam, second pass"] = lambda: [prepared.infer(on_device[0])]
    for backend in ("numba", "pydensecrf"):
        if reasons[backend] is None:
            runs[backend] = partial(dense_crf.dense_crf_batch, probs, imgs, backend=backend)
    wanted = _crf_references(probs, imgs)
    check = Check(partial(_find_crf_error, wanted), CRF_TOLERANCE)
    score = partial(_share_labels, wanted)
    return {
        name: Variant(run, score=partial(score, run), check=check) for name, run in runs.items()
    }


def _crf_references(
    probs: Sequence[np.ndarray], imgs: Sequence[np.ndarray]
) -> dict[int, np.ndarray]:
    """The reference's marginals of the first and the last image, by place."""
    return {
        place: dense_crf.dense_crf(probs[place], imgs[place], backend="reference")
        for place in sorted({0, len(probs) - 1})
    }


def _find_crf_error(wanted: Mapping[int, np.ndarray], got: Sequence[Any]) -> float:
    """The mean difference from the reference's marginals, the larger of first and last image."""
    errors = [np.abs(_to_array(got[place]) - want).mean() for place, want in wanted.items()]
    return float(np.max(errors))


def _share_labels(wanted: Mapping[int, np.ndarray], run: Callable[[], Sequence[Any]]) -> float:
    """Percent of pixels with the reference's label, in the first and the last image."""
    got = run()
    shares = [_to_array(got[k]).argmax(0) == want.argmax(0) for k, want in wanted.items()]
    return 100 * float(np.mean(shares))


def _to_array(marginals: Any) -> np.ndarray:
    return torch.as_tensor(marginals).cpu().numpy()


def _build_level_boxes(num_thresholds: int, setting: Setting) -> dict[str, Variant]:
    maps = _score_maps(setting)
    rng = np.random.default_rng(0)
    low = rng.integers(0, 100, (len(maps), 1, 2))
    boxes = np.concatenate([low, low + rng.integers(60, 120, low.shape)], axis=2)
    thresholds = np.arange(0, 1, 1 / num_thresholds).tolist()

    def ours(all_contours: bool) -> float:
        metric = MaxBoxAccuracy(multi_contour=all_contours, step=1 / num_thresholds)
        for score_map, true_boxes in zip(maps, boxes, strict=True):
            metric.update(score_map, true_boxes)
        return metric.compute().max_box_acc_v2

    variants = {}
    for label, all_contours in (("all contours", True), ("largest contour", False)):
        plain = partial(
            rivals.plain_box_accuracy, maps, list(boxes), thresholds, all_contours=all_contours
        )
        check = Check(partial(_find_difference, plain()), 1e-9)
        for name, run in (("adcam", partial(ours, all_contours)), ("OpenCV a threshold", plain)):
            variants[f"{name}, {label}"] = Variant(run, "uint8", run, check)
    return variants


def _find_difference(want: float, got: float) -> float:
    return abs(got - want)


def _score_maps(setting: Setting) -> list[np.ndarray]:
    """The score maps of the setting, or 20 random ones: coarse grids enlarged to 224x224."""
    if setting.score_maps is not None:
        paths = sorted(setting.score_maps.rglob("*.npy"))
        if not paths:
            raise ValueError(f"{setting.score_maps} holds no .npy")
        return [read_score_map(path) for path in paths]
    generator = torch.Generator().manual_seed(0)
    grids = torch.rand((20, 1, 14, 14), generator=generator) ** 2
    large = torch.nn.functional.interpolate(grids, SCORE_MAP_HW, mode="bilinear")[:, 0].double()
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return list(((large - low) / (high - low)).numpy())


def _build_forward(side: int, setting: Setting) -> dict[str, Variant]:
    network = _network(setting)
    inputs = setting.rand(setting.batch, 3, side, side)
    ids = torch.tensor([[0, 1]] * setting.batch, device=setting.device)
    method = ADCAM()
    layer_sets = method.layer_sets(network.depth)
    compiled: Any = torch.compile(network, dynamic=False)
    compiled_method: Any = torch.compile(ReferenceADCAM().__call__, dynamic=False)
    # Each returns the tensors that it computes.
    runs: dict[str, Callable[[], Any]] = {
        "plain": lambda: network(inputs),
        "capture": lambda: _tensors_of(network.token_maps(inputs, layer_sets=layer_sets)),
        "capture + AD-CAM": lambda: method(network.token_maps(inputs, layer_sets=layer_sets), ids),
        "all attention by hooks": lambda: _all_attention(network, inputs),
        "torch.compile, plain": lambda: compiled(inputs),
        "attention by hooks, torch.compile of AD-CAM": lambda: compiled_method(
            _token_maps(*_all_attention(network, inputs), layer_sets), ids
        ),
    }
    maps, attn = _forward_reference(network, inputs, layer_sets)
    wanted_maps = ReferenceADCAM()(maps, ids[[0, -1]])
    wanted: dict[str, Any] = {
        "plain": maps.logits,
        "capture": _tensors_of(maps),
        "capture + AD-CAM": wanted_maps,
        "all attention by hooks": [maps.cam, attn],
        "torch.compile, plain": maps.logits,
        "attention by hooks, torch.compile of AD-CAM": wanted_maps,
    }
    variants = {}
    # On a GPU, torch computes convolutions in TF32 unless told otherwise.
    exact = ROUNDED if is_gpu(setting.device) else TOLERANCE
    for dtype, tolerance in (("float32", exact), ("bfloat16", ROUNDED)):
        for name, run in runs.items():
            if dtype == "float32" or name != "all attention by hooks":
                label = name if dtype == "float32" else f"{name}, bfloat16"
                check = Check(partial(_find_error, wanted[name]), tolerance)
                run = _inference(run, setting.device, dtype)
                variants[label] = Variant(run, dtype, check=check)
    names = ("plain", "capture", "capture + AD-CAM")
    return _mark_graphs(variants, [f"{name}, bfloat16" for name in names])


def _tensors_of(maps: TokenMaps) -> list[Tensor]:
    assert maps.attn_cls2patch is not None
    return [maps.cam, maps.attn_cls2patch, *maps.attn_patch2patch.values()]


def _all_attention(network: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Class maps and the attention of all blocks and heads, (B, L, heads, 1 + N, 1 + N)."""
    cam, attn = rivals.extract_attention(network, inputs)
    return cam, attn.movedim(1, 0)


def _forward_reference(
    network: Any, inputs: Tensor, layer_sets: Sequence[tuple[int, ...]]
) -> tuple[TokenMaps, Tensor]:
    """What a plain forward pass in float64 says of the first and the last image.

    The attention of all blocks and heads is as that of :func:`_all_attention`.
    """
    wide = copy.deepcopy(network).double()
    cam, attn = _all_attention(wide, inputs[[0, -1]].double())
    return _token_maps(cam, attn, layer_sets), attn


def _token_maps(cam: Tensor, attn: Tensor, layer_sets: Sequence[tuple[int, ...]]) -> TokenMaps:
    """What a method needs, out of the attention of all blocks and heads."""
    mean = attn.mean(dim=2)  # (B, L, 1 + N, 1 + N)
    return TokenMaps(
        logits=cam.mean(dim=(2, 3)),
        cam=cam,
        grid_hw=(cam.shape[2], cam.shape[3]),
        depth=attn.shape[1],
        attn_cls2patch=mean[:, :, 0, 1:],
        attn_patch2patch={chosen: mean[:, list(chosen), 1:, 1:].mean(1) for chosen in layer_sets},
    )


class ReferenceADCAM(ADCAM):
    """AD-CAM by the references of all operations."""

    backend = "reference"


def _inference(run: Callable[[], Any], device: str, dtype: str) -> Callable[[], Any]:
    def wrapped() -> Any:
        kind = torch.device(device).type
        with (
            torch.inference_mode(),
            torch.autocast(kind, dtype=getattr(torch, dtype), enabled=dtype != "float32"),
        ):
            return run()

    return wrapped


def _build_generate(num_images: int, setting: Setting) -> dict[str, Variant]:
    images, checkpoint, out = _images(num_images, setting), _checkpoint(setting), setting.scratch
    plain = partial(
        _plain_mask, load_classifier(checkpoint).network.eval(), images, _crf_by_reference
    )
    wanted = cache(
        lambda: {images.records[k].img_id: plain(k) for k in range(len(images))[:CHECKED]}
    )

    def check(masks: Path, dtype: str) -> dict[str, Any]:
        exact = dtype == "float32" and not is_gpu(setting.device)
        tolerance = MASK_TOLERANCE if exact else MASK_ROUNDED
        error = partial(_share_other_pixels, wanted, masks)
        return {"score": _miou_of(images, masks), "check": Check(error, tolerance, is_after=True)}

    def ours(
        folder: str, dtype: str, workers: int | None, *, device: str = setting.device
    ) -> Variant:
        made = PseudoLabeler.from_checkpoint(
            checkpoint,
            device=device,
            views=TestViews(SCALES, flip=True),
            dtype=dtype,
            crf=CRF,
            method_options=rivals.PLAIN,
            rule=f"constant:{THRESHOLD}",
        )
        count = default_workers(made) if workers is None else workers
        options: dict[str, Any] = {"overwrite": True, "workers": count, "progress": False}
        run = partial(_generate_and_end, images, made, out / folder, **options)
        results: list[RunResult] = []
        trace = out / "trace.json" if is_gpu(device) else None
        return Variant(
            lambda: results.append(run()),
            dtype,
            notes=lambda: _describe_run(results[-1], run, trace),
            **check(out / folder / "masks", dtype),
        )

    variants = {
        "adcam, bfloat16": ours("bfloat16", "bfloat16", setting.workers),
        "adcam, float32": ours("float32", "float32", setting.workers),
        "adcam, float32, one process": ours("inline", "float32", 0),
    }
    if is_gpu(setting.device):
        # What a GPU rounds otherwise must not show in the mIoU.
        name = "adcam, float32, on the CPU"
        variants[name] = ours("cpu", "float32", setting.workers, device="cpu")
    if dense_crf.available_backends()["pydensecrf"] is None:
        crf = partial(rivals.crf_by_pydensecrf, params=CRF)
        rival = partial(_plain_mask, _network(setting), images, crf)

        def peers() -> None:
            for index, record in enumerate(images.records):
                path = out / "peers" / f"{record.img_id}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                rivals.save_mask(path, rival(index))

        variants["peers' recipe"] = Variant(peers, **check(out / "peers", "float32"))
    return variants


def _plain_mask(network: Any, images: ImageDataset, crf: Callable[..., Any], index: int) -> Any:
    """The mask of an image by the peers' recipe, with the values of the classes."""
    ids, img = images.records[index].class_ids or (), images.load_image(index)
    values = np.array([0, *(images.class_set.mask_values[i] for i in ids)])
    if not ids:
        return np.zeros(img.shape[:2], values.dtype)
    options: dict[str, Any] = {"scales": SCALES, "flip": True, "threshold": THRESHOLD, "crf": crf}
    return values[rivals.peers_recipe(network, img, ids, **options)]


def _crf_by_reference(prob: np.ndarray, img: np.ndarray) -> np.ndarray:
    return refine(prob, img, crf=CRF, backend="reference")


def _share_other_pixels(
    wanted: Callable[[], Mapping[str, np.ndarray]], masks: Path, result: object
) -> float:
    """The share of pixels in which masks on disk are not those that are wanted by image id."""
    shares = [(read_mask(masks / f"{name}.png") != mask).mean() for name, mask in wanted().items()]
    return float(np.mean(shares))


def _generate_and_end(*args: Any, **options: Any) -> RunResult:
    """Generate masks; the start of the workers' server is part of it, and so is what they took."""
    result = generate(*args, **options)
    end_server()
    return result


def _describe_run(
    result: RunResult, run: Callable[..., RunResult], trace: Path | None
) -> dict[str, float]:
    """What a run says of itself; of a GPU, another run, which is recorded, says how busy it was."""
    notes = {"images_per_s": result.images_per_second, "first_image_s": result.first_after}
    if trace is not None:
        busy = run(profile=trace).gpu_busy
        notes |= {} if busy is None else {"gpu_busy": busy}
    return notes


def _build_commands(
    num_images: int, setting: Setting, *, is_growth: bool = False
) -> dict[str, Variant]:
    """Commands, and a list in Python; what grows sees links to the same few images."""
    images = _images(20 if is_growth else num_images, setting)
    how: tuple[Any, ...] = ((128,), False, "none") if is_growth else (SCALES, True, CRF)
    root = setting.scratch / f"commands_{num_images}"
    few = _link_images(root / "few", images, min(num_images, CHECKED))
    on_cpu = _list_works(few, images, replace(setting, device="cpu"), *how)
    works = _list_works(_link_images(root / "all", images, num_images), images, setting, *how)
    if is_growth:
        del works["PseudoLabeler, a list"]  # which keeps all its results
    trace = setting.scratch / "trace.json" if is_gpu(setting.device) else None
    return {
        name: Variant(
            work.run,
            check=_check_work(work, on_cpu[name]),
            notes=None if trace is None else partial(_measure_busy, work, trace),
        )
        for name, work in works.items()
    }


def _build_start(num_images: int, setting: Setting) -> dict[str, Variant]:
    """A command up to its first mask, and the loading that it cannot do without."""
    generate = _build_commands(num_images, setting)["adcam generate"]

    def run() -> Outcome:
        done = generate.run()
        return replace(done, seconds=done.notes["first_image_s"], notes={})

    variants = {"adcam generate, to the first mask": replace(generate, run=run, notes=None)}
    parts = {
        "loading torch": Work("import_torch", (), setting.device),
        "loading torch and timm": Work("import_timm", (), setting.device),
        "loading torch, timm and the classifier": Work(
            "load_network", (str(_checkpoint(setting)),), setting.device
        ),
    }
    return variants | {name: Variant(part.run) for name, part in parts.items()}


def _measure_busy(work: Work, trace: Path) -> Mapping[str, float]:
    """How busy another run, which is recorded, keeps the GPU."""
    notes = work.run(trace).notes
    return {key: notes[key] for key in notes if key == "gpu_busy"}


def _check_work(work: Work, on_cpu: Work) -> Check | None:
    """Compare what a run has left with what the same work makes of the first images on the CPU."""
    if work.results is None or on_cpu.results is None:
        return None
    folder, is_exact = on_cpu.results, not is_gpu(work.device)
    if folder.suffix:  # a manifest
        boxes = cache(lambda: _read_boxes(folder) if on_cpu.run() else {})
        error: Callable[[Any], float] = partial(_share_lost_boxes, boxes, work.results)
        return Check(error, TOLERANCE if is_exact else ROUNDED, is_after=True)
    masks = cache(lambda: _read_masks(folder) if on_cpu.run() else {})
    error = partial(_share_other_pixels, masks, work.results)
    return Check(error, MASK_TOLERANCE if is_exact else MASK_ROUNDED, is_after=True)


def _read_masks(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: read_mask(path) for path in folder.glob("*.png")}


def _read_boxes(manifest: Path) -> dict[str, np.ndarray]:
    """The boxes of images by id, (n, 5): class and corners."""
    entries = map(json.loads, manifest.read_text().splitlines())
    return {entry["id"]: np.array(entry["boxes"]).reshape(-1, 5) for entry in entries}


def _share_lost_boxes(
    wanted: Callable[[], Mapping[str, np.ndarray]], manifest: Path, result: object
) -> float:
    """One less the mean IoU of boxes that are wanted with the best of their class."""
    found, ious = _read_boxes(manifest), []
    for name, boxes in wanted().items():
        for box in boxes:
            same = found[name][found[name][:, 0] == box[0]]
            ious.append(compute_iou(box[None, 1:], same[:, 1:]).max(initial=0))
    return 1 - float(np.mean(ious))


def _list_works(
    root: Path,
    images: ImageDataset,
    setting: Setting,
    scales: Sequence[int],
    flip: bool,
    crf: str,
) -> dict[str, Work]:
    """Commands on the images of a VOC root, and a list in Python."""
    photos, truth = (str(root / name) for name in ("JPEGImages", "SegmentationClass"))
    checkpoint, device = str(_checkpoint(setting)), setting.device
    labels = ["--labels", str(root / "labels.csv"), "--scales", *map(str, scales)]
    model = ["--checkpoint", checkpoint, "--device", device, *labels]
    model += ["--flip" if flip else "--no-flip"]
    if setting.workers is not None:
        model += ["--workers", str(setting.workers)]
    views = {"scales": scales, "flip": flip}
    config = str(_write_comparison(root, images, checkpoint, views, crf))
    compare = ["compare", config, "--work-dir", "OUT"]
    options = json.dumps({**views, "crf": crf})
    works: dict[str, tuple[Sequence[str], str]] = {
        "adcam generate": (["generate", photos, *model, "--crf", crf, "--out", "OUT"], "masks"),
        "adcam boxes": (
            ["boxes", photos, *model, "--threshold", "0.3", "--out", "OUT/boxes.csv"],
            "boxes.csv.run/manifest.jsonl",
        ),
        "adcam evaluate": (["evaluate", truth, "--gt", truth], ""),
        "adcam compare": (compare, "compare/masks"),
        "adcam compare --table-only": ([*compare, "--table-only"], ""),
        "PseudoLabeler, a list": ([checkpoint, str(root), "OUT/masks", device, options], "masks"),
    }
    if why_not_importable("mmseg.models") is None:
        network = ["--checkpoint", str(_segmenter(images, setting)), "--out", "OUT"]
        works["adcam segment predict"] = (["segment", "predict", photos, *network], "masks")
    found = {}
    for name, (words, results) in works.items():
        out = root / "out" / name.replace(" ", "_")
        found[name] = Work(
            "run_adcam" if name.startswith("adcam") else "label_list",
            tuple(word.replace("OUT", str(out)) for word in words),
            device,
            out,
            out / results if results else None,
        )
    return found


def _link_images(root: Path, images: ImageDataset, count: int) -> Path:
    """Make a VOC root of links to the images in turn; its list ``few`` has the first of them."""
    names, labels = [f"{index:05d}" for index in range(count)], ["image_id,labels"]
    for index, name in enumerate(names):
        record = images.records[index % len(images)]
        _link(root / "JPEGImages" / f"{name}{record.img_path.suffix}", record.img_path)
        if record.mask_path is not None:
            _link(root / "SegmentationClass" / f"{name}.png", record.mask_path)
        classes = images.class_set.classes
        labels.append(f"{name},{' '.join(classes[i] for i in record.class_ids or ())}")
    write_text(root / "labels.csv", "\n".join([*labels, ""]))
    for split, listed in (("all", names), ("few", names[:CHECKED])):
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        write_text(path, "\n".join([*listed, ""]))
    return root


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target.resolve())


def _write_comparison(
    root: Path, images: ImageDataset, checkpoint: str, views: Mapping[str, Any], crf: str
) -> Path:
    """The config of a comparison of CAM and AD-CAM on all images."""
    cam = {"name": "CAM", "method": "cam", "views": views}
    rule = DEFAULT_RULES["ad_cam"][0]
    ours = {"name": "AD-CAM", "method": "ad_cam", "views": views, "crf": crf, "rule": rule}
    data = {"source": "voc", "root": str(root), "classes": list(images.class_set.classes)}
    compare = {"choose_on": "few", "report_on": "all", "checkpoint": checkpoint}
    values = {
        "data": {**data, "labels": "labels.csv", "train": "few", "val": "all"},
        # For the words of the report: the classifier is that of the file.
        "model": {"backbone": "deit_tiny_patch16_224"},
        "train": {"epochs": 1, "img_size": 128, "batch_size": 1},
        "compare": {**compare, "rows": [cam, ours]},
    }
    path = root / "comparison.json"
    write_json(path, values)
    return path


def _segmenter(images: ImageDataset, setting: Setting) -> Path:
    """The segmentation network of the setting, or one with random weights in float32."""
    if setting.segmenter is not None:
        return setting.segmenter
    path = setting.scratch / "segmenter.safetensors"
    if not path.exists():
        from adcam.training.segmenter import load_segmentation_settings
        from adcam.training.segmenter_file import build_network, save_segmenter

        torch.manual_seed(0)
        changes: dict[str, Any] = {"weights": None, "train.amp": "none"}
        changes["model.decode_head.num_classes"] = 1 + images.class_set.num_fg_classes
        settings = load_segmentation_settings(SEGMENTER, changes)
        save_segmenter(path, build_network(settings), settings, images.class_set)
    return path


def describe_case(name: str, setting: Setting) -> str:
    """What a row calls the case: with the network, such as deit_tiny, where that is timed."""
    if name != "forward":
        return name
    backbone = load_classifier(_checkpoint(setting)).network_options["backbone"]
    return f"{name} {backbone.partition('_patch')[0]}"


def _network(setting: Setting) -> Any:
    return load_classifier(_checkpoint(setting)).network.to(setting.device).eval()


def _checkpoint(setting: Setting) -> Path:
    """The classifier of the setting, or its backbone with random weights, which is as fast."""
    if setting.checkpoint is not None:
        return setting.checkpoint
    path = setting.scratch / "random.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        images = _images(1, setting)
        options = {"backbone": setting.backbone, "img_size": 224}
        num_fg_classes = images.class_set.num_fg_classes
        network = TokenCAM(num_fg_classes=num_fg_classes, **options)  # type: ignore[arg-type]
        for block in network.backbone.blocks:
            # Else patches attend to all alike, and the last bits decide what is in a mask.
            block.attn.qkv.weight.data *= 4
        save_classifier(path, network, options, images.class_set, {})
    return path


def _images(count: int, setting: Setting) -> ImageDataset:
    """The first images of the setting's split, or generated ones, with labels and masks."""
    config: dict[str, Any] = {"source": "voc", "labels": "labels.csv"}
    if setting.data is not None:
        config |= {"root": str(setting.data), "classes": _classes_of(setting)}
        images = build_dataset(config, setting.split)
    else:
        root = setting.scratch / f"shapes_{count}"
        if not root.exists():
            make_shapes(root, num_train=1, num_val=count, size_hw=CRF_HW, seed=0)
        images = build_dataset({**config, "root": str(root), "classes": "shapes"}, "val")
    if len(images) < count:
        raise ValueError(f"{count} images asked for, but {images.split} has {len(images)}")
    return images[:count]


def _classes_of(setting: Setting) -> list[str]:
    if setting.checkpoint is None:
        raise ValueError("--data needs --checkpoint, a classifier of its classes")
    return list(load_classifier(setting.checkpoint).class_set.classes)


def _miou_of(images: ImageDataset, masks: Path) -> Callable[[], float]:
    return lambda: score_masks(images, masks).result.miou


_ATTENTION_TESTS = ("tests/ops/test_token_attention.py", "tests/ops/test_layers.py")
_REFINE_TESTS = ("tests/ops/test_common_neighbor.py", "tests/ops/test_diffusion.py")
_FORWARD_TESTS = ("tests/models/test_models_attention_capture.py", *_ATTENTION_TESTS)
_ATTENTION_KERNELS = (
    "tests/ops/test_token_attention_triton.py",
    "tests/ops/test_capture_kernels.py",
)
_REFINE_KERNELS = (
    "tests/ops/test_common_neighbor_triton.py",
    "tests/ops/test_diffusion_triton.py",
)
_GENERATE_TESTS = ("tests/labeling/test_generate.py",)
_COMMAND_TESTS = (
    *_GENERATE_TESTS,
    "tests/labeling/test_boxes.py",
    "tests/labeling/test_labeler.py",
    "tests/evaluation/test_compare_command.py",
)
_GENERATE_KERNELS = (
    "tests/labeling/test_device_steps.py",
    "tests/models/test_packed_pass.py",
    *_ATTENTION_KERNELS,
    *_REFINE_KERNELS,
    "tests/ops/test_dense_crf_triton.py",
)

CASES: dict[str, Case] = {
    "token_attention": Case(
        "attention of one block of DeiT-Tiny, mean over heads; size: patches N",
        (196, 784, 2304),
        _ATTENTION_TESTS,
        _build_token_attention,
        gpu_tests=_ATTENTION_KERNELS,
    ),
    "attend": Case(
        "output and mean attention of one block of DeiT-Tiny; size: patches N",
        (196, 784, 2304),
        _ATTENTION_TESTS,
        _build_attend,
        gpu_tests=_ATTENTION_KERNELS,
    ),
    "common_neighbor": Case(
        "refined affinity, resource allocation, power 2; size: patches N",
        (196, 784, 2304),
        _REFINE_TESTS[:1],
        _build_common_neighbor,
        gpu_tests=_REFINE_KERNELS[:1],
    ),
    "diffusion": Case(
        "Sinkhorn and two steps of three maps; size: patches N",
        (196, 784, 2304),
        _REFINE_TESTS[1:],
        _build_diffusion,
        gpu_tests=_REFINE_KERNELS[1:],
    ),
    "refine": Case(
        "AD-CAM's whole refinement; size: patches N",
        (196, 784, 1024, 2304),
        (*_REFINE_TESTS, "tests/ops/test_refinement.py"),
        _build_refine,
        gpu_tests=_REFINE_KERNELS,
    ),
    "two_hop_walk": Case(
        "one step of AD-CAM's quick form; size: patches N",
        (784, 2304),
        ("tests/ops/test_two_hop_walk.py",),
        _build_two_hop_walk,
        gpu_tests=("tests/ops/test_two_hop_walk_triton.py",),
    ),
    "color_diffusion": Case(
        "ten steps of three square maps along the image's colours; size: side in pixels",
        (112,),
        ("tests/ops/test_color_diffusion.py",),
        _build_color_diffusion,
        gpu_tests=("tests/ops/test_color_diffusion_triton.py",),
    ),
    "dense_crf": Case(
        f"CRF of a {CRF_HW[1]}x{CRF_HW[0]} image, 10 updates; size: labels",
        (2, 4, 21),
        ("tests/ops/test_dense_crf.py",),
        _build_dense_crf,
        repeats=5,
    ),
    "dense_crf_batch": Case(
        f"CRFs of --batch images of {CRF_HW[1]}x{CRF_HW[0]}, with their lattices, on the device; "
        "size: labels; score: labels equal to the reference's",
        (3, 21),
        ("tests/ops/test_dense_crf.py",),
        _build_dense_crf_batch,
        repeats=5,
        gpu_tests=("tests/ops/test_dense_crf_triton.py",),
    ),
    "level_boxes": Case(
        "MaxBoxAccV2 of score maps, one pass a map; size: thresholds; score: the accuracy",
        (1000,),
        ("tests/ops/test_level_boxes.py", "tests/metrics/test_metrics_localization.py"),
        _build_level_boxes,
    ),
    "forward": Case(
        "--backbone with 3x3 head, square image; size: side in pixels",
        (224, 448),
        _FORWARD_TESTS,
        _build_forward,
        repeats=10,
        gpu_tests=(*_ATTENTION_KERNELS, *_REFINE_KERNELS),
    ),
    "generate": Case(
        "masks at 224, 336 and 448 px with mirroring and CRF; size: images; score: mIoU",
        (20,),
        _GENERATE_TESTS,
        _build_generate,
        repeats=1,
        gpu_tests=_GENERATE_KERNELS,
    ),
    "commands": Case(
        "commands that make masks or boxes, and a list in Python, in processes of their own; size: "
        "images; memory: the largest process",
        (20,),
        _COMMAND_TESTS,
        _build_commands,
        repeats=1,
        gpu_tests=_GENERATE_KERNELS,
    ),
    "start": Case(
        "from the start of `adcam generate` to its first mask, and loading; size: images",
        (20,),
        _GENERATE_TESTS,
        _build_start,
        repeats=5,
        gpu_tests=_GENERATE_KERNELS,
    ),
    "growth": Case(
        "the commands at 128 px, without CRF, on links to 20 images; size: images; memory: the "
        "largest process",
        (100, 550, 1000),
        _COMMAND_TESTS,
        partial(_build_commands, is_growth=True),
        repeats=1,
        gpu_tests=_GENERATE_KERNELS,
    ),
}
