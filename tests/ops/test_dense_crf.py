"""Dense CRF: exact small cases, two independent oracles, pydensecrf, and the golden values."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import BrokenBarrierError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adcam.ops.dense_crf import (
    MIN_PROB,
    DenseCRF,
    available_backends,
    dense_crf,
    dense_crf_batch,
    interface,
    reference,
)


def needs(backend):
    reason = available_backends()[backend]
    return pytest.mark.skipif(reason is not None, reason=f"{backend}: {reason}")


FAST = [pytest.param("numba", marks=needs("numba")), "torch"]
OURS = ["reference", *FAST]
BACKENDS = [*OURS, pytest.param("pydensecrf", marks=needs("pydensecrf"))]
needs_pydensecrf = needs("pydensecrf")


def make_img(height, width, *, seed=0):
    """Two colour regions with a slanted border, a gradient and noise."""
    rng = np.random.default_rng(seed)
    row, col = np.indices((height, width))
    img = np.where((col + 0.5 * row < 0.6 * width)[..., None], [200, 90, 40], [60, 120, 180])
    img = img + 20 * (row / max(height, 2))[..., None] + rng.normal(0, 6, img.shape)
    return img.clip(0, 255).astype(np.uint8)


def make_prob(num_labels, height, width, *, seed=0):
    rng = np.random.default_rng(seed)
    prob = rng.dirichlet(np.full(num_labels, 0.7), (height, width)).transpose(2, 0, 1)
    return np.ascontiguousarray(prob, dtype=np.float32)


# ---- the filter ----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(dim=st.integers(1, 6), seed=st.integers(0, 10_000), spread=st.sampled_from([0.1, 3.0, 40.0]))
def test_simplex_encloses_its_point(dim, seed, spread):
    features = np.random.default_rng(seed).normal(0, spread, (dim, 23)).astype(np.float32)
    cell, order, weights = reference._find_simplices(features)
    vertices = [(dim + 1) * cell.astype(np.float64)]
    for p in range(dim):
        step = np.ones((dim + 1, 23))
        np.put_along_axis(step, order[p][None], -dim, axis=0)
        vertices.append(vertices[-1] + step)
    elevated = reference._elevate(features)
    assert all((vertex.sum(axis=0) == 0).all() for vertex in vertices)
    assert (weights >= -1e-4).all()
    np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(
        sum(w * v for w, v in zip(weights, vertices, strict=True)),
        elevated,
        atol=2e-5 * max(1, spread),
    )


def test_elevation_is_a_scaled_isometry():
    features = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)
    elevated = reference._elevate(features)
    np.testing.assert_allclose(elevated.sum(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(
        elevated.T @ elevated, features.T @ features * (2 / 3) * 6**2, rtol=1e-4, atol=1e-3
    )


def naive_filter(features, values):
    """The same lattice from its definition: float64, one point at a time, a dict of vertices."""
    dim, num_points = features.shape
    basis = np.zeros((dim + 1, dim))
    for j in range(dim):
        basis[: j + 1, j] = 1
        basis[j + 1, j] = -(j + 1)
        basis[:, j] /= np.linalg.norm(basis[:, j])
    elevated = (np.sqrt(2 / 3) * (dim + 1) * basis @ features.astype(np.float64)).T
    index = {}
    corners = []
    for y in elevated:
        # Nearest multiples of d+1, brought to zero sum where that costs least.
        base = (dim + 1) * np.round(y / (dim + 1))
        excess = round(base.sum()) // (dim + 1)
        order = np.argsort(y - base)
        if excess > 0:
            base[order[:excess]] -= dim + 1
        elif excess < 0:
            base[order[excess:]] += dim + 1
        order = np.argsort(y - base)
        weights = np.diff((y - base)[order], prepend=0, append=0)[: dim + 1] / (dim + 1)
        weights[0] = 1 - weights[1:].sum()
        vertex = base.copy()
        mine = []
        for p in range(dim + 1):
            mine.append((index.setdefault(tuple(vertex.astype(int)), len(index)), weights[p]))
            vertex += 1
            vertex[order[p]] -= dim + 1
        corners.append(mine)
    splat = np.zeros((num_points, len(index)))
    for i, mine in enumerate(corners):
        for j, weight in mine:
            splat[i, j] += weight
    table = splat.T @ values
    for axis in range(dim + 1):
        blurred = table.copy()
        for key, j in index.items():
            for sign in (-1, 1):
                neighbour = np.array(key) - sign
                neighbour[axis] += sign * (dim + 1)
                if tuple(neighbour) in index:
                    blurred[j] += 0.5 * table[index[tuple(neighbour)]]
        table = blurred
    return splat @ table / (1 + 2.0**-dim), len(index)


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("spread", [0.2, 0.6, 1.5, 6.0])
def test_filter_equals_the_definition(dim, spread):
    rng = np.random.default_rng(dim)
    features = rng.uniform(-spread, spread, (dim, 90)).astype(np.float32)
    values = rng.normal(size=(90, 3)).astype(np.float32)
    tested = reference.PermutohedralLattice(features)
    expected, num_vertices = naive_filter(features, values)
    assert tested.num_vertices == num_vertices
    np.testing.assert_allclose(tested.filter(values), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 9, 37, 40])
def test_neighbours_beyond_the_border_are_absent(seed):
    """Points along a line: with tight numbering, keys past the end of a row hit the next row."""
    rng = np.random.default_rng(seed)
    rng.normal(size=2)
    line = np.outer(rng.normal(size=2), rng.uniform(-3, 3, 40))
    features = (line + rng.normal(0, 0.2, (2, 40))).astype(np.float32)
    values = rng.normal(size=(40, 1)).astype(np.float32)
    expected, _ = naive_filter(features, values)
    got = reference.PermutohedralLattice(features).filter(values)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def exact_kernel(features):
    """Λ^-1/2 K Λ^-1/2 with the true Gaussian, (N, N)."""
    square = (features**2).sum(axis=0)
    distance = square[:, None] + square[None] - 2 * features.T @ features
    kernel = np.exp(-0.5 * distance.clip(min=0))
    norm = 1 / np.sqrt(kernel.sum(axis=1))
    return norm[:, None] * kernel * norm[None]


def exact_features(img, sigma_xy, sigma_rgb=None):
    row, col = np.indices(img.shape[:2], dtype=np.float64)
    features = [col.ravel() / sigma_xy, row.ravel() / sigma_xy]
    if sigma_rgb is not None:
        features += list(img.reshape(-1, 3).T / sigma_rgb)
    return np.stack(features)


@pytest.mark.parametrize(
    ("sigma_xy", "sigma_rgb", "tolerance"), [(3, None, 0.01), (6, None, 0.01), (8, 25, 0.02)]
)
def test_filter_approximates_the_gaussian(sigma_xy, sigma_rgb, tolerance):
    img = make_img(19, 27)
    features = exact_features(img, sigma_xy, sigma_rgb)
    values = make_prob(3, 19, 27).reshape(3, -1).T
    expected = exact_kernel(features) @ values
    got = reference._NormalisedKernel(features.astype(np.float32)).apply(values)
    assert np.abs(got - expected).mean() < tolerance
    # A wrong width would do worse than this.
    for wrong in (0.6, 1.7):
        other = reference._NormalisedKernel((wrong * features).astype(np.float32)).apply(values)
        assert np.abs(other - expected).mean() > np.abs(got - expected).mean()


def exact_mean_field(prob, img, gaussian, bilateral, num_iters):
    log_prob = np.log(prob.reshape(len(prob), -1).T.astype(np.float64))
    kernels = [
        (exact_kernel(exact_features(img, gaussian[0])), gaussian[1]),
        (exact_kernel(exact_features(img, *bilateral[:2])), bilateral[2]),
    ]
    q = torch.from_numpy(log_prob).softmax(1).numpy()
    for _ in range(num_iters):
        logits = log_prob + sum(compat * kernel @ q for kernel, compat in kernels)
        q = torch.from_numpy(logits).softmax(1).numpy()
    return q.T.reshape(prob.shape)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_field_approximates_brute_force(backend):
    img, prob = make_img(21, 33), make_prob(3, 21, 33).clip(0.02)
    settings = {"gaussian": (3, 3), "bilateral": (10, 25, 5), "num_iters": 3}
    expected = exact_mean_field(prob, img, **settings)
    got = dense_crf(prob, img, backend=backend, **settings)
    assert (got.argmax(0) == expected.argmax(0)).mean() > 0.95
    assert np.abs(got - expected).mean() < 0.03


# ---- fast paths against the reference ------------------------------------------------------------


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("kernels", [((3, 3), (50, 5, 10)), (None, (36, 3, 4)), ((1, 3), None)])
@pytest.mark.parametrize(("num_labels", "hw"), [(2, (63, 101)), (3, (40, 29)), (6, (17, 64))])
def test_fast_paths_equal_the_reference(backend, kernels, num_labels, hw):
    prob, img = make_prob(num_labels, *hw), make_img(*hw)
    settings = {"gaussian": kernels[0], "bilateral": kernels[1]}
    got, expected = (dense_crf(prob, img, backend=b, **settings) for b in (backend, "reference"))
    assert np.abs(got - expected).mean() < 2e-6
    np.testing.assert_allclose(got, expected, atol=5e-4)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("num_labels", [5, 9, 21, 81])
def test_many_labels_equal_the_reference(backend, num_labels):
    prob, img = make_prob(num_labels, 13, 22), make_img(13, 22)
    got, expected = (dense_crf(prob, img, num_iters=4, backend=b) for b in (backend, "reference"))
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_crf_serves_many_inferences(backend):
    img = make_img(23, 31)
    first, second = make_prob(2, 23, 31), make_prob(4, 23, 31, seed=1)
    crf = DenseCRF(img, bilateral=(20, 9, 5), backend=backend)
    for prob in (first, second, first):
        expected = dense_crf(prob, img, bilateral=(20, 9, 5), num_iters=3, backend=backend)
        np.testing.assert_array_equal(crf.infer(prob, num_iters=3), expected)
    with pytest.raises(ValueError, match=r"\(31, 23\) but img is \(23, 31\)"):
        crf.infer(first.transpose(0, 2, 1))


@needs("numba")
@pytest.mark.parametrize(
    ("hw", "kernels"),
    [
        ((90, 71), ((3, 3), (36, 3, 4))),
        ((37, 2), ((0.2, 3), (0.7, 90, 4))),
        ((1, 40), ((1, 3), (80, 200, 4))),
    ],
)
def test_numba_lattice_is_that_of_the_reference(hw, kernels):
    """The same vertices and neighbours; noise, so that the first case's hash tables grow."""
    from adcam.ops.dense_crf import numba_lattice

    img = np.random.default_rng(0).integers(0, 256, (*hw, 3)).astype(np.uint8)
    tested = numba_lattice.MeanField(img, gaussian=kernels[0], bilateral=kernels[1])._lattice
    oracle = reference.MeanField(img, gaussian=kernels[0], bilateral=kernels[1])
    sizes = [kernel._lattice.num_vertices for kernel, _ in oracle._kernels]
    assert tested.after.shape == tested.before.shape == (6, sum(sizes) + 1)
    assert tested.corners.shape == (hw[0] * hw[1], 9)
    assert tested.corners[:, :3].max() == sizes[0] < tested.corners[:, 3:].min()
    if hw == (90, 71):
        assert min(len(np.unique(part)) for part in np.array_split(tested.corners, 4)) > 8192

    first = 1
    for kernel, _ in oracle._kernels:
        size = kernel._lattice.num_vertices
        for axis, blur in enumerate(kernel._lattice._blurs):
            after, before = tested.after[axis, first:][:size], tested.before[axis, first:][:size]
            num_pairs = (blur.nnz - size) / 2
            assert np.count_nonzero(after) == np.count_nonzero(before) == num_pairs
            (here,) = after.nonzero()
            np.testing.assert_array_equal(tested.before[axis, after[here]], here + first)
        first += size


@needs("numba")
@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads_do_not_change_a_bit(monkeypatch, threads):
    prob, img = make_prob(3, 37, 53), make_img(37, 53)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    expected = dense_crf(prob, img, backend="numba")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    np.testing.assert_array_equal(dense_crf(prob, img, backend="numba"), expected)


@needs("numba")
def test_threads_of_the_caller_may_share_a_crf(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    probs = [make_prob(3, 37, 53, seed=seed) for seed in range(6)]
    crf = DenseCRF(make_img(37, 53), backend="numba")
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(crf.infer, probs))
    for prob, got in zip(probs, together, strict=True):
        np.testing.assert_array_equal(got, crf.infer(prob))


@needs("numba")
def test_an_error_in_one_thread_does_not_hang_the_others(monkeypatch):
    from adcam.ops.dense_crf import numba_lattice

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    def steps(worker):
        if worker.index == 1:
            raise KeyError("here")
        worker.wait()

    with pytest.raises((KeyError, BrokenBarrierError)):
        numba_lattice._run(steps)


@needs("numba")
def test_exponential():
    from numba import njit

    from adcam.ops.dense_crf import numba_lattice

    single = numba_lattice._exp

    @njit
    def exp(values):
        out = np.empty_like(values)
        for i in range(len(values)):
            out[i] = single(values[i])
        return out

    x = -np.geomspace(1e-6, 87, 20_000).astype(np.float32)
    np.testing.assert_allclose(exp(x), np.exp(x.astype(np.float64)), rtol=3e-7)
    assert exp(np.array([0, -0.0], dtype=np.float32)).tolist() == [1, 1]
    assert exp(np.array([-1e30, -np.inf], dtype=np.float32)).max() < 2e-38


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_torch_simplices_are_those_of_the_reference(dim):
    from adcam.ops.dense_crf import torch_lattice

    features = np.random.default_rng(dim).normal(0, 20, (dim, 500)).astype(np.float32)
    for got, expected in zip(
        torch_lattice._find_simplices(torch.from_numpy(features)),
        reference._find_simplices(features),
        strict=True,
    ):
        np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_equals_its_images(backend):
    """Different sizes and numbers of labels; the images know nothing of one another."""
    sizes = [(21, 34), (34, 21), (1, 5), (40, 28)]
    probs = [make_prob(2 + i, *hw, seed=i) for i, hw in enumerate(sizes)]
    imgs = [make_img(*hw, seed=i) for i, hw in enumerate(sizes)]
    got = dense_crf_batch(probs, imgs, num_iters=4, backend=backend)
    for prob, img, refined in zip(probs, imgs, got, strict=True):
        expected = dense_crf(prob, img, num_iters=4, backend=backend)
        np.testing.assert_allclose(refined, expected, atol=1e-5)
    tensors = dense_crf_batch(
        [torch.from_numpy(prob) for prob in probs], imgs, num_iters=4, backend=backend
    )
    assert all(isinstance(refined, torch.Tensor) for refined in tensors)
    np.testing.assert_array_equal(tensors[3].numpy(), got[3])


def test_batch_arguments():
    assert dense_crf_batch([], []) == []
    with pytest.raises(ValueError, match="one image for each of probs, got 1, 0"):
        dense_crf_batch([], [make_img(3, 5)])
    for backend in ("reference", "torch"):
        with pytest.raises(ValueError, match="without NaN"):
            dense_crf_batch([with_nan(make_prob(3, 9, 14))], [make_img(9, 14)], backend=backend)


def test_device_of_the_computation():
    prob, img = make_prob(3, 9, 14), make_img(9, 14)
    got = DenseCRF(img, backend="torch", device="cpu").infer(prob)
    np.testing.assert_array_equal(got, dense_crf(prob, img, backend="torch"))
    with pytest.raises(ValueError, match=r"device must be 'cpu' .*'reference', got cuda"):
        DenseCRF(img, backend="reference", device="cuda")


@pytest.mark.gpu
def test_gpu_computes_for_arrays(gpu):
    """The image goes to the device, probabilities go there and back."""
    prob, img = make_prob(3, 63, 101), make_img(63, 101)
    got = DenseCRF(img, device=gpu).infer(prob)
    assert isinstance(got, np.ndarray)
    np.testing.assert_allclose(got, dense_crf(prob, img, backend="reference"), atol=5e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("num_labels", [2, 21])
def test_gpu_equals_the_reference(gpu, num_labels):
    probs = [make_prob(num_labels, 63, 101), make_prob(num_labels, 40, 29)]
    imgs = [make_img(63, 101), make_img(40, 29)]
    got = dense_crf_batch([torch.from_numpy(prob).to(gpu) for prob in probs], imgs)
    for prob, img, refined in zip(probs, imgs, got, strict=True):
        assert refined.device.type == "cuda"
        np.testing.assert_allclose(
            refined.cpu().numpy(), dense_crf(prob, img, backend="reference"), atol=5e-4
        )
    single = dense_crf(torch.from_numpy(probs[0]).to(gpu), torch.from_numpy(imgs[0]))
    np.testing.assert_allclose(single.cpu().numpy(), got[0].cpu().numpy(), atol=1e-5)


# ---- exact and limiting cases --------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_pixel(backend):
    """The only pixel is its own neighbour: kernels are 1 after normalisation."""
    prob = np.array([0.2, 0.5, 0.3], dtype=np.float32).reshape(3, 1, 1)
    got = dense_crf(
        prob,
        np.array([[[9, 200, 31]]], dtype=np.uint8),
        gaussian=(3, 0.5),
        bilateral=(50, 5, 0.25),
        num_iters=4,
        backend=backend,
    )
    q = prob.ravel().astype(np.float64)
    for _ in range(4):
        q = prob.ravel() * np.exp(0.75 * q)
        q /= q.sum()
    np.testing.assert_allclose(got.ravel(), q, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hw", [(1, 7), (6, 1), (2, 3)])
def test_thin_images(backend, hw):
    got = dense_crf(make_prob(4, *hw), make_img(*hw), backend=backend)
    assert got.shape == (4, *hw)
    np.testing.assert_allclose(got.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_labels", [1, 2, 3, 21, 81])
def test_marginals_are_probabilities(backend, num_labels):
    got = dense_crf(make_prob(num_labels, 23, 38), make_img(23, 38), backend=backend)
    assert got.shape == (num_labels, 23, 38)
    assert got.dtype == np.float32
    assert got.min() >= 0
    np.testing.assert_allclose(got.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_iterations_returns_the_clipped_normalised_prob(backend):
    prob = np.array([0.0, 0.25, 0.5], dtype=np.float32)[:, None, None] * np.ones((3, 4, 9))
    got = dense_crf(prob, make_img(4, 9), num_iters=0, backend=backend)
    expected = np.array([MIN_PROB, 0.25, 0.5]) / (MIN_PROB + 0.75)
    np.testing.assert_allclose(got[:, 2, 5], expected, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_kernels_return_the_normalised_prob(backend):
    prob = make_prob(3, 5, 8).clip(0.01)
    got = dense_crf(prob, make_img(5, 8), gaussian=None, bilateral=None, backend=backend)
    np.testing.assert_allclose(got, prob / prob.sum(0), atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_relabelling_commutes(backend):
    prob, img = make_prob(5, 17, 29), make_img(17, 29)
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(
        dense_crf(prob[order], img, backend=backend),
        dense_crf(prob, img, backend=backend)[order],
        atol=1e-5,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_evidence_stays_undecided(backend):
    prob = np.full((4, 12, 18), 0.25, dtype=np.float32)
    got = dense_crf(prob, make_img(12, 18), backend=backend)
    np.testing.assert_allclose(got, 0.25, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_image_takes_the_majority(backend):
    rng = np.random.default_rng(0)
    right = rng.random((26, 40)) < 0.75
    prob = np.stack([np.where(right, 0.7, 0.3), np.where(right, 0.3, 0.7)])
    img = np.full((26, 40, 3), 128, dtype=np.uint8)
    assert (dense_crf(prob, img, backend=backend)[0] > 0.9).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_follow_the_edge_of_the_image(backend):
    """Noisy evidence over two flat regions of a non-square image is cleaned up to the border."""
    height, width = 31, 58
    row, col = np.indices((height, width))
    left = col + 0.4 * row < 30
    img = np.where(left[..., None], [220, 60, 30], [30, 90, 160]).astype(np.uint8)
    wrong = np.random.default_rng(0).random((height, width)) < 0.25
    left_prob = np.where(left ^ wrong, 0.7, 0.3)
    prob = np.stack([1 - left_prob, left_prob])
    refined = dense_crf(prob, img, bilateral=(30, 10, 5), backend=backend)[1] > 0.5
    assert (refined == left).mean() > 0.995
    # The smoothness kernel alone does not know the border.
    smooth = dense_crf(prob, img, bilateral=None, backend=backend)[1] > 0.5
    assert (smooth == left).mean() < (refined == left).mean()


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensor_in_tensor_out(dtype):
    prob, img = torch.from_numpy(make_prob(3, 9, 14)).to(dtype), torch.from_numpy(make_img(9, 14))
    got = dense_crf(prob.requires_grad_(), img)
    assert isinstance(got, torch.Tensor)
    assert got.dtype == torch.float32
    assert not got.requires_grad
    expected = dense_crf(prob.detach().float().numpy(), img.numpy())
    np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_read_only_and_strided_inputs_are_left_alone(backend):
    prob = make_prob(3, 9, 28)[:, :, ::2]
    img = make_img(14, 9).transpose(1, 0, 2)
    prob.flags.writeable = img.flags.writeable = False
    before = prob.copy(), img.copy()
    got = dense_crf(prob, img, backend=backend)
    np.testing.assert_array_equal(prob, before[0])
    np.testing.assert_array_equal(img, before[1])
    expected = dense_crf(before[0].copy(order="C"), before[1].copy(order="C"), backend=backend)
    np.testing.assert_array_equal(got, expected)


def with_nan(prob):
    prob[1, 2, 3] = np.nan
    return prob


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prob": with_nan(make_prob(3, 9, 14))}, "without NaN"),
        ({"prob": 1.01 + make_prob(3, 9, 14)}, r"in \[0, 1\]"),
        ({"prob": -0.01 - make_prob(3, 9, 14)}, r"in \[0, 1\]"),
        ({"prob": make_prob(3, 14, 9)}, r"\(14, 9\) but img is \(9, 14\)"),
        ({"prob": make_prob(3, 9, 14)[0]}, r"\(C, H, W\)"),
        ({"prob": np.zeros((0, 9, 14), np.float32)}, "at least one label"),
        ({"prob": np.zeros((3, 9, 14), np.uint8)}, "floating point, got .* uint8"),
        ({"img": make_img(9, 14).astype(np.float32)}, "uint8, got .* float32"),
        ({"img": make_img(9, 14)[..., 0]}, r"\(H, W, 3\)"),
        ({"img": make_img(9, 14).transpose(2, 0, 1)}, r"\(H, W, 3\)"),
        ({"num_iters": -1}, "num_iters .* -1"),
        ({"gaussian": (0, 3)}, "sigma_xy of gaussian .* > 0, got 0"),
        ({"gaussian": (3, 3, 3)}, r"\(sigma_xy, compat\)"),
        ({"bilateral": (50, float("nan"), 10)}, "sigma_rgb of bilateral"),
        ({"bilateral": (50, 5, -1)}, "compat of bilateral .* >= 0, got -1"),
        ({"bilateral": (1e-4, 1e-4, 1), "backend": "reference"}, "sigmas are too small"),
        ({"bilateral": (1e-4, 1e-4, 1), "backend": "torch"}, "sigmas are too small"),
        ({"bilateral": (1e-4, 1e-4, 1)}, "sigmas are too small"),
        ({"backend": "cuda"}, "backend must be one of .*'numba', 'reference', .*got 'cuda'"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"prob": make_prob(3, 9, 14), "img": make_img(9, 14)} | change
    with pytest.raises(ValueError, match=message):
        dense_crf(arguments.pop("prob"), arguments.pop("img"), **arguments)


def test_without_numba_the_reference_computes(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "adcam.ops.dense_crf.numba_lattice", raising=False)
    assert "pip install numba" in available_backends()["numba"]
    prob, img = make_prob(2, 8, 5), make_img(8, 5)
    np.testing.assert_array_equal(dense_crf(prob, img), dense_crf(prob, img, backend="reference"))
    with pytest.raises(RuntimeError, match=r"'numba' cannot run: .*numba"):
        DenseCRF(img, backend="numba")


def test_a_backend_of_a_gpu_is_chosen_without_loading_numba(monkeypatch):
    monkeypatch.setattr(interface, "numba_not_supported_reasons", None)  # cannot be called
    assert interface._choose("auto", torch.device("meta")) == "torch"
    assert interface._choose("torch", torch.device("meta")) == "torch"
    with pytest.raises(TypeError):
        interface._choose("numba", torch.device("meta"))


@needs("numba")
def test_without_a_folder_for_compiled_code_the_reference_computes(monkeypatch):
    import numba

    def njit(**options):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(numba, "njit", njit)
    monkeypatch.delitem(sys.modules, "adcam.ops.dense_crf.numba_lattice", raising=False)
    assert "no locator available; name one in NUMBA_CACHE_DIR" in available_backends()["numba"]
    assert dense_crf(make_prob(2, 8, 5), make_img(8, 5)).shape == (2, 8, 5)


def test_rounding_outside_the_unit_interval_is_forgiven():
    prob = np.array([1 + 1e-6, -1e-6])[:, None, None] * np.ones((2, 3, 5))
    np.testing.assert_allclose(dense_crf(prob, make_img(3, 5))[0], 1, atol=1e-3)


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    reason = available_backends()["pydensecrf"]
    assert reason is not None
    assert "pip install" in reason
    with pytest.raises(RuntimeError, match=r"cannot run: .*pydensecrf"):
        dense_crf(make_prob(2, 3, 5), make_img(3, 5), backend="pydensecrf")
    assert available_backends()["reference"] is None
    assert dense_crf(make_prob(2, 3, 5), make_img(3, 5)).shape == (2, 3, 5)


# ---- pydensecrf ----------------------------------------------------------------------------------


@needs_pydensecrf
@pytest.mark.parametrize(
    "kernels", [((3, 3), (50, 5, 10)), ((1, 3), (67, 3, 4)), (None, (8, 13, 4))]
)
@pytest.mark.parametrize(("num_labels", "hw"), [(2, (48, 73)), (3, (81, 52)), (21, (40, 31))])
@pytest.mark.parametrize("backend", OURS)
def test_equals_pydensecrf(kernels, num_labels, hw, backend):
    assert hw[0] * hw[1] % 4 == 0  # else the C++ code adds vertices of its own, see below
    prob, img = make_prob(num_labels, *hw), make_img(*hw)
    settings = {"gaussian": kernels[0], "bilateral": kernels[1]}
    ours = dense_crf(prob, img, backend=backend, **settings)
    theirs = dense_crf(prob, img, backend="pydensecrf", **settings)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.abs(ours - theirs).mean() < 1e-6


@needs_pydensecrf
@pytest.mark.parametrize(
    ("img", "mean_tolerance"),
    [
        (make_img(37, 53), 1e-6),
        # Dark noise lies around the origin, where the C++ code puts its extra vertices.
        (np.random.default_rng(0).integers(0, 60, (37, 53, 3)).astype(np.uint8), 1e-3),
    ],
)
@pytest.mark.parametrize("backend", OURS)
def test_close_to_pydensecrf_where_it_pads(img, mean_tolerance, backend):
    """H·W is no multiple of 4: the SSE code pads with points at the origin (README)."""
    prob = make_prob(3, 37, 53)
    ours, theirs = (dense_crf(prob, img, backend=b) for b in (backend, "pydensecrf"))
    assert (ours.argmax(0) == theirs.argmax(0)).mean() > 0.999
    assert np.abs(ours - theirs).mean() < mean_tolerance


@pytest.mark.slow
@pytest.mark.shared
@needs_pydensecrf
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("bilateral", [(50, 5, 10), (36, 3, 4)])
def test_agrees_with_pydensecrf_on_photographs(voc_animals: Path, backend, bilateral):
    paths = sorted((voc_animals / "JPEGImages").glob("*.jpg"))[::180]
    assert len(paths) >= 8
    for number, path in enumerate(paths):
        with Image.open(path) as picture:
            img = np.asarray(picture.convert("RGB"))
        num_labels = 2 + number % 3
        # As class maps are: smooth, from a coarse grid.
        coarse = torch.from_numpy(make_prob(num_labels, 14, 14, seed=number))[None]
        prob = torch.nn.functional.interpolate(coarse, img.shape[:2], mode="bilinear")[0]
        ours, theirs = (
            dense_crf(prob.numpy(), img, bilateral=bilateral, backend=b)
            for b in (backend, "pydensecrf")
        )
        assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.999
        assert np.abs(ours - theirs).mean() <= 1e-2


@needs_pydensecrf
def test_unary_is_that_of_pydensecrf_utils():
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    prob, img = make_prob(3, 12, 20), make_img(12, 20)
    prob[0, :4] = 0  # clipped
    crf = DenseCRF2D(20, 12, 3)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(prob)))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=50, srgb=5, rgbim=img, compat=10)
    expected = np.array(crf.inference(10)).reshape(3, 12, 20)
    np.testing.assert_array_equal(dense_crf(prob, img, backend="pydensecrf"), expected)


@pytest.mark.shared
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", range(4))
def test_golden(shared_dir: Path, backend, case):
    """Values of the reference CRF, stored as float16: half a float16 step near 1 is 2.5e-4."""
    golden = shared_dir / "golden"
    cases = json.loads((golden / "dense_crf.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) == 4
    meta = cases[case]
    with np.load(golden / "dense_crf.npz") as arrays:
        img, prob, stored = (arrays[f"{name}{case}"] for name in ("img", "prob", "q"))
    got = dense_crf(
        prob,
        img,
        gaussian=(meta["g_sxy"], meta["g_compat"]),
        bilateral=(meta["b_sxy"], meta["b_srgb"], meta["b_compat"]),
        num_iters=meta["iters"],
        backend=backend,
    )
    if backend == "pydensecrf":
        np.testing.assert_array_equal(got.astype(np.float16), stored)
        return
    assert (got.argmax(0) == stored.argmax(0)).mean() >= 0.999
    assert np.abs(got - stored.astype(np.float32)).max() < 3e-4
