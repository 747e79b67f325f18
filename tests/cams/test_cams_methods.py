"""Every method against its formula written out in numpy, row by row."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import adcam
from adcam import cams
from adcam.cams import METHODS, build_method
from adcam.cams.activation import subtract_rivals
from adcam.cams.forms import box_mask
from adcam.errors import AdcamError
from adcam.models.token_cam import TokenCAM
from adcam.settings import load_settings
from adcam.structures import TokenMaps

DEPTH, CLASSES, GRID = 4, 5, (3, 5)
FROM_CLASS_MAPS = [name for name in METHODS if name != "refined"]  # test_cams_refined.py


def make_maps(*, batch: int = 2, grid_hw: tuple[int, int] = GRID, cls_token: bool = True) -> Any:
    """Random token maps in float64 with the attention of every single block and of all sets used.

    Returns the maps and the attention of each block, (L, B, N, N).
    """
    rng = np.random.default_rng(7)
    num_patches = grid_hw[0] * grid_hw[1]
    logits = 2 * rng.standard_normal((DEPTH, batch, 1 + num_patches, 1 + num_patches))
    attn = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    cam = rng.standard_normal((batch, CLASSES, *grid_hw))
    patches = torch.from_numpy(attn[:, :, 1:, 1:])
    sets = [(0, 1, 2, 3), (1, 2, 3), (2, 3), (3,), (0, 2)]
    maps = TokenMaps(
        logits=torch.from_numpy(cam.mean(axis=(2, 3))),
        cam=torch.from_numpy(cam),
        grid_hw=grid_hw,
        depth=DEPTH,
        attn_cls2patch=torch.from_numpy(attn[:, :, 0, 1:]).transpose(0, 1) if cls_token else None,
        attn_patch2patch={s: patches[list(s)].mean(dim=0) for s in sets},
    )
    return maps, attn[:, :, 1:, 1:], attn[:, :, 0, 1:]


def ids(*rows: tuple[int, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), -1)


def run(name: str, maps: TokenMaps, class_ids: Tensor, **options: Any) -> np.ndarray:
    return build_method(name, **options)(maps, class_ids).numpy()


# Transcriptions of docs: one image, one class, plain loops where the formula has indices.


def literal_sinkhorn(matrix: np.ndarray) -> np.ndarray:
    for _ in range(3):
        matrix = matrix / matrix.sum(axis=0, keepdims=True)
        matrix = matrix / matrix.sum(axis=1, keepdims=True)
    return (matrix + matrix.T) / 2


def literal_similarity(a: np.ndarray, name: str) -> np.ndarray:
    size = len(a)
    if name == "none":
        return np.ones((size, size))
    out = np.empty((size, size))
    received = a.sum(axis=0)
    for i in range(size):
        for j in range(size):
            if name == "resource_allocation":
                p_ij, p_ii, p_jj = (
                    sum(a[x, k] * a[y, k] / received[k] for k in range(size))
                    for x, y in ((i, j), (i, i), (j, j))
                )
                out[i, j] = p_ij / np.sqrt(p_ii * p_jj)
            elif name == "cosine":
                out[i, j] = a[i] @ a[j] / np.linalg.norm(a[i]) / np.linalg.norm(a[j])
            elif name == "bhattacharyya":
                out[i, j] = np.sqrt(a[i] * a[j]).sum()
            else:
                out[i, j] = 1 - 0.5 * np.abs(a[i] - a[j]).sum()
    return out


def literal_rectified(cam: np.ndarray, negatives: str) -> np.ndarray:
    if negatives == "keep":
        return cam
    return np.maximum(cam, 0) if negatives == "relu" else cam - cam.min()


def literal_start(
    cam: np.ndarray,
    rows: np.ndarray,
    init: str,
    negatives: str,
    cls_layers: tuple[int, ...],
    rivals: tuple[np.ndarray, ...] = (),
    rival_weight: float = 0.5,
) -> np.ndarray:
    """``cam`` and each of ``rivals`` (h, w), ``rows`` (L, N) -> (N,)."""
    flat = literal_rectified(cam.reshape(-1), negatives)
    if rivals and negatives != "keep":
        others = [literal_rectified(other.reshape(-1), negatives) for other in rivals]
        strongest = np.maximum.reduce([other / other.max() for other in others])
        flat = np.maximum(flat - rival_weight * flat.max() * strongest, 0)
    return flat * rows[list(cls_layers)].mean(axis=0) if init == "coupled" else flat


def literal_ad_cam(attn: np.ndarray, start: np.ndarray, option: dict[str, Any]) -> np.ndarray:
    a = attn / attn.sum(axis=1, keepdims=True)
    refined = a * literal_similarity(a, option["similarity"]) ** option["power"]
    if option["normalize"] == "sinkhorn":
        t = literal_sinkhorn(refined)
    elif option["normalize"] == "row":
        t = refined / refined.sum(axis=1, keepdims=True)
    else:
        t = refined / refined.sum(axis=0, keepdims=True)
    alpha, current = option["alpha"], start
    if option["num_steps"] is None:
        return (1 - alpha) * np.linalg.inv(np.eye(len(t)) - alpha * t) @ start
    for _ in range(option["num_steps"]):
        current = t @ current
        if alpha is not None:
            current = alpha * current + (1 - alpha) * start
    return current


def literal_artifacts(attn: np.ndarray, grid_hw: tuple[int, int], ratio: float) -> np.ndarray:
    """True for patches that agree with none of the patches around them, (N,)."""
    sim = literal_similarity(attn / attn.sum(axis=1, keepdims=True), "resource_allocation")
    agreement = []
    for i in range(len(attn)):
        values = sorted(sim[i, j] for j in touching(i, grid_hw))
        agreement.append(values[(len(values) - 1) // 2])  # the lower of two in the middle
    return np.array(agreement) < ratio * sorted(agreement)[(len(agreement) - 1) // 2]


def touching(patch: int, grid_hw: tuple[int, int]) -> list[int]:
    height, width = grid_hw
    y, x = divmod(patch, width)
    rows = range(max(y - 1, 0), min(y + 2, height))
    columns = range(max(x - 1, 0), min(x + 2, width))
    return [r * width + c for r in rows for c in columns if (r, c) != (y, x)]


def literal_fill(values: np.ndarray, missing: np.ndarray, grid_hw: tuple[int, int]) -> np.ndarray:
    values, known = values.copy(), ~missing
    while not known.all():
        filled = {
            i: np.mean([values[j] for j in touching(i, grid_hw) if known[j]])
            for i in np.flatnonzero(~known)
            if any(known[j] for j in touching(i, grid_hw))
        }
        for i, value in filled.items():
            values[i], known[i] = value, True
    return values


PUBLISHED: dict[str, dict[str, Any]] = {
    "ts_cam": {"negatives": "keep"},
    "mctformer_form": {"negatives": "relu", "rival_weight": 0.0, "cls_layers": "last:3"},
    "clip_es_form": {
        "init": "cam",
        "negatives": "relu",
        "rival_weight": 0.0,
        "layers": "last:8",
        "box_threshold": 0.4,
    },
}
"""What docs/methods.md says about the authors' code, in our options."""

UNMOVED: dict[str, dict[str, Any]] = {
    "mctformer_form": {"layers": "last:1"},
    "clip_es_form": {"num_steps": 0},
    "ad_cam": {"num_steps": 0, "background_weight": 0.0, "artifact_ratio": 0.0},
}
"""Options with which little happens after the start."""

DEFAULT = {
    "similarity": "resource_allocation",
    "power": 2.0,
    "normalize": "sinkhorn",
    "num_steps": 2,
    "alpha": None,
    "layers": "last:1/2",
    "init": "coupled",
    "negatives": "shift",
    "rival_weight": 0.5,
    "cls_layers": (0, 3),
    "background_weight": 0.35,
    "clip_quantile": 1.0,
    "artifact_ratio": 0.65,
    "color_steps": 10,
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        *({"similarity": s} for s in ("cosine", "bhattacharyya", "overlap", "none")),
        *({"power": p} for p in (0.0, 0.5, 1.0, 3.0)),
        *({"normalize": n} for n in ("row", "column")),
        *({"num_steps": n} for n in (0, 1, 5)),
        *({"alpha": a} for a in (0.0, 0.5, 1.0)),
        {"alpha": 0.8, "num_steps": None},
        {"alpha": 0.8, "num_steps": None, "normalize": "row"},
        *({"layers": x} for x in ("all", "last:1", "last:2/3", (0, 2))),
        *({"cls_layers": x} for x in ("all", "last:1/3", (1,))),
        *({"negatives": r} for r in ("relu", "keep")),
        {"init": "cam"},
        {"init": "cam", "negatives": "relu"},
        *({"rival_weight": c} for c in (0.0, 0.9)),
        {"rival_weight": 0.3, "negatives": "relu"},
        *({"background_weight": w} for w in (0.0, 2.0)),
        *({"clip_quantile": c, "background_weight": w} for c in (0.5, 0.985) for w in (0.0, 0.35)),
        *({"artifact_ratio": r} for r in (0.0, 0.97, 1.0)),
        {"artifact_ratio": 0.97, "similarity": "overlap", "num_steps": 3},
        {"color_steps": 0},  # colours are followed later, when the maps are fused
    ],
    ids=str,
)
def test_ad_cam_equals_its_formula(change: dict[str, Any]) -> None:
    option = {**DEFAULT, **change}
    maps, attn, rows = make_maps()
    class_ids = ids((4, 0), (1, 3))
    got = run("ad_cam", maps, class_ids, **option)
    blocks: dict[Any, tuple[int, ...]] = {"all": (0, 1, 2, 3), "last:1": (3,), "last:1/2": (2, 3)}
    blocks |= {"last:2/3": (1, 2, 3), "last:1/3": (2, 3)}
    chosen = blocks.get(option["layers"], option["layers"])
    cls_layers = blocks.get(option["cls_layers"], option["cls_layers"])
    for b in range(2):
        cams = [maps.cam[b, c].numpy() for c in class_ids[b]]
        starts = [
            literal_start(
                cam,
                rows[:, b],
                option["init"],
                option["negatives"],
                cls_layers,
                (rival,),
                option["rival_weight"],
            )
            for cam, rival in zip(cams, reversed(cams), strict=True)
        ]
        mean_attn = attn[list(chosen), b].mean(axis=0)
        stray = literal_artifacts(mean_attn, maps.grid_hw, option["artifact_ratio"])
        kept = np.flatnonzero(~stray)

        def spread(
            start: np.ndarray, *, attn: np.ndarray = mean_attn, stray: Any = stray, kept: Any = kept
        ) -> np.ndarray:
            walked = np.zeros(len(stray))
            walked[kept] = literal_ad_cam(attn[np.ix_(kept, kept)], start[kept], option)
            return literal_fill(walked, stray, maps.grid_hw)

        weight = option["background_weight"]
        scaled = [np.maximum(start / start.max(), 0) for start in starts]
        for k in range(2):
            if weight:
                claimed = np.maximum(*scaled) if option["rival_weight"] else scaled[k]
                arrived = spread(scaled[k])
                total = arrived + weight * spread(1 - claimed)
                expected = np.divide(arrived, total, where=total > 0, out=np.zeros_like(total))
            else:
                expected = spread(starts[k])
            expected = np.minimum(expected, np.quantile(expected, option["clip_quantile"]))
            np.testing.assert_allclose(got[b, k].reshape(-1), expected, rtol=1e-9, atol=1e-12)


def test_background_that_arrives_lowers_a_map_and_more_so_with_a_larger_weight() -> None:
    maps, _, _ = make_maps()
    class_ids = ids((4, 0), (1, 3))
    light, heavy = (
        run("ad_cam", maps, class_ids, background_weight=weight) for weight in (0.1, 1.0)
    )
    assert light.min() >= 0
    assert light.max() <= 1
    assert (heavy <= light).all()
    assert (heavy < light).any()


def test_a_large_object_is_as_bright_as_a_small_one_where_no_background_arrives() -> None:
    """Blocks of 4 and 16 patches that each start from one lit patch, and background beside them."""
    sizes = (4, 16, 80)
    attn = torch.block_diag(*(torch.full((n, n), 1 / n, dtype=torch.float64) for n in sizes))
    cam = torch.zeros(2, 100, dtype=torch.float64)
    cam[0, 0] = cam[1, 4] = 1
    maps = TokenMaps(
        logits=torch.zeros(1, 2),
        cam=cam.reshape(1, 2, 10, 10),
        grid_hw=(10, 10),
        depth=1,
        attn_patch2patch={(0,): attn[None]},
    )
    options = {"init": "cam", "layers": (0,), "artifact_ratio": 0.0, "rival_weight": 0.0}
    got = run("ad_cam", maps, ids((0, 1)), **options, background_weight=0.5).reshape(2, 100)
    small, large = 1 / (1 + 0.5 * 3), 1 / (1 + 0.5 * 15)  # one lit patch for 3 and 15 others
    np.testing.assert_allclose(got[0], [small] * 4 + [0] * 96, rtol=1e-9)
    np.testing.assert_allclose(got[1], [0] * 4 + [large] * 16 + [0] * 80, rtol=1e-9)


def test_a_class_without_activation_gets_an_empty_map() -> None:
    maps, _, _ = make_maps()
    maps.cam[0, 2] = 1.0  # a constant map has nothing above its minimum
    got = run("ad_cam", maps, ids((2, 0), (1, 3)))
    assert not got[0, 0].any()
    assert got[0, 1].any()


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_the_quick_form_walks_as_many_steps_as_asked_for(num_steps: int) -> None:
    """P = A D^-1 A^T with A the attention scaled to row sums 1 and D its column sums."""
    maps, attn, rows = make_maps()
    options = {"walk": "two_hop", "two_hop_steps": num_steps, "background_weight": 0.0}
    got = run("ad_cam", maps, ids((3,), (0,)), **options)
    for b, c in enumerate((3, 0)):
        start = literal_start(maps.cam[b, c].numpy(), rows[:, b], "coupled", "shift", (2, 3))
        a = attn[2:, b].mean(axis=0)
        a = a / a.sum(axis=1, keepdims=True)
        step = a @ np.diag(1 / a.sum(axis=0)) @ a.T
        expected = np.linalg.matrix_power(step, num_steps) @ start
        np.testing.assert_allclose(got[b, 0].reshape(-1), expected, rtol=1e-9)


def test_ad_cam_defaults_are_the_documented_ones() -> None:
    maps, _, _ = make_maps()
    written_out = {**DEFAULT, "cls_layers": "last:1/3"}
    class_ids = ids((2,), (2,))
    assert np.array_equal(
        run("ad_cam", maps, class_ids), run("ad_cam", maps, class_ids, **written_out)
    )


def test_patches_that_attend_to_each_other_alone_do_not_outshine_the_object() -> None:
    """40 patches of an object, 58 of background, 2 that keep a strong start to themselves."""
    sizes = (40, 58, 2)
    attn = torch.block_diag(*(torch.full((n, n), 1 / n, dtype=torch.float64) for n in sizes))
    values = torch.tensor([2.0, 0.0, 9.0], dtype=torch.float64)
    cam = values.repeat_interleave(torch.tensor(sizes))
    maps = TokenMaps(
        logits=torch.zeros(1, 1),
        cam=cam.reshape(1, 1, 10, 10),
        grid_hw=(10, 10),
        depth=1,
        attn_patch2patch={(0,): attn[None]},
    )
    options = {"init": "cam", "layers": (0,), "artifact_ratio": 0.0, "background_weight": 0.0}
    kept = run("ad_cam", maps, ids((0,)), **options, clip_quantile=1.0).reshape(-1)
    cut = run("ad_cam", maps, ids((0,)), **options, clip_quantile=0.985).reshape(-1)
    np.testing.assert_allclose(kept, cam.numpy(), rtol=1e-9)
    np.testing.assert_allclose(cut, np.minimum(cam.numpy(), 2 + 0.515 * 7), rtol=1e-9)
    np.testing.assert_allclose(
        run("ad_cam", maps, ids((0,)), **options, clip_quantile=0.95).reshape(-1),
        np.minimum(cam.numpy(), 2),
        rtol=1e-9,
    )


@pytest.mark.parametrize("negatives", ["shift", "relu"])
@pytest.mark.parametrize("layers", ["all", "last:1", (0, 2)])
@pytest.mark.parametrize(
    ("name", "init"), [("transcam_form", "cam"), ("mctformer_form", "coupled")]
)
def test_one_step_forms(name: str, init: str, layers: Any, negatives: str) -> None:
    """TransCAM: A cam⁺. MCTformer: A (cam⁺ ∘ a_cls), attention of all blocks."""
    maps, attn, rows = make_maps()
    got = run(name, maps, ids((3,), (0,)), layers=layers, negatives=negatives)
    chosen = {"all": (0, 1, 2, 3), "last:1": (3,)}.get(layers, layers)
    for b, c in enumerate((3, 0)):
        start = literal_start(maps.cam[b, c].numpy(), rows[:, b], init, negatives, (0, 1, 2, 3))
        expected = attn[list(chosen), b].mean(axis=0) @ start
        np.testing.assert_allclose(got[b, 0].reshape(-1), expected, rtol=1e-9)
    if layers == "all" and negatives == "shift":
        assert np.array_equal(got, run(name, maps, ids((3,), (0,))))


@pytest.mark.parametrize("threshold", [None, 0.4])
@pytest.mark.parametrize(("num_steps", "negatives"), [(1, "shift"), (2, "shift"), (2, "relu")])
def test_clip_es(threshold: float | None, num_steps: int, negatives: str) -> None:
    """T² with the columns outside the box of the start map zeroed, times the start."""
    maps, attn, rows = make_maps()
    options = {"num_steps": num_steps, "box_threshold": threshold, "negatives": negatives}
    got = run("clip_es_form", maps, ids((3,), (0,)), **options)
    for b, c in enumerate((3, 0)):
        start = literal_start(
            maps.cam[b, c].numpy(), rows[:, b], "coupled", negatives, (0, 1, 2, 3)
        )
        powered = np.linalg.matrix_power(
            literal_sinkhorn(attn[1:, b].mean(axis=0)), num_steps
        )  # last 2/3 of four blocks, rounded up
        if threshold is not None:
            box = box_mask(torch.from_numpy(start.reshape(GRID))[None], threshold)[0].numpy()
            assert 0 < box.sum() < box.size
            powered = powered * box.reshape(1, -1)
        np.testing.assert_allclose(got[b, 0].reshape(-1), powered @ start, rtol=1e-9, atol=1e-15)


def literal_boxes(start: np.ndarray, threshold: float) -> np.ndarray:
    """Boxes of the regions above a share of the range, by OpenCV, as CLIP-ES finds them.

    Unlike there, the last row and column may be part of a box.
    """
    strong = (start > threshold * start.max()).astype(np.uint8)
    contours, _ = cv2.findContours(strong, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    inside = np.zeros(start.shape)
    for contour in contours:
        x, y, width, height = cv2.boundingRect(contour)
        inside[y : y + height, x : x + width] = 1
    return inside


def test_mctformer_at_its_published_settings() -> None:
    """models.py and engine.py of xulianuwa/MCTformer, with --layer-index 3.

    ReLU of the patch maps times the class token's attention summed over the last three blocks,
    then once the patch attention summed over all blocks; the sums differ from our means by 3 · L.
    """
    maps, attn, rows = make_maps()
    got = run("mctformer_form", maps, ids((3, 1), (0, 2)), **PUBLISHED["mctformer_form"])
    for b, chosen in enumerate(((3, 1), (0, 2))):
        for k, c in enumerate(chosen):
            fused = rows[-3:, b].sum(axis=0) * np.maximum(maps.cam[b, c].numpy().reshape(-1), 0)
            expected = attn[:, b].sum(axis=0) @ fused
            np.testing.assert_allclose(3 * DEPTH * got[b, k].reshape(-1), expected, rtol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_clip_es_at_its_published_settings(offset: float) -> None:
    """generate_cams_voc12.py of linyq2117/CLIP-ES on our class maps in place of Grad-CAM's.

    ReLU, scaled to [0, 1]; the last eight blocks; three rounds of columns, then rows; (T + Tᵀ) / 2;
    T²; its columns outside the boxes of 0.4 of the maximum zeroed. With an offset all of a map is
    positive, so that the scaling takes a minimum away.
    """
    rng = np.random.default_rng(3)
    height, width = 6, 7
    attn = np.exp(2 * rng.standard_normal((12, 43, 43)))
    attn /= attn.sum(axis=-1, keepdims=True)
    cam = 0.2 * rng.standard_normal((height, width)) + offset
    cam[1:3, 1:4] += 2  # two objects
    cam[4, 5:] += 1.5
    patches = attn[:, 1:, 1:]
    maps = TokenMaps(
        logits=torch.zeros(1, 1, dtype=torch.float64),
        cam=torch.from_numpy(cam)[None, None],
        grid_hw=(height, width),
        depth=12,
        attn_patch2patch={tuple(range(4, 12)): torch.from_numpy(patches[-8:].mean(axis=0))[None]},
    )
    got = run("clip_es_form", maps, ids((0,)), **PUBLISHED["clip_es_form"])[0, 0]
    start = np.maximum(cam, 0)
    start = (start - start.min()) / (start.max() - start.min())
    inside = literal_boxes(start, 0.4)
    assert 0 < inside.sum() < inside.size
    matrix = literal_sinkhorn(patches[-8:].mean(axis=0))
    expected = (matrix @ matrix * inside.reshape(1, -1)) @ start.reshape(-1)
    scale = np.maximum(cam, 0).max() - np.maximum(cam, 0).min()
    np.testing.assert_allclose(got.reshape(-1), scale * expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["mctformer_form", "clip_es_form", "ad_cam"])
@pytest.mark.parametrize("cls_layers", ["all", "last:1/2", (1, 2)])
def test_every_coupled_start_chooses_its_blocks(name: str, cls_layers: Any) -> None:
    maps, attn, rows = make_maps()
    got = run(name, maps, ids((3,), (0,)), cls_layers=cls_layers, **UNMOVED[name])
    chosen = {"all": (0, 1, 2, 3), "last:1/2": (2, 3)}.get(cls_layers, cls_layers)
    for b, c in enumerate((3, 0)):
        start = literal_start(maps.cam[b, c].numpy(), rows[:, b], "coupled", "shift", chosen)
        expected = start if name != "mctformer_form" else attn[3, b] @ start
        np.testing.assert_allclose(got[b, 0].reshape(-1), expected, rtol=1e-9)


def test_the_config_has_the_published_settings() -> None:
    rows = load_settings("voc_animals/adcam_deit-tiny_10e_voc-animals.py").compare.rows
    found = {row.method: row.options for row in rows if row.name.endswith(", published")}
    assert found == PUBLISHED


def test_box_mask_exactly() -> None:
    strong = torch.tensor(
        [
            [0.9, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.5, 0.0, 0.0, 0.0, 1.0],
            [0.0, 0.0, 0.4, 0.0, 0.0, 0.7],
            [0.0, 0.5, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ]
    )
    # 0.4 is not above 0.4 of the maximum, so (3, 1) stands alone; diagonal neighbours join.
    expected = torch.zeros(5, 6)
    expected[0:2, 0:2] = 1
    expected[1:3, 5] = 1
    expected[3, 1] = 1
    assert torch.equal(box_mask(strong[None], 0.4)[0], expected)
    expected[0:4, 0:3] = 1  # now all four hang together
    assert torch.equal(box_mask(strong[None], 0.39)[0], expected)


def test_box_mask_of_several_maps_and_of_nothing() -> None:
    maps = torch.zeros(2, 3, 4, 5)
    maps[1, 2, 3, 1] = 2.0
    boxes = box_mask(maps, 0.0)
    assert boxes.sum() == 1
    assert boxes[1, 2, 3, 1] == 1


@pytest.mark.parametrize("negatives", ["keep", "relu"])
@pytest.mark.parametrize("grid_hw", [(4, 4), (3, 5), (5, 2)])
@torch.no_grad()
def test_ts_cam_of_a_deit_equals_the_papers_formula(
    grid_hw: tuple[int, int], negatives: str
) -> None:
    """Semantic map ∘ class-token row, heads averaged, blocks summed, from unfused attention."""
    torch.manual_seed(0)
    network = TokenCAM(
        "deit_tiny_patch16_224",
        num_fg_classes=CLASSES,
        img_size=32,
        backbone_kwargs={"patch_size": 8, "embed_dim": 24, "depth": DEPTH, "num_heads": 3},
    ).eval()
    for block in network.backbone.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.5)
    plain = timm.create_model(
        "deit_tiny_patch16_224",
        img_size=32,
        num_classes=0,
        dynamic_img_size=True,
        patch_size=8,
        embed_dim=24,
        depth=DEPTH,
        num_heads=3,
    ).eval()
    plain.load_state_dict(network.backbone.state_dict())
    rows = []
    for block in plain.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _m, _a, out: rows.append(out[:, :, 0]))
    inputs = torch.randn(2, 3, 8 * grid_hw[0], 8 * grid_hw[1])
    tokens = plain.forward_features(inputs)
    num_patches = grid_hw[0] * grid_hw[1]
    grid = torch.stack([tokens[:, 1 + p] for p in range(num_patches)], dim=-1)
    semantic = nn.functional.conv2d(
        grid.reshape(2, 24, *grid_hw), network.head.weight, network.head.bias, padding=1
    )
    attention = sum(row[:, :, 1:].sum(dim=1) / 3 for row in rows).reshape(2, 1, *grid_hw)
    expected = attention * (semantic.clamp_min(0) if negatives == "relu" else semantic)

    everything = torch.arange(CLASSES).expand(2, -1)
    got = build_method("ts_cam", negatives=negatives, rival_weight=0.0)(
        network.token_maps(inputs), everything
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_cam_is_the_rectified_class_map() -> None:
    maps, _, _ = make_maps()
    got = run("cam", maps, ids((4, 0), (1, 1)), negatives="relu", rival_weight=0.0)
    assert np.array_equal(got[0, 0], np.maximum(maps.cam[0, 4].numpy(), 0))
    assert np.array_equal(got[1, 0], np.maximum(maps.cam[1, 1].numpy(), 0))
    shifted = run("cam", maps, ids((4,), (1,)))[0, 0]
    assert np.array_equal(shifted, maps.cam[0, 4].numpy() - maps.cam[0, 4].numpy().min())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_classes_compete_as_the_formula_says(share: float) -> None:
    maps, _, rows = make_maps()
    chosen = (3, 0, 4)
    got = run("cam", maps, ids(chosen, chosen), rival_weight=share)
    for b in range(2):
        cams = [maps.cam[b, c].numpy() for c in chosen]
        for k in range(3):
            rivals = tuple(cam for j, cam in enumerate(cams) if j != k)
            expected = literal_start(cams[k], rows[:, b], "cam", "shift", (0,), rivals, share)
            np.testing.assert_allclose(got[b, k].reshape(-1), expected, rtol=1e-12, atol=1e-15)


def test_competition_spares_the_peak_and_what_no_other_class_claims() -> None:
    cam = torch.tensor([[[[4.0, 2.0, 0.0, 1.0]], [[1.0, 1.0, 1.0, 0.0]]]])
    got = subtract_rivals(cam, ids((7, 3)), weight=0.5)
    # Each over its maximum: (1, ½, 0, ¼) and (1, 1, 1, 0); minus half of the other.
    assert got.tolist() == [[[[2.0, 0.0, 0.0, 1.0]], [[0.5, 0.75, 1.0, 0.0]]]]
    # A class is no rival of itself, and a map of zeros stays one and takes nothing.
    again = subtract_rivals(cam[:, [0, 0, 1]], ids((7, 7, 3)), weight=0.5)
    assert torch.equal(again, got[:, [0, 0, 1]])
    empty = torch.cat([cam[:, :1], torch.zeros(1, 1, 1, 4)], dim=1)
    assert torch.equal(subtract_rivals(empty, ids((7, 3)), weight=0.5), empty)


def test_competition_does_not_depend_on_the_scale_of_a_class() -> None:
    torch.manual_seed(0)
    cam = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    factors = torch.tensor([1.0, 100.0, 0.01], dtype=torch.float64)[:, None, None]
    class_ids = ids((0, 1, 2), (4, 2, 1))
    torch.testing.assert_close(
        subtract_rivals(cam * factors, class_ids, weight=0.5),
        subtract_rivals(cam, class_ids, weight=0.5) * factors,
    )


@pytest.mark.parametrize("name", FROM_CLASS_MAPS)
def test_classes_come_in_the_order_asked_and_independent_of_each_other(name: str) -> None:
    maps, _, _ = make_maps()
    alone = [run(name, maps, ids((c,), (c,))) for c in range(CLASSES)]
    got = run(name, maps, ids((4, 0, 2, 0), (1, 1, 3, 4)), rival_weight=0.0)
    assert got.shape == (2, 4, *GRID)
    for b, chosen in enumerate(((4, 0, 2, 0), (1, 1, 3, 4))):
        for k, c in enumerate(chosen):
            np.testing.assert_allclose(got[b, k], alone[c][b, 0], rtol=1e-12)


@pytest.mark.parametrize("name", FROM_CLASS_MAPS)
def test_no_class_is_no_map(name: str) -> None:
    maps, _, _ = make_maps()
    assert run(name, maps, torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, *GRID)


@pytest.mark.parametrize("name", FROM_CLASS_MAPS)
@pytest.mark.parametrize("class_ids", [((5,), (0,)), ((0,), (-1,))])
def test_classes_out_of_range(name: str, class_ids: tuple[tuple[int, ...], ...]) -> None:
    maps, _, _ = make_maps()
    with pytest.raises(ValueError, match=r"0\.\.4"):
        run(name, maps, ids(*class_ids))


@pytest.mark.parametrize("class_ids", [torch.tensor([0, 1]), torch.zeros(3, 1, dtype=torch.int64)])
def test_class_ids_of_another_shape(class_ids: Tensor) -> None:
    maps, _, _ = make_maps()
    with pytest.raises(ValueError, match=r"class_ids must be \(2, K\)"):
        run("cam", maps, class_ids)


def test_a_network_with_a_token_for_each_class_has_its_row_of_attention() -> None:
    maps, _, _ = make_maps()
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(2, DEPTH, CLASSES, 15, dtype=torch.float64, generator=generator)
    maps = dataclasses.replace(maps, attn_classes2patch=rows)
    class_ids = ids((4, 0), (1, 3))
    got = run("ts_cam", maps, class_ids, negatives="keep")
    for b, chosen in enumerate(class_ids.tolist()):
        for k, c in enumerate(chosen):
            expected = maps.cam[b, c] * rows[b, :, c].sum(dim=0).reshape(GRID)
            np.testing.assert_allclose(got[b, k], expected.numpy(), rtol=1e-12)


@pytest.mark.parametrize("name", ["ts_cam", "mctformer_form", "clip_es_form", "ad_cam"])
def test_models_without_a_class_token_are_told_what_works(name: str) -> None:
    maps, _, _ = make_maps(cls_token=False)
    with pytest.raises(
        ValueError, match=rf"{METHODS[name].__name__} needs a class token.*init='cam'"
    ):
        run(name, maps, ids((0,), (1,)))


@pytest.mark.parametrize(
    ("name", "options"), [("cam", {}), ("transcam_form", {}), ("ad_cam", {"init": "cam"})]
)
def test_what_works_without_a_class_token(name: str, options: dict[str, Any]) -> None:
    with_token, without_token = make_maps()[0], make_maps(cls_token=False)[0]
    class_ids = ids((0,), (1,))
    got = run(name, without_token, class_ids, **options)
    assert np.array_equal(got, run(name, with_token, class_ids, **options))
    assert got.max() > 0


@pytest.mark.parametrize("name", FROM_CLASS_MAPS)
def test_layer_sets_are_what_is_read(name: str) -> None:
    """With exactly its layer sets a method runs; without them it says what is missing."""
    maps, _, _ = make_maps()
    method = build_method(name)
    needed = method.layer_sets(DEPTH)
    fields = {f: getattr(maps, f) for f in ("logits", "cam", "grid_hw", "depth", "attn_cls2patch")}
    attention = {layers: maps.attn_patch2patch[layers] for layers in needed}
    method(TokenMaps(**fields, attn_patch2patch=attention), ids((0,), (1,)))
    if needed:
        with pytest.raises(ValueError, match=r"was not captured.*layer_sets"):
            method(TokenMaps(**fields), ids((0,), (1,)))
    else:
        method(TokenMaps(**fields), ids((0,), (1,)))


@pytest.mark.parametrize("name", FROM_CLASS_MAPS)
def test_maps_do_not_swap_height_and_width(name: str) -> None:
    """Transposing image, class maps and attention transposes the result."""
    maps, _, _ = make_maps()
    order = torch.arange(15).reshape(GRID).T.reshape(-1)
    turned = TokenMaps(
        logits=maps.logits,
        cam=maps.cam.transpose(2, 3),
        grid_hw=(5, 3),
        depth=DEPTH,
        attn_cls2patch=maps.attn_cls2patch[:, :, order],
        attn_patch2patch={
            layers: attn[:, order][:, :, order] for layers, attn in maps.attn_patch2patch.items()
        },
    )
    class_ids = ids((0, 2), (1, 4))
    np.testing.assert_allclose(
        run(name, turned, class_ids),
        run(name, maps, class_ids).transpose(0, 1, 3, 2),
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adcam", {}, r"unknown method 'adcam'; did you mean 'ad_cam'\? There are 'ad_cam', 'c"),
        ("clip_es", {}, r"unknown method 'clip_es'; did you mean 'clip_es_form'"),
        ("coupled", {}, r"unknown method 'coupled'.*'mctformer_form'"),
        ("cam", {"power": 2}, r"cam: there is no key 'power'; there are 'negatives' and 'riv"),
        (
            "ad_cam",
            {"steps": 2},
            r"ad_cam: there is no key 'steps'; did you mean 'num_steps'\? There are ",
        ),
        ("ad_cam", {"compete": 0.5}, r"no key 'compete'.*'rival_weight'"),
        ("ad_cam", {"rival_wieght": 0.5}, r"no key 'rival_wieght'; did you mean 'rival_weight"),
    ],
)
def test_unknown_names(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AdcamError, match=message):
        build_method(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ad_cam", {"clip_quantile": "abc"}, "ad_cam.clip_quantile must be a number"),
        ("ad_cam", {"num_steps": 2.5}, "num_steps must be a whole number.*, got 2.5"),
        ("ad_cam", {"alpha": True}, "alpha must be a number.*, got True"),
        ("ad_cam", {"layers": 2.5}, "layers must be text or a list of whole numbers, got 2.5"),
        ("ad_cam", {"layers": ["x"]}, "layers .*got .'x'"),
        ("ad_cam", {"layers": "first:2"}, "layers must be 'all', 'last:N'.*got 'first:2'"),
        ("ad_cam", {"cls_layers": "last:3/2"}, "cls_layers must be"),
        ("mctformer_form", {"cls_layers": "first:3"}, "cls_layers must be"),
        ("ad_cam", {"similarity": "cosin"}, "similarity must be .*did you mean 'cosine'"),
        ("ad_cam", {"normalize": "rows"}, "normalize must be .*did you mean 'row'"),
        ("ad_cam", {"power": -1}, "power must be at least 0, got -1"),
        ("ad_cam", {"power": float("nan")}, "power must be a number, got nan"),
        ("ad_cam", {"num_steps": -1}, "num_steps must be at least 0, got -1"),
        ("ad_cam", {"num_steps": None}, "num_steps=None .*give alpha"),
        ("ad_cam", {"num_steps": None, "alpha": 1}, "alpha must be below 1 .*, got 1"),
        ("ad_cam", {"alpha": 1.5}, "alpha must be at least 0 and at most 1, got 1.5"),
        ("ad_cam", {"init": "grad"}, "init must be 'coupled' or 'cam', got 'grad'"),
        ("ad_cam", {"clip_quantile": 0.0}, "clip_quantile must be above 0 and at most 1, got 0.0"),
        ("cam", {"negatives": "none"}, "negatives must be 'shift', 'relu' or 'keep'"),
        ("ts_cam", {"rival_weight": 1.0}, "rival_weight must be at least 0 and below 1, got 1.0"),
        ("transcam_form", {"rival_weight": "1/2"}, "rival_weight .*must be a number, got '1/2'"),
        ("clip_es_form", {"box_threshold": 1}, "box_threshold must be at least 0 and below 1"),
        ("clip_es_form", {"box_threshold": -0.1}, "box_threshold must be at least 0 .* got -0.1"),
    ],
)
def test_options_are_checked_when_a_method_is_built(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdcamError, match=message):
        build_method(name, **options)


def test_lists_of_blocks_become_tuples() -> None:
    assert build_method("ad_cam", layers=[0, 2]) == build_method("ad_cam", layers=(0, 2))
    assert build_method("ad_cam", layers=3) == build_method("ad_cam", layers=(3,))


@dataclasses.dataclass(frozen=True)
class SquaredCAM:
    """A method as somebody else would write it."""

    gain: float = 1.0

    def layer_sets(self, depth: int) -> tuple[tuple[int, ...], ...]:
        return ()

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        return self.gain * cams.CAM()(maps, class_ids) ** 2


def test_a_method_from_outside_is_used_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cams, "_METHODS", dict(cams._METHODS))
    monkeypatch.setattr(cams, "METHODS", cams._METHODS)
    adcam.register_method("squared_cam", SquaredCAM)
    maps, _, _ = make_maps()
    expected = 3 * run("cam", maps, ids((0,), (1,))) ** 2
    assert np.array_equal(run("squared_cam", maps, ids((0,), (1,)), gain=3.0), expected)
    with pytest.raises(AdcamError, match=r"squared_cam\.gain must be a number, got 'big'"):
        build_method("squared_cam", gain="big")
    with pytest.raises(AdcamError, match="there is a method 'squared_cam' already"):
        adcam.register_method("squared_cam", SquaredCAM)
    with pytest.raises(AdcamError, match="'half' must be a dataclass with layer_sets"):
        adcam.register_method("half", dict)


@pytest.mark.parametrize(
    "options",
    [
        {"init": "grad"},
        {"negatives": "abs"},
        {"similarity": "dot"},
        {"layers": "last:9"},
        {"rival_weight": 1.0},
        {"rival_weight": -0.1},
        {"clip_quantile": 0.0},
        {"clip_quantile": 1.1},
    ],
)
def test_illegal_values(options: dict[str, Any]) -> None:
    maps, _, _ = make_maps()
    with pytest.raises(ValueError, match=next(iter(options))):
        run("ad_cam", maps, ids((0,), (1,)), **options)


def draw_maps(cam: Tensor, attn: Tensor, grid_hw: tuple[int, int]) -> TokenMaps:
    """Token maps of one image and one class (N,) with the attention (N, N) of the last half."""
    return TokenMaps(
        logits=torch.zeros(1, 1),
        cam=cam.view(1, 1, *grid_hw),
        grid_hw=grid_hw,
        depth=DEPTH,
        attn_patch2patch={(2, 3): attn[None]},
    )


def test_ad_cam_takes_artifacts_out_and_fills_them_in() -> None:
    clique = [9, 22, 40, 51]  # none touches another on a grid of 8 × 8
    ys, xs = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    place = torch.stack([ys, xs], dim=-1).view(-1, 2).float()
    attn = (-torch.cdist(place, place).square() / 8).exp()
    attn[clique] = 0
    attn[:, clique] = 0
    attn[torch.tensor(clique)[:, None], torch.tensor(clique)] = 1
    cam = torch.zeros(64)
    cam[[18, 19, 26, 27]] = 0.5  # the object, weakly lit
    cam[clique] = 1.0
    maps = draw_maps(cam, attn, (8, 8))
    options: dict[str, Any] = {"init": "cam"}
    plain = build_method("ad_cam", **options, artifact_ratio=0.0)(maps, ids((0,))).flatten()
    assert plain.topk(4).indices.sort().values.tolist() == clique
    cleaned = build_method("ad_cam", **options)(maps, ids((0,))).flatten()
    assert set(cleaned.topk(4).indices.tolist()) == {18, 19, 26, 27}


def test_without_artifacts_nothing_changes() -> None:
    cam = torch.rand(12, generator=torch.Generator().manual_seed(0))
    maps = draw_maps(cam, torch.ones(12, 12), (3, 4))  # all patches look alike at everything
    kept = [
        build_method("ad_cam", init="cam", artifact_ratio=ratio)(maps, ids((0,)))
        for ratio in (0.0, 1.0)
    ]
    assert torch.equal(*kept)


def test_each_image_of_a_batch_loses_its_own_artifacts() -> None:
    maps, _, _ = make_maps(batch=3)
    class_ids = ids((0, 1), (2, 3), (1, 4))
    method = build_method("ad_cam", artifact_ratio=0.95)
    together = method(maps, class_ids)
    for i in range(3):
        alone = TokenMaps(
            logits=maps.logits[i : i + 1],
            cam=maps.cam[i : i + 1],
            grid_hw=maps.grid_hw,
            depth=maps.depth,
            attn_cls2patch=maps.attn_cls2patch[i : i + 1],
            attn_patch2patch={k: v[i : i + 1] for k, v in maps.attn_patch2patch.items()},
        )
        torch.testing.assert_close(together[i : i + 1], method(alone, class_ids[i : i + 1]))


@pytest.mark.parametrize("option", [{"artifact_ratio": 1.5}, {"color_steps": -1}])
def test_ad_cam_refuses_ratios_and_steps_out_of_range(option: dict[str, float]) -> None:
    with pytest.raises(AdcamError, match=next(iter(option))):
        build_method("ad_cam", **option)
