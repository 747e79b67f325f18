"""The labeler: from one image in any form to maps, mask and scores."""

from __future__ import annotations

import argparse
import base64
import copy
import io
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from adcam import PseudoLabeler
from adcam.cli.labeler import read_views
from adcam.data.images import ImageError, fit_pixels, read_image
from adcam.data.png import read_mask
from adcam.errors import AdcamError
from adcam.labeling import labeler as labeler_module
from adcam.labeling import mask_maker
from adcam.labeling.labeler import convert_image, hash_network, place_masks
from adcam.labeling.labeler_options import (
    LabelerOptions,
    options_from_settings,
    refined_options,
)
from adcam.labeling.mask_maker import DeviceMaps, MaskMaker, resize_maps
from adcam.masks.background import DEFAULT_RULE, BackgroundRule, find_threshold, parse_rule
from adcam.models.classifier_file import load_classifier, save_classifier
from adcam.options import from_section
from adcam.settings import CamSettings, MaskSettings, Settings, TestViews
from adcam.structures import ClassMaps

SMALL = TestViews(scales=(64,))


@pytest.fixture(scope="module")
def img() -> np.ndarray:
    smooth = np.random.default_rng(3).integers(0, 255, (5, 9, 3), dtype=np.uint8)
    return np.array(Image.fromarray(smooth).resize((70, 44), Image.Resampling.BICUBIC))


def load(path: Path, **options: object) -> PseudoLabeler:
    return PseudoLabeler.from_checkpoint(path, device="cpu", **{"views": SMALL, **options})


def find_level(score_maps: np.ndarray) -> float:
    return find_threshold(score_maps, rule=DEFAULT_RULE.rule, threshold=DEFAULT_RULE.value)


def test_views_of_the_file_are_the_default(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """A classifier that learnt from small images is not shown large ones unless asked to."""
    found = load_classifier(tiny_checkpoint)
    path, views = tmp_path / "c.safetensors", TestViews((40, 64), flip=True)
    save_classifier(
        path, found.network, found.network_options, found.class_set, {}, views=asdict(views)
    )
    assert PseudoLabeler.from_checkpoint(path, device="cpu").map_maker.views == views
    assert load(path).map_maker.views == SMALL
    named = argparse.Namespace(scales=None, flip=None, keep_ratio=None, checkpoint=path)
    assert read_views(named) == views
    named.scales, named.flip = [32], False
    assert read_views(named) == TestViews((32,))
    assert read_views(named, replace(SMALL, keep_ratio=False)) == replace(
        SMALL, scales=(32,), keep_ratio=False
    )
    named.checkpoint, named.scales = None, None
    assert read_views(named) == TestViews()


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"scales": [10**9]}, "images of 1000000000 pixels, above 4096. Name others: --scales"),
        ({"scales": []}, "at least one side"),
        ({"scales": [64], "shear": 2}, "shear"),
        ({"flip": True}, "scales"),
        ([96], "mapping"),
    ],
)
def test_damaged_views_of_a_file(views: Any, message: str) -> None:
    with pytest.raises(AdcamError, match=rf"^c\.safetensors: .*{message}"):
        TestViews.from_description(views, "c.safetensors")


def test_views_given_stand_in_for_damaged_ones(tmp_path: Path, tiny_checkpoint: Path) -> None:
    found = load_classifier(tiny_checkpoint)
    path, views = tmp_path / "c.safetensors", {"scales": [10**9], "flip": True}
    save_classifier(path, found.network, found.network_options, found.class_set, {}, views=views)
    with pytest.raises(AdcamError, match="above 4096"):
        PseudoLabeler.from_checkpoint(path, device="cpu")
    assert load(path).map_maker.views == SMALL
    named = argparse.Namespace(scales=[48], flip=None, keep_ratio=None, checkpoint=path)
    assert read_views(named) == TestViews((48,), flip=True)


def test_given_labels_make_their_maps_and_mask(tiny_checkpoint: Path, img: np.ndarray) -> None:
    label = load(tiny_checkpoint)(img, labels=["horse", "cat"])
    assert list(label.maps) == ["cat", "horse"]
    assert all(m.shape == (44, 70) and m.dtype == np.float32 for m in label.maps.values())
    assert label.mask.shape == (44, 70) and label.mask.dtype == np.uint8
    assert list(label.scores) == ["cat", "dog", "horse"]
    assert all(0 < score < 1 for score in label.scores.values())
    # VOC's mask values, decided by the threshold alone.
    stacked = np.stack(list(label.maps.values()))
    level = find_level(stacked)
    expected = np.where(stacked.max(0) > np.float32(level), np.array([8, 13])[stacked.argmax(0)], 0)
    assert label.pseudo_mask.threshold == level
    np.testing.assert_array_equal(label.mask, expected)
    assert len(np.unique(label.mask)) > 1
    assert label.pseudo_mask.chosen_on == DEFAULT_RULE.chosen_on


def test_predicted_labels_obey_the_threshold(tiny_checkpoint: Path, img: np.ndarray) -> None:
    scores = load(tiny_checkpoint)(img).scores
    ranked = sorted(scores, key=lambda name: scores[name])
    between = (scores[ranked[0]] + scores[ranked[1]]) / 2
    assert set(load(tiny_checkpoint, label_threshold=between)(img).maps) == set(ranked[1:])
    nothing = load(tiny_checkpoint, label_threshold=1.0)(img)
    assert nothing.maps == {} and not nothing.mask.any()


@pytest.mark.parametrize("options", [{}, {"crf": "toco"}, {"two_threshold": (0.2, 0.6)}])
def test_no_class_is_all_background(
    tiny_checkpoint: Path, img: np.ndarray, options: dict[str, object]
) -> None:
    label = load(tiny_checkpoint, **options)(img, labels=[])
    assert label.maps == {} and label.mask.shape == (44, 70) and not label.mask.any()


def test_an_unknown_class_is_refused_with_the_legal_ones(
    tiny_checkpoint: Path, img: np.ndarray
) -> None:
    with pytest.raises(ValueError, match=r"'wolf'.*cat, dog, horse"):
        load(tiny_checkpoint)(img, labels=["dog", "wolf"])


@pytest.mark.parametrize("labels", [{"cat": 0, "dog": 1}, 0, float("nan")])
def test_labels_that_are_no_list_are_refused(
    tiny_checkpoint: Path, img: np.ndarray, labels: Any
) -> None:
    with pytest.raises(AdcamError, match="labels must be a list of class names, got"):
        load(tiny_checkpoint)(img, labels)


@pytest.mark.parametrize(
    "labels", [{"cat", "dog"}, {"cat": 0, "dog": 1}, "cat", (["cat"] for _ in range(2))]
)
def test_labels_of_a_list_are_a_list(tiny_checkpoint: Path, img: np.ndarray, labels: Any) -> None:
    with pytest.raises(AdcamError, match="a list of 2 images needs a list with the labels of each"):
        load(tiny_checkpoint)([img, img], labels)


def test_a_label_keeps_its_picture_if_the_array_is_used_again(
    tiny_checkpoint: Path, img: np.ndarray
) -> None:
    frame = img.copy()
    label = load(tiny_checkpoint)(frame, ["dog"])
    frame[:] = 0
    np.testing.assert_array_equal(label.img, img)


def test_a_network_in_training_mode_is_refused(tiny_checkpoint: Path, img: np.ndarray) -> None:
    labeler = load(tiny_checkpoint)
    assert isinstance(labeler.network, torch.nn.Module)
    next(labeler.network.children()).train()
    with pytest.raises(AdcamError, match=r"in training mode.*eval\(\)"):
        labeler(img, ["dog"])

    class Frozen(torch.nn.Module):
        def train(self, mode: bool = True) -> Frozen:
            return self

    labeler.network.eval().add_module("frozen", Frozen())
    assert labeler(img, ["dog"]).mask.shape == img.shape[:2]


def test_every_form_of_an_image_gives_the_same(
    tiny_checkpoint: Path, img: np.ndarray, tmp_path: Path
) -> None:
    labeler = load(tiny_checkpoint)
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(img)))
    exif = turned.getexif()
    exif[0x0112] = 6  # turn by 270° to see it upright
    turned.info["exif"] = exif.tobytes()
    turned.save(tmp_path / "x.png", exif=exif)
    expected = labeler(img, labels=["dog"]).maps["dog"]
    forms = [tmp_path / "x.png", str(tmp_path / "x.png"), Image.open(tmp_path / "x.png")]
    for form in forms:
        np.testing.assert_array_equal(labeler(form, labels="dog").maps["dog"], expected)


def test_a_transparent_pillow_image_reads_as_its_file(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 255, (6, 9, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "x.png")
    from_pillow = convert_image(Image.fromarray(rgba))
    np.testing.assert_array_equal(from_pillow, read_image(tmp_path / "x.png"))


def test_images_of_16_bits_and_other_forms_read_as_their_files(tmp_path: Path) -> None:
    """Also those whose conversion by Pillow itself would clip instead of scale."""
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 1 << 16, (6, 9), dtype=np.uint16)
    gray, rgb = rng.integers(0, 256, (6, 9), np.uint8), rng.integers(0, 256, (6, 9, 3), np.uint8)
    bilevel = Image.fromarray(gray > 99)
    assert bilevel.mode == "1"
    pillow = {"I;16": Image.fromarray(deep), "L": Image.fromarray(gray), "1": bilevel}
    for mode, image in pillow.items():
        image.save(tmp_path / "x.png")
        expected = read_image(tmp_path / "x.png")
        np.testing.assert_array_equal(convert_image(image), expected)
        with Image.open(tmp_path / "x.png") as opened:
            assert opened.mode == mode
            np.testing.assert_array_equal(convert_image(opened), expected)
        assert 60 < expected.mean() < 200
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(convert_image(deep), read_image(tmp_path / "deep.png"))
    np.testing.assert_array_equal(convert_image(gray[:, :, None]), convert_image(gray))
    backwards = np.ascontiguousarray(rgb[:, ::-1, ::-1])[:, ::-1, ::-1]  # as BGR of OpenCV is read
    wide = rgb.astype(np.uint16) << 8
    for form in (wide, wide.astype(">u2"), wide.astype("<u2"), rgb, backwards):
        np.testing.assert_array_equal(convert_image(form), rgb)
        torch.from_numpy(convert_image(form))
    rgba = np.concatenate([rgb, gray[:, :, None]], axis=2)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(convert_image(rgba), read_image(tmp_path / "rgba.png"))
    floats = Image.fromarray(rng.random((6, 9)).astype(np.float32) * 255)
    floats.save(tmp_path / "x.tif")
    for image in (floats, tmp_path / "x.tif"):
        with pytest.raises(ImageError, match="floating-point samples"):
            convert_image(image)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 2), np.uint8), r"got uint8 \(4, 5, 2\)"),
        (np.zeros((4, 5, 3), np.float32), r"uint8 or uint16, got float32 \(4, 5, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), r"got uint8 \(0, 5, 3\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"got uint8 \(2, 4, 5, 3\)"),
        (torch.zeros(4, 5, 3), "an image is a path, an array or a Pillow image, got Tensor"),
    ],
)
def test_other_arrays_are_refused(tiny_checkpoint: Path, array: Any, message: str) -> None:
    with pytest.raises(AdcamError, match=message):
        load(tiny_checkpoint)(array)


def test_a_damaged_pillow_image_is_an_image_error(tmp_path: Path, img: np.ndarray) -> None:
    Image.fromarray(img).save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:-200])
    with Image.open(tmp_path / "x.jpg") as opened, pytest.raises(ImageError, match="truncated"):
        convert_image(opened)


def test_a_list_gives_what_each_image_gives(
    tiny_checkpoint: Path,
    img: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    passes: list[tuple[int, int, int]],
) -> None:
    # Maps of attention that random weights make are all but constant: rounding decides there.
    labeler = load(tiny_checkpoint, method="cam")
    imgs = [img, img[::-1].copy(), np.rot90(img).copy(), img[:, ::-1].copy()]
    labels = [["cat"], [], None, "dog"]
    expected = [labeler(one, names) for one, names in zip(imgs, labels, strict=True)]
    passes.clear()
    for has_lanes in (False, True):  # as on a CPU, and as on a GPU
        monkeypatch.setattr(PseudoLabeler, "_has_lanes", has_lanes)
        results = labeler(imgs, labels)
        for result, one in zip(results, expected, strict=True):
            assert list(result.maps) == list(one.maps)
            np.testing.assert_allclose(
                result.class_maps.score_maps, one.class_maps.score_maps, atol=1e-5
            )
            assert (result.mask == one.mask).mean() > 0.99
            if not has_lanes:
                np.testing.assert_array_equal(result.mask, one.mask)
    assert [images for images, *_ in passes] == [1] * 4 + [3, 1]
    spoiled = [imgs[0], tmp_path / "missing.jpg"]
    with pytest.raises(ImageError, match="missing"):
        labeler(spoiled)
    assert labeler([]) == [] and len(labeler((img,))) == 1
    for wrong in (["cat"], "cat"):
        with pytest.raises(AdcamError, match="4 images needs a list with the labels of each"):
            labeler(imgs, wrong)


def test_a_long_list_is_searched_as_a_whole_for_images_of_one_size(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    passes: list[tuple[int, int, int]],
) -> None:
    """As on a GPU, with files, arrays and Pillow images of three shapes by turns."""
    rng = np.random.default_rng(0)
    shapes = [(16, 16), (24, 8), (8, 24)]
    arrays = [rng.integers(0, 255, (*shapes[i % 3], 3), np.uint8) for i in range(384)]
    images: list[Any] = list(arrays)
    for i in range(0, len(images), 5):
        images[i] = tmp_path / f"{i}.png"
        Image.fromarray(arrays[i]).save(images[i])
        images[i - 1] = Image.fromarray(arrays[i - 1])
    # Of a turned Pillow image the size is found wrong, which costs a pass and nothing else.
    turned, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.rot90(arrays[1]).copy()).save(turned, "PNG", exif=exif)
    views = TestViews(scales=(32,))
    labeler = load(tiny_checkpoint, method="cam", views=views)
    monkeypatch.setattr(PseudoLabeler, "_has_lanes", True)
    labels = [("cat", "dog")[i % 7 == 0] for i in range(len(images))]
    results = labeler(images, labels)
    # 128 in a row have 42 or 43 of each shape, which made 18 passes.
    assert Counter(passes) == {(32, 32, 32): 4, (32, 48, 16): 4, (32, 16, 48): 4}
    for result, array, name in zip(results, arrays, labels, strict=True):
        np.testing.assert_array_equal(result.img, array)
        assert list(result.maps) == [name]
    images[1] = Image.open(turned)
    again = labeler(images, labels)
    np.testing.assert_array_equal(again[1].img, arrays[1])
    assert [result.scores for result in again] == [
        pytest.approx(result.scores, abs=1e-5) for result in results
    ]
    # What is no image says so when it is read.
    for wrong in (5, np.zeros(3, np.uint8), np.zeros((4, 0, 3), np.uint8), tmp_path / "no.png"):
        with pytest.raises(AdcamError, match=r"an image|no such file"):
            labeler([arrays[0], wrong])


def test_a_rule_is_text_or_a_number(tiny_checkpoint: Path) -> None:
    for rule in (0.35, "0.35", BackgroundRule("constant", 0.35)):
        assert load(tiny_checkpoint, rule=rule).options.rule == parse_rule("0.35")


def test_maps_are_float32_whatever_torch_takes_by_default(
    tiny_checkpoint: Path, img: np.ndarray
) -> None:
    labeler = load(tiny_checkpoint)
    expected = labeler(img, labels=["dog"]).maps["dog"]
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = labeler(img, labels=["dog"]).maps["dog"]
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_missing_image_is_an_image_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        load(tiny_checkpoint)(tmp_path / "no.jpg")


def test_one_pixel_works(tiny_checkpoint: Path) -> None:
    for crf in ("none", "toco"):
        label = load(tiny_checkpoint, crf=crf)(np.zeros((1, 1, 3), np.uint8), labels=["cat"])
        assert label.mask.shape == (1, 1) and label.maps["cat"].shape == (1, 1)


def test_the_crf_sees_background_first_and_decides(
    tiny_checkpoint: Path, img: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def build(img: np.ndarray, **options: str) -> Callable[[np.ndarray], np.ndarray]:
        def fake(prob: np.ndarray) -> np.ndarray:
            seen.update(prob=prob, img=img, **options)
            return prob[[1, 2, 0]]

        return fake

    monkeypatch.setattr(mask_maker, "build_refinement", build)
    labeler = load(tiny_checkpoint, crf="psa", rule="0.3")
    label = labeler(img, labels=["cat", "horse"])
    assert seen["crf"] == "psa" and seen["backend"] == "lattice"
    np.testing.assert_array_equal(seen["img"], img)
    maps = np.stack([np.full((44, 70), 0.3, np.float32), *label.maps.values()])
    np.testing.assert_allclose(seen["prob"], maps / maps.sum(0), rtol=1e-5)
    np.testing.assert_array_equal(
        label.mask, np.array([0, 8, 13])[seen["prob"][[1, 2, 0]].argmax(0)]
    )


def test_two_thresholds_leave_the_middle_uncertain(tiny_checkpoint: Path, img: np.ndarray) -> None:
    label = load(tiny_checkpoint, two_threshold=(0.2, 0.6))(img, labels=["dog"])
    score = label.maps["dog"]
    low, high = np.float32(0.2), np.float32(0.6)
    expected = np.where(score > high, 12, np.where(score > low, 255, 0))
    np.testing.assert_array_equal(label.mask, expected)
    assert set(np.unique(label.mask)) == {0, 12, 255}
    assert label.pseudo_mask.rule == "confident:0.2:0.6"


def test_a_large_image_is_labelled_small_and_its_mask_enlarged(
    tiny_checkpoint: Path, img: np.ndarray
) -> None:
    labeler = load(tiny_checkpoint, max_pixels=22 * 35)
    label = labeler(img, labels=["dog"])
    assert label.img.shape == (22, 35, 3)
    assert label.class_maps.score_maps.shape == (1, 22, 35)
    assert label.maps["dog"].shape == label.mask.shape == (44, 70)
    level = find_level(label.class_maps.score_maps)
    small = np.where(label.class_maps.score_maps[0] > np.float32(level), 12, 0)
    np.testing.assert_array_equal(label.mask, small.repeat(2, axis=0).repeat(2, axis=1))


def test_fit_pixels_keeps_small_images_and_never_loses_a_side() -> None:
    img = np.zeros((10, 20, 3), np.uint8)
    assert fit_pixels(img, 200) is img
    assert fit_pixels(np.zeros((1, 900, 3), np.uint8), 9).shape[0] == 1
    height, width = fit_pixels(np.zeros((90, 40, 3), np.uint8), 900).shape[:2]
    assert height * width <= 900 and height / width == pytest.approx(90 / 40, rel=0.1)


def test_resize_maps_is_bilinear_between_pixel_centres() -> None:
    maps = np.array([[[0.0, 1.0]]], np.float32)
    np.testing.assert_allclose(resize_maps(maps, (1, 4)), [[[0, 0.25, 0.75, 1]]])
    assert resize_maps(maps, (1, 2)) is maps
    assert resize_maps(np.zeros((0, 3, 4), np.float32), (6, 5)).shape == (0, 6, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresh": 0.3}, r"no option \['thresh'\].*'rule'"),
        ({"method": "gradcam"}, "labeler.method must be .*got 'gradcam'; did you mean"),
        ({"method_options": {"gamma": 1}}, "ad_cam: there is no key 'gamma'"),
        ({"crf": "gpu"}, "crf must be 'none', .*'irn'.*got 'gpu'"),
        ({"crf": "lattice"}, "write crf='toco', crf_backend='lattice'"),
        ({"crf_backend": "gpu"}, "crf_backend must be .*'lattice'.*got 'gpu'"),
        ({"dtype": "int8"}, "dtype must be .*got 'int8'"),
        ({"label_threshold": 1.5}, "label_threshold must be at least 0 and at most 1"),
        ({"two_threshold": (0.5, 0.2)}, r"two_threshold must be \(low, high\)"),
        ({"max_pixels": 0}, "max_pixels must be at least 1"),
        ({"rule": "otsu:3"}, "background rule must be"),
        ({"rule": 1.5}, r"background rule must be .*got 1\.5"),
        ({"views": (448, 560)}, r"views must be .*TestViews\(\(448,\).*got \(448, 560\)"),
    ],
)
def test_wrong_options_are_refused(
    tiny_checkpoint: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(tiny_checkpoint, **options)


def test_a_backend_that_cannot_run_says_why(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = {"lattice": None, "pydensecrf": "no compiler"}
    monkeypatch.setattr(labeler_module, "available_backends", lambda: reasons)
    with pytest.raises(ValueError, match="'pydensecrf' cannot run here: no compiler"):
        load(tiny_checkpoint, crf="toco", crf_backend="pydensecrf")


@pytest.mark.parametrize(
    ("network_device", "reason", "backend", "crf_device"),
    [
        ("cuda", None, "lattice-gpu", "cuda"),
        ("cuda", "no Triton", "lattice", "cpu"),
        ("cpu", None, "lattice", "cpu"),
        ("mps", "no CUDA device", "lattice", "cpu"),
    ],
)
def test_the_crf_follows_the_network_to_a_gpu_with_kernels(
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    network_device: str,
    reason: str | None,
    backend: str,
    crf_device: str,
) -> None:
    labeler = load(tiny_checkpoint, crf="toco")
    assert labeler.describe()["crf_backend"] == labeler.mask_maker.crf_backend == "lattice"
    device = torch.device(network_device)
    monkeypatch.setattr(labeler_module, "available_backends", lambda: {"triton": reason})
    assert place_masks(device, "toco", "auto") == (backend, crf_device)
    assert place_masks(device, "toco", "lattice") == ("lattice", "cpu")
    if network_device != "cpu":
        assert place_masks(device, "toco", "lattice-gpu") == ("lattice-gpu", network_device)
        return
    with pytest.raises(AdcamError, match="on the GPU of the network, but the device is 'cpu'"):
        place_masks(device, "toco", "lattice-gpu")


@pytest.mark.parametrize("rule", ["0.4", "power:3", "otsu", "steepest:0.58"])
def test_masks_of_a_batch_are_those_of_its_images(rule: str) -> None:
    """On the device that the CRF computes on, here a CPU by a name that is not recognised."""
    rng = np.random.default_rng(0)
    sizes = [(17, 24), (24, 17), (17, 24), (9, 12)]
    maps = []
    for hw, class_ids in zip(sizes, [(0, 2), (1,), (), (0, 1)], strict=True):
        coarse = torch.from_numpy(rng.random((1, len(class_ids), 4, 5), dtype=np.float32))
        scores = np.zeros((0, *hw), dtype=np.float32)
        if class_ids:
            scores = torch.nn.functional.interpolate(coarse, hw, mode="bilinear")[0].numpy()
            scores[:, :2] = 0  # pixels without any score: background
        maps.append(ClassMaps(class_ids, scores))
    imgs = [rng.integers(0, 256, (*hw, 3)).astype(np.uint8) for hw in sizes]
    ori_hws = [(34, 48), (24, 17), (17, 24), (9, 12)]
    one = MaskMaker(parse_rule(rule), None, "toco", "lattice", (5, 7, 9))
    batch = replace(one, crf_backend="lattice-gpu", crf_device="cpu:0")
    masks = batch.make_batch(maps, imgs, ori_hws)
    for mask, *of_image in zip(masks, maps, imgs, ori_hws, strict=True):
        expected = one(*of_image)
        np.testing.assert_array_equal(mask.mask, expected.mask)
        assert {**vars(mask), "mask": None} == {**vars(expected), "mask": None}
    assert {5, 7, 9} <= set(np.concatenate([mask.mask.ravel() for mask in masks]))
    # Maps that are on the device are read there: all background, in place of one class.
    there = torch.zeros(1, *sizes[1])
    swapped = DeviceMaps((1,), maps[1].score_maps, there)
    (mask,) = batch.make_batch([swapped], imgs[1:2], ori_hws[1:2])
    assert (masks[1].mask == 7).any() and not mask.mask.any()
    sent = copy.copy(swapped)  # by what a pickle of it holds
    assert type(sent) is ClassMaps and sent.class_ids == (1,)
    np.testing.assert_array_equal(sent.score_maps, maps[1].score_maps)
    for changed in ({"crf": "none"}, {"two_threshold": (0.3, 0.6)}, {"crf_device": "cpu"}):
        maker = replace(batch, **changed)
        masks = maker.make_batch(maps, imgs, ori_hws)
        for mask, *of_image in zip(masks, maps, imgs, ori_hws, strict=True):
            np.testing.assert_array_equal(mask.mask, maker(*of_image).mask)


def test_a_labeler_serves_several_threads(tiny_checkpoint: Path) -> None:
    """Attention is read by hooks, which two passes at once would both meet."""
    labeler = load(tiny_checkpoint)
    rng = np.random.default_rng(0)
    imgs = [rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(12)]
    expected = [labeler(img, labels=["dog"]) for img in imgs]
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda img: labeler(img, labels=["dog"]), imgs)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.maps["dog"], other.maps["dog"])


def test_devices_that_are_not_there(tiny_checkpoint: Path) -> None:
    for device in ("cuda:99", "abacus", "meta"):
        with pytest.raises(ValueError, match="device"):
            PseudoLabeler.from_checkpoint(tiny_checkpoint, device=device)


def test_bfloat16_is_near_float32(tiny_checkpoint: Path, img: np.ndarray) -> None:
    exact, near = (
        load(tiny_checkpoint, dtype=dtype)(img, labels=["dog"]) for dtype in ("float32", "bfloat16")
    )
    difference = np.abs(exact.maps["dog"] - near.maps["dog"])
    assert 0 < difference.max() < 0.2
    assert near.scores["dog"] == pytest.approx(exact.scores["dog"], abs=0.02)


def test_the_description_changes_with_every_choice(tiny_checkpoint: Path) -> None:
    choices: list[dict[str, object]] = [
        {},
        {"method": "cam"},
        {"method_options": {"power": 1.0}},
        {"views": TestViews(scales=(64, 96))},
        {"views": TestViews(scales=(64,), flip=True)},
        {"views": TestViews(scales=(64,), keep_ratio=False)},
        {"rule": "otsu"},
        {"rule": BackgroundRule("constant", 0.4, "elsewhere")},
        {"two_threshold": (0.1, 0.2)},
        {"crf": "toco"},
        {"crf": "psa"},
        {"dtype": "bfloat16"},
        {"label_threshold": 0.1},
        {"max_pixels": 99},
    ]
    descriptions = [str(load(tiny_checkpoint, **choice).describe()) for choice in choices]
    assert len(set(descriptions)) == len(choices)


def test_the_hash_of_weights_sees_one_changed_number(tiny_checkpoint: Path) -> None:
    first, second = (load_classifier(tiny_checkpoint).network for _ in range(2))
    assert hash_network(first) == hash_network(second)
    with torch.no_grad():
        second.head.bias[0] += 1e-3
    assert hash_network(first) != hash_network(second)


def test_save_and_show(tiny_checkpoint: Path, img: np.ndarray, tmp_path: Path) -> None:
    labeler = load(tiny_checkpoint)
    label = labeler(img, labels=["cat"])
    label.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), label.mask)
    with Image.open(tmp_path / "mask.png") as file:
        assert file.getpalette()[24:27] == list(labeler.class_set.palette[8])
    shown = np.asarray(label.show())
    assert shown.shape == (44, 2 * 70 + 4, 3)
    np.testing.assert_array_equal(shown[:, :70], img)
    np.testing.assert_array_equal(
        (shown[:, 74:] != img).any(axis=2) | (label.mask == 0), np.ones((44, 70), bool)
    )
    with Image.open(io.BytesIO(label._repr_png_())) as png:
        assert png.format == "PNG" and png.size == (144, 44)


def test_a_notebook_shows_pictures_scores_and_shares(
    tiny_checkpoint: Path, img: np.ndarray
) -> None:
    labeler = load(tiny_checkpoint)
    labels = labeler([img, img], [["cat"], []])
    assert isinstance(labels, list) and len(labels) == 2
    described = f"PseudoLabeler({labeler.network.name}: cat, dog, horse; ad_cam on cpu)"
    assert repr(labeler) == described
    assert repr(labels[0]).startswith("PseudoLabel(44×70, cat 0.")
    assert repr(labels[1]) == "PseudoLabel(44×70, no class)"
    shown, empty = (label._repr_html_() for label in labels)
    picture = base64.b64decode(shown.partition("base64,")[2].partition('"')[0])
    with Image.open(io.BytesIO(picture)) as png:
        assert png.size == (144, 44)
    share = float((labels[0].mask == 8).mean())
    red, green, blue = labels[0].class_set.palette[8]
    assert f"rgb({red}, {green}, {blue})" in shown and f"{share:.1%}" in shown
    words = shown.replace(shown.partition("base64,")[2].partition('"')[0], "")
    assert "dog" not in words and "no class" in empty
    assert labels._repr_html_().count("<img ") == 2


def test_the_default_rule_follows_the_method_unless_one_is_named() -> None:
    assert LabelerOptions().rule == LabelerOptions(method="ts_cam").rule == DEFAULT_RULE
    refined = LabelerOptions(method="refined").rule
    assert (str(refined), refined.chosen_on) == (
        "steepest:0.52",
        "voc-animals train, refined at 448",
    )
    assert refined == refined_options(Settings({}))["rule"]
    # A config without a rule, and one with it.
    cam = CamSettings(method="refined")
    assert LabelerOptions(**options_from_settings(cam, MaskSettings())).rule == refined
    named = options_from_settings(cam, MaskSettings(rule="otsu"))
    assert str(LabelerOptions(**named).rule) == "otsu"
    assert LabelerOptions(method="refined", rule=DEFAULT_RULE).rule == DEFAULT_RULE


def test_options_from_settings() -> None:
    cam = from_section(CamSettings, {"scales": [64, 96], "flip": True}, "cam")
    mask = MaskSettings(rule="power:4", chosen_on="here", crf="psa", crf_backend="lattice")
    options = options_from_settings(cam, mask)
    assert LabelerOptions(**options) == LabelerOptions(
        views=TestViews(scales=(64, 96), flip=True),
        rule=BackgroundRule("power", 4.0, "here"),
        crf="psa",
        crf_backend="lattice",
    )
    assert LabelerOptions(**options_from_settings(CamSettings(), MaskSettings())) == (
        LabelerOptions()
    )


def test_an_imagenet_model_needs_no_training(img: np.ndarray) -> None:
    torch.manual_seed(0)
    labeler = PseudoLabeler.from_imagenet(
        "deit_tiny_patch16_224", ["tabby cat", "dog"], weights=None, device="cpu", views=SMALL
    )
    label = labeler(img, labels=["tabby cat"])
    assert label.class_set.classes == ("tabby cat", "dog")
    assert label.maps["tabby cat"].shape == (44, 70)
    assert set(np.unique(label.mask)) <= {0, 1}
    assert labeler.describe()["method_options"]["init"] == "coupled"
    assert labeler.describe()["class_groups"][0] == [281]


def test_compiling_takes_the_mlps_alone_and_once(
    tiny_checkpoint: Path, img: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []

    def compile_module(module: torch.nn.Module, *, dynamic: bool) -> None:
        compiled.append(type(module).__name__)
        module._compiled_call_impl = module._call_impl

    monkeypatch.setattr(torch.nn.Module, "compile", compile_module)
    plain, labeler = load(tiny_checkpoint), load(tiny_checkpoint, compile=True)
    for _ in range(2):
        np.testing.assert_array_equal(labeler(img, ["cat"]).mask, plain(img, ["cat"]).mask)
    assert compiled == ["Mlp"] * 3
    assert labeler.describe() == {**plain.describe(), "compile": True}
