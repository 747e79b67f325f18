"""The registry of benchmark cases: what is timed, at which sizes, against what."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rivals
import torch
from measure import ROOT, Peak, Variant
from torch import Tensor
from torch.nn import functional as F

from adcam.cams import build_method
from adcam.data.dataset import ImageDataset
from adcam.data.score_maps import SCORE_MAP_HW, read_score_map
from adcam.data.shapes import make_shapes
from adcam.data.sources import build_dataset
from adcam.evaluation.masks_on_disk import score_masks
from adcam.files import write_json, write_text
from adcam.labeling.generate import default_workers, generate
from adcam.labeling.labeler import PseudoLabeler
from adcam.metrics.localization import MaxBoxAccuracy
from adcam.models.classifier_file import save_classifier
from adcam.models.token_cam import TokenCAM
from adcam.ops import (
    common_neighbor,
    dense_crf,
    diffusion,
    refinement,
    token_attention,
    two_hop_walk,
)
from adcam.ops.common_neighbor import reference as common_neighbor_reference
from adcam.ops.diffusion import reference as diffusion_reference
from adcam.ops.refinement import RefineOptions
from adcam.ops.token_attention import reference as token_attention_reference
from adcam.ops.two_hop_walk import reference as two_hop_reference
from adcam.settings import TestViews

SCALES = (224, 336, 448)
HEADS, HEAD_WIDTH, NUM_CLASSES = 3, 64, 3  # DeiT-Tiny; labels of a CRF are one more
CRF_HW = (375, 500)


@dataclass(frozen=True)
class Setting:
    """The options of a run.

    Attributes:
        device: ``"cpu"`` or the name of a CUDA device.
        batch: How many images are computed at once, in cases that have batches.
        data: A VOC root with ``labels.csv`` and masks, or ``None`` for generated pictures.
        split: The list of ``data`` that names the images.
        checkpoint: The file of a classifier, or ``None`` for DeiT-Tiny with random weights.
        score_maps: A folder of score maps in wsolevaluation's format, or ``None`` for random ones.
        workers: The number of processes of ``generate``, or ``None`` for its default.
        scratch: An empty folder that is deleted after the run.
    """

    device: str
    batch: int
    data: Path | None
    split: str
    checkpoint: Path | None
    score_maps: Path | None
    workers: int | None
    scratch: Path

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
    """

    summary: str
    sizes: tuple[int, ...]
    tests: tuple[str, ...]
    build: Callable[[int, Setting], Mapping[str, Variant]]
    repeats: int = 20


def _attention_like(setting: Setting, tokens: int) -> Tensor:
    """(B, N, N) rows that are peaked and sum to 1, as a ViT's are."""
    return (8 * setting.rand(setting.batch, tokens, tokens)).softmax(dim=-1)


def _gemm(setting: Setting, tokens: int) -> Callable[[], Any]:
    """One N×N×N product, which exact resource allocation cannot avoid."""
    left = setting.rand(setting.batch, tokens, tokens)
    return lambda: left @ left.mT


def _with_rivals(
    ours: Callable[[], Any],
    reference: Callable[..., Any],
    arguments: Sequence[Any],
    **others: Callable[[], Any],
) -> dict[str, Variant]:
    compiled = torch.compile(reference, dynamic=False)
    variants: dict[str, Callable[[], Any]] = {
        "adcam": ours,
        "torch eager": partial(reference, *arguments),
        "torch.compile": partial(compiled, *arguments),
        **{n.replace("__", ", ").replace("_", " "): run for n, run in others.items()},
    }
    return {name: Variant(torch.inference_mode()(run)) for name, run in variants.items()}


def _with_graphs(
    variants: dict[str, Variant], setting: Setting, names: Sequence[str]
) -> dict[str, Variant]:
    """On a GPU, some variants once more as CUDA graphs: without the time that launching takes."""
    if torch.device(setting.device).type != "cuda":
        return variants
    graphs = {
        f"{name}, as a graph": replace(variants[name], run=_Graph(variants[name].run))
        for name in names
    }
    return {**variants, **graphs}


class _Graph:
    """A CUDA graph of a function without arguments, captured when it is called first."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run
        self._graph: Any = None
        self._result: Any = None

    def __call__(self) -> Any:
        if self._graph is None:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):  # what is compiled, and what is chosen at a first call
                    self._run()
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = self._run()
        self._graph.replay()
        return self._result


def _build_token_attention(tokens: int, setting: Setting) -> dict[str, Variant]:
    q, k = (setting.rand(setting.batch, HEADS, 1 + tokens, HEAD_WIDTH) - 0.5 for _ in range(2))
    scale = HEAD_WIDTH**-0.5
    return _with_rivals(
        lambda: token_attention.token_attention(q, k, scale=scale),
        _attention_reference,
        (q, k, scale),
        explicit_attention=lambda: rivals.explicit_attention(q, k, scale=scale),
        gemm_roofline=lambda: q @ k.mT,
    )


def _attention_reference(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return (
        token_attention_reference.patch_attention(q, k, scale, 1),
        token_attention_reference.cls_attention(q, k, scale, 1, 0),
    )


def _build_attend(tokens: int, setting: Setting) -> dict[str, Variant]:
    qkv = setting.rand(3, setting.batch, HEADS, 1 + tokens, HEAD_WIDTH) - 0.5
    total = torch.zeros(setting.batch, tokens, tokens, device=setting.device)
    scale = HEAD_WIDTH**-0.5
    variants = {}
    for dtype in ("float32", "bfloat16"):
        q, k, v = qkv.to(getattr(torch, dtype))
        fused = partial(F.scaled_dot_product_attention, q, k, v)
        mean = partial(token_attention.accumulate_token_attention, total, q, k, scale=scale)
        ours = partial(token_attention.attend_and_accumulate, total, q, k, v, scale=scale)
        runs: dict[str, Callable[[], Any]] = {
            "adcam": ours,
            "fused attention": fused,
            "fused attention, then mean": partial(_in_turn, fused, mean),
        }
        for name, run in runs.items():
            label = name if dtype == "float32" else f"{name}, bfloat16"
            variants[label] = Variant(torch.inference_mode()(run), dtype)
    return variants


def _in_turn(*runs: Callable[[], Any]) -> None:
    for run in runs:
        run()


def _build_common_neighbor(tokens: int, setting: Setting) -> dict[str, Variant]:
    attn = _attention_like(setting, tokens)
    return _with_rivals(
        lambda: common_neighbor.common_neighbor(attn),
        common_neighbor_reference.refine,
        (attn, "resource_allocation", 2.0),
        gemm_roofline=_gemm(setting, tokens),
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
        lambda: diffusion.diffuse(maps, affinity),
        _diffuse,
        (maps, affinity),
        gemm_roofline=_gemm(setting, tokens),
    )


def _build_refine(tokens: int, setting: Setting) -> dict[str, Variant]:
    maps = setting.rand(setting.batch, NUM_CLASSES, tokens)
    attn = _attention_like(setting, tokens)
    half = attn.half()
    grid_hw = _grid_of(tokens)
    apart = RefineOptions(artifact_ratio=0.65)
    exact = RefineOptions(exact=True)
    variants = _with_rivals(
        lambda: refinement.refine_maps(maps, attn, grid_hw),
        _refine,
        (maps, attn),
        adcam__exact=lambda: refinement.refine_maps(maps, attn, grid_hw, exact),
        adcam__attention_in_float16=lambda: refinement.refine_maps(maps, half, grid_hw),
        adcam__operation_by_operation=lambda: diffusion.diffuse(
            maps, common_neighbor.common_neighbor(attn)
        ),
        adcam__artefacts_out=lambda: refinement.refine_maps(maps, attn, grid_hw, apart),
        gemm_roofline=_gemm(setting, tokens),
        gemm_in_float16=lambda: half @ half.mT,
    )
    variants = _with_graphs(variants, setting, ["adcam", "adcam, artefacts out"])
    want = _refine(maps[:1].double(), attn[:1].double())
    return {
        name: variant
        if "gemm" in name or "artefacts" in name
        else replace(variant, score=_agreement(variant.run, want))
        for name, variant in variants.items()
    }


def _build_two_hop_walk(tokens: int, setting: Setting) -> dict[str, Variant]:
    maps = setting.rand(setting.batch, NUM_CLASSES, tokens)
    attn = _attention_like(setting, tokens)
    variants = _with_rivals(
        lambda: two_hop_walk.two_hop_walk(maps, attn),
        two_hop_reference.walk,
        (maps, attn, 1),
        products_of_torch=lambda: two_hop_walk.two_hop_walk(maps, attn, backend="torch"),
        gemm_roofline=_gemm(setting, tokens),
    )
    variants = _with_graphs(variants, setting, ["adcam", "products of torch"])
    want = two_hop_reference.walk(maps[:1].double(), attn[:1].double(), 1)
    return {
        name: variant if "gemm" in name else replace(variant, score=_agreement(variant.run, want))
        for name, variant in variants.items()
    }


def _grid_of(tokens: int) -> tuple[int, int]:
    """The grid nearest to a square."""
    height = next(side for side in range(math.isqrt(tokens), 0, -1) if tokens % side == 0)
    return height, tokens // height


def _agreement(run: Callable[[], Tensor], want: Tensor) -> Callable[[], float]:
    """How well the first image agrees with a result in float64: 100 less the largest error, both in
    percent of the largest value."""

    def score() -> float:
        error = (run()[:1].double() - want).abs().max() / want.abs().max()
        return 100 - 100 * float(error)

    return score


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
    return {name: Variant(run) for name, run in runs.items()}


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
    check = partial(_agreement_with_the_reference, probs, imgs)
    return {name: Variant(run, score=partial(check, run)) for name, run in runs.items()}


def _agreement_with_the_reference(
    probs: Sequence[np.ndarray], imgs: Sequence[np.ndarray], run: Callable[[], Sequence[Any]]
) -> float:
    """Percent of pixels with the reference's label, in the first and the last image.

    Raises:
        ValueError: The marginals are not those of the reference.
    """
    got, shares = run(), []
    for place in sorted({0, len(probs) - 1}):
        want = dense_crf.dense_crf(probs[place], imgs[place], backend="reference")
        ours = torch.as_tensor(got[place]).cpu().numpy()
        if not np.abs(ours - want).mean() < 1e-4:  # true for NaN as well
            raise ValueError(f"image {place}: not what the reference computes")
        shares.append(100 * (ours.argmax(axis=0) == want.argmax(axis=0)).mean())
    return float(np.mean(shares))


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
        for name, run in (("adcam", partial(ours, all_contours)), ("OpenCV a threshold", plain)):
            variants[f"{name}, {label}"] = Variant(run, "uint8", run)
    return variants


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
    method = build_method("ad_cam")
    layer_sets = method.layer_sets(network.depth)
    compiled: Any = torch.compile(network, dynamic=False)
    runs: dict[str, Callable[[], Any]] = {
        "plain": lambda: network(inputs),
        "capture": lambda: network.token_maps(inputs, layer_sets=layer_sets),
        "capture + AD-CAM": lambda: method(network.token_maps(inputs, layer_sets=layer_sets), ids),
        "all attention by hooks": lambda: rivals.extract_attention(network, inputs),
        "torch.compile, plain": lambda: compiled(inputs),
    }
    variants = {}
    for dtype in ("float32", "bfloat16"):
        for name, run in runs.items():
            if dtype == "float32" or name == "plain" or "capture" in name:
                label = name if dtype == "float32" else f"{name}, bfloat16"
                variants[label] = Variant(_inference(run, setting.device, dtype), dtype)
    names = ("plain", "capture", "capture + AD-CAM")
    return _with_graphs(variants, setting, [f"{name}, bfloat16" for name in names])


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
    images, checkpoint = _images(num_images, setting), _checkpoint(setting)

    def labeler(dtype: str) -> PseudoLabeler:
        views = TestViews(SCALES, flip=True)
        return PseudoLabeler.from_checkpoint(
            checkpoint,
            device=setting.device,
            views=views,
            dtype=dtype,
            crf="toco",
            method_options=rivals.PLAIN,
            rule="constant:0.58",
        )

    def ours(dtype: str, workers: int | None, out: Path) -> Variant:
        made = labeler(dtype)
        count = default_workers(made) if workers is None else workers
        return Variant(
            lambda: generate(images, made, out, overwrite=True, workers=count, progress=False),
            dtype,
            _miou_of(images, out / "masks"),
        )

    out = setting.scratch
    variants = {
        "adcam, bfloat16": ours("bfloat16", setting.workers, out / "bfloat16"),
        "adcam, float32": ours("float32", setting.workers, out / "float32"),
        "adcam, float32, one process": ours("float32", 0, out / "inline"),
    }
    if dense_crf.available_backends()["pydensecrf"] is None:
        options = labeler("float32").options
        network = _network(setting)

        def peers() -> None:
            for index, record in enumerate(images.records):
                ids = record.class_ids or ()
                img = images.load_image(index)
                mask = np.zeros(img.shape[:2], dtype=np.intp)
                if ids:
                    mask = rivals.peers_recipe(
                        network,
                        img,
                        ids,
                        scales=SCALES,
                        flip=True,
                        threshold=options.rule.value or 0.0,
                        crf_params=options.crf,
                    )
                values = np.array([0, *(images.class_set.mask_values[i] for i in ids)])
                path = out / "peers" / f"{record.img_id}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                rivals.save_mask(path, values[mask])

        variants["peers' recipe"] = Variant(peers, score=_miou_of(images, out / "peers"))
    return variants


def _build_growth(num_images: int, setting: Setting) -> dict[str, Variant]:
    """Links to the same few images, so that only their number grows."""
    root = setting.scratch / f"growth_{num_images}"
    few = _images(20, setting)
    names, labels = [], ["image_id,labels"]
    for index in range(num_images):
        record, name = few.records[index % len(few)], f"{index:05d}"
        _link(root / "JPEGImages" / f"{name}{record.img_path.suffix}", record.img_path)
        if record.mask_path is not None:
            _link(root / "SegmentationClass" / f"{name}.png", record.mask_path)
        names.append(name)
        classes = few.class_set.classes
        labels.append(f"{name},{' '.join(classes[i] for i in record.class_ids or ())}")
    write_text(root / "labels.csv", "\n".join([*labels, ""]))
    write_text(root / "ImageSets" / "Segmentation" / "all.txt", "\n".join([*names, ""]))
    photos, masks = str(root / "JPEGImages"), str(root / "SegmentationClass")
    model = ["--checkpoint", str(_checkpoint(setting)), "--device", setting.device]
    model += ["--labels", "predicted", "--label-threshold", "0.3", "--scales", "128"]
    if setting.workers is not None:
        model += ["--workers", str(setting.workers)]
    config = _write_comparison(root, few, setting)
    commands = {
        "generate": ["generate", photos, *model, "--out", f"{root}_masks", "--overwrite"],
        "boxes": [
            *("boxes", photos, *model, "--threshold", "0.3"),
            *("--out", f"{root}_boxes.csv", "--overwrite"),
        ],
        "evaluate": ["evaluate", masks, "--gt", masks],
        "compare": ["compare", str(config), "--work-dir", f"{root}_compare", "--redo", "compare"],
    }
    return {
        f"adcam {name}": Variant(partial(_measure_command, words))
        for name, words in commands.items()
    }


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target.resolve())


def _write_comparison(root: Path, images: ImageDataset, setting: Setting) -> Path:
    """The config of a comparison of one method on all images."""
    views = {"scales": [128], "flip": False, "keep_ratio": True}
    rows = [{"name": "AD-CAM", "method": "ad_cam", "views": views}]
    compare = {"choose_on": "all", "report_on": "all", "choose_stride": 20, "rows": rows}
    classes = list(images.class_set.classes)
    data = {"source": "voc", "root": str(root), "classes": classes, "labels": "labels.csv"}
    lists = {"train": "all", "val": "all"}
    values = {
        "data": {**data, **lists},
        # For the words of the report: the classifier is that of the file.
        "model": {"backbone": "deit_tiny_patch16_224"},
        "train": {"epochs": 1, "img_size": 128, "batch_size": 1},
        "compare": {**compare, "checkpoint": str(_checkpoint(setting))},
    }
    path = root / "growth.json"
    write_json(path, values)
    return path


def _measure_command(words: Sequence[str]) -> Peak:
    """Run a command; its processes are waited for by a process of their own.

    So the account of the largest among them is not mixed with that of other runs.
    """
    script = (
        "import resource, sys; from adcam.cli import main; code = main(sys.argv[1:]);"
        "own, rest = (resource.getrusage(who).ru_maxrss for who in"
        " (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)); print(max(own, rest), code);"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"if __name__ == '__main__': {script}", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        raise ValueError(f"adcam {words[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return Peak(int(done.stdout.split()[-2]) / 1024)


def _network(setting: Setting) -> Any:
    from adcam.models.classifier_file import load_classifier

    return load_classifier(_checkpoint(setting)).network.to(setting.device).eval()


def _checkpoint(setting: Setting) -> Path:
    """The classifier of the setting, or DeiT-Tiny with random weights, which is as fast."""
    if setting.checkpoint is not None:
        return setting.checkpoint
    path = setting.scratch / "random.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        images = _images(1, setting)
        options = {"backbone": "deit_tiny_patch16_224", "img_size": 224}
        num_fg_classes = images.class_set.num_fg_classes
        network = TokenCAM(num_fg_classes=num_fg_classes, **options)  # type: ignore[arg-type]
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
    from adcam.models.classifier_file import load_classifier

    if setting.checkpoint is None:
        raise ValueError("--data needs --checkpoint, a classifier of its classes")
    return list(load_classifier(setting.checkpoint).class_set.classes)


def _miou_of(images: ImageDataset, masks: Path) -> Callable[[], float]:
    return lambda: score_masks(images, masks).result.miou


_ATTENTION_TESTS = ("tests/ops/test_token_attention.py", "tests/ops/test_layers.py")
_REFINE_TESTS = ("tests/ops/test_common_neighbor.py", "tests/ops/test_diffusion.py")
_FORWARD_TESTS = ("tests/models/test_models_attention_capture.py", *_ATTENTION_TESTS)
_GENERATE_TESTS = ("tests/labeling/test_generate.py",)

CASES: dict[str, Case] = {
    "token_attention": Case(
        "attention of one block of DeiT-Tiny, mean over heads; size: patches N",
        (196, 784, 2304),
        _ATTENTION_TESTS,
        _build_token_attention,
    ),
    "attend": Case(
        "output and mean attention of one block of DeiT-Tiny; size: patches N",
        (196, 784, 2304),
        _ATTENTION_TESTS,
        _build_attend,
    ),
    "common_neighbor": Case(
        "refined affinity, resource allocation, power 2; size: patches N",
        (196, 784, 2304),
        _REFINE_TESTS[:1],
        _build_common_neighbor,
    ),
    "diffusion": Case(
        "Sinkhorn and two steps of three maps; size: patches N",
        (196, 784, 2304),
        _REFINE_TESTS[1:],
        _build_diffusion,
    ),
    "refine": Case(
        "AD-CAM's whole refinement; size: patches N; score: agreement with float64 in percent",
        (196, 784, 1024, 2304),
        (*_REFINE_TESTS, "tests/ops/test_refinement.py"),
        _build_refine,
    ),
    "two_hop_walk": Case(
        "one step of AD-CAM's quick form; size: patches N; score: as refine",
        (784, 2304),
        ("tests/ops/test_two_hop_walk.py",),
        _build_two_hop_walk,
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
        ("tests/ops/test_dense_crf_triton.py", "tests/ops/test_dense_crf.py"),
        _build_dense_crf_batch,
        repeats=5,
    ),
    "level_boxes": Case(
        "MaxBoxAccV2 of score maps, one pass a map; size: thresholds; score: the accuracy",
        (1000,),
        ("tests/ops/test_level_boxes.py", "tests/metrics/test_metrics_localization.py"),
        _build_level_boxes,
    ),
    "forward": Case(
        "DeiT-Tiny with 3x3 head, square image; size: side in pixels",
        (224, 448),
        _FORWARD_TESTS,
        _build_forward,
        repeats=10,
    ),
    "generate": Case(
        "masks at 224, 336 and 448 px with mirroring and CRF; size: images; score: mIoU",
        (20,),
        _GENERATE_TESTS,
        _build_generate,
        repeats=1,
    ),
    "growth": Case(
        "commands at 128 px in processes of their own; size: images; memory: the largest process",
        (100, 550, 1000),
        _GENERATE_TESTS,
        _build_growth,
        repeats=1,
    ),
}
