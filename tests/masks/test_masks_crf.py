"""Parameter sets and the two refinements built on the dense CRF."""

from __future__ import annotations

import numpy as np
import pytest

from adcam.errors import AdcamError
from adcam.masks.crf import (
    CRF_BACKENDS,
    CRF_PARAMS,
    CRFParams,
    get_crf_params,
    refine,
    refine_labels,
)
from adcam.ops.dense_crf import available_backends, dense_crf
from adcam.options import from_section
from adcam.settings import MaskSettings

HEIGHT, WIDTH = 30, 46


@pytest.fixture
def scene():
    """Image of three flat regions, their labels, and the labels with a fifth of them wrong."""
    rng = np.random.default_rng(0)
    row, col = np.indices((HEIGHT, WIDTH))
    gt = (col > 15).astype(np.uint8) + ((col > 30) & (row > 12))
    colours = np.array([[200, 50, 40], [40, 160, 70], [50, 80, 220]])
    img = (colours[gt] + rng.normal(0, 2, (HEIGHT, WIDTH, 3))).clip(0, 255).astype(np.uint8)
    wrong = rng.random((HEIGHT, WIDTH)) < 0.2
    noisy = np.where(wrong, rng.integers(0, 3, (HEIGHT, WIDTH)), gt).astype(np.uint8)
    return img, gt.astype(np.uint8), noisy


@pytest.mark.parametrize(
    ("name", "gaussian", "bilateral"),
    [
        ("psa", (3, 3), (80, 13, 10)),
        ("irn", (3, 3), (50, 5, 10)),
        ("clip_es", (1, 3), (67, 3, 4)),
        ("toco", (3, 3), (36, 3, 4)),
        ("weaktr", (3, 3), (83, 5, 3)),
    ],
)
def test_published_numbers(scene, name, gaussian, bilateral):
    img, _, noisy = scene
    prob = np.eye(3, dtype=np.float32)[noisy].transpose(2, 0, 1) * 0.6 + 0.1
    expected = dense_crf(prob, img, gaussian=gaussian, bilateral=bilateral, num_iters=10)
    np.testing.assert_array_equal(refine(prob, img, crf=name), expected)
    assert "/" in CRF_PARAMS[name].source


def test_every_set_is_listed_above():
    assert sorted(CRF_PARAMS) == ["clip_es", "irn", "psa", "toco", "weaktr"]


def test_own_parameters(scene):
    img, _, noisy = scene
    prob = np.eye(3)[noisy].transpose(2, 0, 1) * 0.6 + 0.1
    own = CRFParams(None, (20, 8, 2), 3, "this test")
    expected = dense_crf(prob, img, gaussian=None, bilateral=(20, 8, 2), num_iters=3)
    np.testing.assert_array_equal(refine(prob, img, crf=own), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_refine_labels_repairs_noise(scene, dtype):
    img, gt, noisy = scene
    refined = refine_labels(noisy.astype(dtype), img, 3)
    assert refined.dtype == dtype
    assert refined.shape == (HEIGHT, WIDTH)
    assert (noisy == gt).mean() < 0.9
    assert (refined == gt).mean() > 0.99


@pytest.mark.skipif(
    available_backends()["pydensecrf"] is not None,
    reason=f"pydensecrf: {available_backends()['pydensecrf']}",
)
@pytest.mark.parametrize("num_labels", [3, 21])
def test_refine_labels_is_that_of_irn(scene, num_labels):
    """The same calls as IRN's crf_inference_label makes."""
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_labels

    img, _, noisy = scene
    crf = DenseCRF2D(WIDTH, HEIGHT, num_labels)
    crf.setUnaryEnergy(unary_from_labels(noisy, num_labels, gt_prob=0.7, zero_unsure=False))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=50, srgb=5, rgbim=img, compat=10)
    expected = np.array(crf.inference(10)).reshape(num_labels, HEIGHT, WIDTH).argmax(0)
    for backend in ("pydensecrf", "reference", "auto"):
        np.testing.assert_array_equal(
            refine_labels(noisy, img, num_labels, backend=backend), expected
        )


def test_a_label_is_believed_with_0_7_and_the_others_share_the_rest(scene, monkeypatch):
    img, _, noisy = scene
    seen = []

    def record(prob, img, **options):
        seen.append(prob)
        return prob

    monkeypatch.setattr("adcam.masks.crf.refine", record)
    np.testing.assert_array_equal(refine_labels(noisy, img, 4), noisy)
    refine_labels(noisy, img, 3, gt_prob=0.4)
    for prob, own, other in zip(seen, (0.7, 0.4), (0.1, 0.3), strict=True):
        is_own = np.arange(len(prob))[:, None, None] == noisy
        np.testing.assert_allclose(prob, np.where(is_own, own, other), rtol=1e-6)


def test_more_certain_labels_move_less(scene):
    img, _, noisy = scene
    own = CRFParams((3, 3), None, 10, "this test")
    moved = [
        (refine_labels(noisy, img, 3, gt_prob=gt_prob, crf=own) != noisy).mean()
        for gt_prob in (0.4, 0.6, 0.9)
    ]
    assert moved[0] > moved[1] > moved[2]


def test_single_label_is_returned_as_a_copy(scene):
    img, _, _ = scene
    label = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    refined = refine_labels(label, img, 1)
    np.testing.assert_array_equal(refined, label)
    assert not np.shares_memory(refined, label)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_labels": 2}, r"0\.\.1, got values 0\.\.2"),
        ({"num_labels": 0}, "at least 1, got 0"),
        ({"gt_prob": 1.0}, "gt_prob"),
        ({"gt_prob": 0.0}, "gt_prob"),
        ({"gt_prob": float("nan")}, "gt_prob"),
        ({"crf": "voc"}, "'psa', 'irn', 'clip_es', 'toco' or 'weaktr', got 'voc'"),
        ({"backend": "gpu"}, "'gpu'"),
    ],
)
def test_bad_arguments(scene, change, message):
    img, _, noisy = scene
    with pytest.raises(ValueError, match=message):
        refine_labels(noisy, img, **({"num_labels": 3} | change))


def test_bad_labels(scene):
    img, _, noisy = scene
    with pytest.raises(ValueError, match=r"got values 0\.\.255"):
        refine_labels(np.where(noisy == 2, 255, noisy), img, 3)
    with pytest.raises(ValueError, match=r"integers, got .* float"):
        refine_labels(noisy.astype(np.float32), img, 3)
    with pytest.raises(ValueError, match=r"\(46, 30\) but img is \(30, 46\)"):
        refine_labels(noisy.T, img, 3)


def test_backends_by_the_names_of_the_commands(scene):
    img, _, noisy = scene
    prob = np.eye(3, dtype=np.float32)[noisy].transpose(2, 0, 1) * 0.6 + 0.1
    expected = refine(prob, img)
    np.testing.assert_array_equal(refine(prob, img, backend="lattice"), expected)
    assert list(CRF_BACKENDS) == ["auto", "lattice", "lattice-gpu", "pydensecrf"]
    if available_backends()["torch"] is None:
        close = refine(prob, img, backend="lattice-gpu")
        np.testing.assert_allclose(close, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("crf", "message"),
    [
        ("lattice", r"crf names a parameter set.*'toco'.*crf_backend='lattice'"),
        ("tocco", "crf must be .*did you mean 'toco'"),
        (True, "crf must be .*got True"),
    ],
)
def test_wrong_names_are_refused_with_the_right_spelling(crf, message):
    with pytest.raises(AdcamError, match=message):
        get_crf_params(crf)


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("latice", "must be .*'lattice'.*got 'latice'"),
        ("toco", "must be .*'lattice'.*got 'toco'"),
        (True, "must be text, got True"),
    ],
)
def test_wrong_backends_are_refused(backend, message):
    with pytest.raises(AdcamError, match=rf"mask\.crf_backend {message}"):
        from_section(MaskSettings, {"rule": "0.5", "crf_backend": backend}, "mask")


def test_legal_names_pass():
    for name in ("none", *CRF_PARAMS):
        for backend in CRF_BACKENDS:
            from_section(MaskSettings, {"rule": "0.5", "crf": name, "crf_backend": backend}, "mask")
