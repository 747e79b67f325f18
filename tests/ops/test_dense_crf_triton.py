"""Triton kernels of the CRF against the reference: interpreted, counted, compiled, on a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import OpCounter
from test_dense_crf import make_img, make_prob
from triton_testing import (
    CAPABILITIES,
    compile_ahead,
    interpreted,
    nan_poisoned,
    needs_triton,
    on_each_gpu,
)

from adcam.ops.dense_crf import DenseCRF, dense_crf, dense_crf_batch, reference

BOTH = {"gaussian": (3, 3), "bilateral": (50, 5, 10)}
TYPES = {
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


@dataclass(frozen=True)
class Launch:
    """A launch with its arguments by name."""

    kernel: Any
    values: dict[str, Any]
    is_exact: bool

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    @property
    def constants(self) -> dict[str, Any]:
        kinds = getattr(self.kernel, "params", ())
        return {kind.name: self.values[kind.name] for kind in kinds if kind.is_constexpr}


@contextmanager
def recorded(*, run: bool) -> Iterator[list[Launch]]:
    """Collect launches; without ``run`` nothing is computed."""
    from adcam.ops.dense_crf import triton_lattice

    launches: list[Launch] = []
    launch = triton_lattice._launch

    def record(kernel: Any, grid: tuple[int, ...], *args: Any, is_exact: bool = False) -> None:
        values = dict(zip(kernel.arg_names, args, strict=True))
        launches.append(Launch(kernel, values, is_exact))
        if run:
            launch(kernel, grid, *args, is_exact=is_exact)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_lattice, "_launch", record)
        yield launches


def check(prob: np.ndarray, img: np.ndarray, **options: Any) -> None:
    with nan_poisoned():
        got = dense_crf(prob, img, backend="triton", **options)
    want = dense_crf(prob, img, backend="reference", **options)
    assert got.dtype == np.float32 and got.shape == prob.shape
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert np.abs(got - want).mean() < 2e-6


@pytest.mark.parametrize(
    ("num_labels", "hw", "options"),
    [
        (2, (7, 10), BOTH),
        (3, (17, 6), {"gaussian": None, "bilateral": (36, 3, 4)}),
        (4, (8, 11), {"gaussian": (1, 3), "bilateral": None}),
        (5, (1, 7), BOTH),
        (6, (6, 1), BOTH),
        (21, (3, 5), BOTH),
        (81, (3, 4), BOTH),  # in three groups of channels
        (3, (1, 1), BOTH),
    ],
)
@interpreted
def test_interpreted(num_labels: int, hw: tuple[int, int], options: dict[str, Any]) -> None:
    check(make_prob(num_labels, *hw), make_img(*hw), num_iters=2, **options)


@interpreted
def test_interpreted_without_work() -> None:
    prob, img = make_prob(3, 4, 9), make_img(4, 9)
    check(prob, img, num_iters=0)
    check(prob, img, gaussian=None, bilateral=None)
    assert (dense_crf(prob[:1], img, backend="triton") == 1).all()


@interpreted
def test_interpreted_long_sums() -> None:
    """On a constant image hundreds of pixels meet at a vertex: their sum is split."""
    from adcam.ops.dense_crf import triton_lattice

    img = np.full((19, 23, 3), 90, dtype=np.uint8)
    lattice = triton_lattice.MeanField([torch.from_numpy(img)], **BOTH)._lattice
    assert lattice is not None
    assert len(lattice.parted) > 5 and lattice.first_part.diff().max() > 2
    assert lattice.first_entry.diff().max() == 64
    check(make_prob(3, 19, 23), img, num_iters=2)


@interpreted
def test_interpreted_batch() -> None:
    """Other sizes and numbers of labels change nothing, nor does what is computed together."""
    sizes = [(5, 8), (8, 3), (1, 3)]
    probs = [torch.from_numpy(make_prob(3, *hw, seed=i)) for i, hw in enumerate(sizes)]
    imgs = [make_img(*hw, seed=i) for i, hw in enumerate(sizes)]
    options: dict[str, Any] = {"num_iters": 1, "backend": "triton"}
    with nan_poisoned():
        together = dense_crf_batch(probs, imgs, **options)
    for prob, img, got in zip(probs, imgs, together, strict=True):
        assert torch.equal(got, dense_crf(prob, img, **options))
    probs[1] = torch.from_numpy(make_prob(6, *sizes[1], seed=1))
    for prob, img, got in zip(probs, imgs, dense_crf_batch(probs, imgs, **options), strict=True):
        assert torch.equal(got, dense_crf(prob, img, **options))


@interpreted
def test_interpreted_lattice_is_that_of_the_reference() -> None:
    """To the bit: weights before normalisation. And the same vertices and neighbours."""
    from adcam.ops.dense_crf import triton_lattice
    from adcam.ops.dense_crf.placement import place_kernels

    img = np.random.default_rng(0).integers(0, 256, (13, 21, 3)).astype(np.uint8)
    pixels = torch.from_numpy(img).reshape(-1, 3)
    placed = place_kernels((13, 21), (1.7, 3), (11, 60, 4))
    numbers = triton_lattice._number_images(placed, 1)
    _, weights = triton_lattice._embed(pixels, [(13, 21)], placed, numbers)
    oracle = reference.MeanField(img, gaussian=(1.7, 3), bilateral=(11, 60, 4))
    tested = triton_lattice.MeanField(
        [torch.from_numpy(img)], gaussian=(1.7, 3), bilateral=(11, 60, 4)
    )._lattice
    assert tested is not None
    first = 0
    for kernel, (normalised, _) in zip(placed, oracle._kernels, strict=True):
        lattice = normalised._lattice
        expected = lattice._slice.data.reshape(len(pixels), -1).T
        np.testing.assert_array_equal(weights[kernel.columns], expected)
        size = lattice.num_vertices
        mine = tested.corners[kernel.columns].numpy() % tested.num_vertices
        theirs = lattice._slice.indices.reshape(len(pixels), -1).T
        pairs = np.unique(np.stack([mine.ravel(), theirs.ravel()]), axis=1)
        assert mine.min() == first and pairs.shape[1] == size == len(np.unique(mine))
        for axis, blur in enumerate(lattice._blurs):
            after, before = (x[axis, first:][:size] for x in (tested.after, tested.before))
            (here,) = (after >= 0).nonzero(as_tuple=True)
            assert len(here) == (before >= 0).sum() == (blur.nnz - size) / 2 > 0
            assert torch.equal(tested.before[axis, after[here].long()].long(), here + first)
        first += size
    assert first == tested.num_vertices


@interpreted
def test_interpreted_rounding() -> None:
    import triton_example

    values = torch.cat([torch.arange(-16, 16) / 4, torch.tensor([-1e-10, 1e-10, 8e6 + 0.5, -3e9])])
    values = torch.cat([values, torch.linspace(-99, 99, 28)]).float()
    out = torch.empty_like(values)
    triton_example.round_all[(1,)](values, out, len(values))
    assert len(values) == 64 and torch.equal(out, values.round())


@interpreted
def test_interpreted_refusals() -> None:
    prob, img = make_prob(2, 4, 5), make_img(4, 5)
    with pytest.raises(ValueError, match="sigmas are too small"):
        dense_crf(prob, img, bilateral=(1e-4, 1e-4, 1), backend="triton")
    from adcam.ops.dense_crf import triton_lattice

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_lattice, "_MAX_ROWS", 359)
        with pytest.raises(ValueError, match="20 pixels are too many"):
            dense_crf(prob, img, backend="triton")


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("case", range(4))
@interpreted
def test_interpreted_golden(shared_dir: Path, case: int) -> None:
    """Values of the reference CRF, stored as float16."""
    golden = shared_dir / "golden"
    meta = json.loads((golden / "dense_crf.json").read_text(encoding="utf-8"))["cases"][case]
    with np.load(golden / "dense_crf.npz") as arrays:
        img, prob, stored = (arrays[f"{name}{case}"] for name in ("img", "prob", "q"))
    got = dense_crf(
        prob,
        img,
        gaussian=(meta["g_sxy"], meta["g_compat"]),
        bilateral=(meta["b_sxy"], meta["b_srgb"], meta["b_compat"]),
        num_iters=meta["iters"],
        backend="triton",
    )
    assert (got.argmax(0) == stored.argmax(0)).mean() >= 0.999
    assert np.abs(got - stored.astype(np.float32)).max() < 3e-4


# ---- launches and bytes --------------------------------------------------------------------------


def touched_bytes(launch: Launch, num_vertices: int) -> int:
    """Bytes of what a launch reads and writes, each once, however often it is read again."""
    total = 0
    for name, value in launch.values.items():
        if not isinstance(value, torch.Tensor) or name == "table":
            continue
        if launch.name == "blur":  # one axis
            value = value[0, launch.values["start"] :]
        total += value.numel() * value.element_size()
    row = 4 * launch.values["width"]
    return (
        total
        + row
        * {
            "sum_stretches": launch.values.get("num_stretches", 0),
            "blur": 2 * (num_vertices - launch.values.get("start", 0)),
            "update": num_vertices if launch.values.get("num_corners") else 0,
        }[launch.name]
    )


@pytest.mark.parametrize("num_labels", [2, 3, 5])
@interpreted
def test_launches_and_bytes(num_labels: int) -> None:
    """Eight launches an update, and the bytes that the README counts."""
    hw, num_iters = (7, 12), 2
    crf = DenseCRF(make_img(*hw), backend="triton", **BOTH)  # type: ignore[arg-type]
    lattice = crf._mean_field._lattice
    with recorded(run=True) as launches:
        crf.infer(make_prob(num_labels, *hw), num_iters=num_iters)
    update = ["sum_stretches", *["blur"] * 6, "update"]
    assert [launch.name for launch in launches] == ["update", *num_iters * update]
    num_pixels, num_vertices = hw[0] * hw[1], lattice.num_vertices
    row = 4 * launches[0].values["width"]
    assert row == {2: 4, 3: 8, 5: 16}[num_labels]
    blurred = 3 * num_vertices + 3 * (num_vertices - lattice.starts[3])
    splat = 9 * 8 * num_pixels + 8 * len(lattice.target) + 4
    for launch in launches[1:]:
        bytes_ = touched_bytes(launch, num_vertices)
        if launch.name == "sum_stretches":
            assert bytes_ == splat + row * (num_pixels + len(lattice.target))
        elif launch.name == "update" and not launch.values["is_last"]:
            assert bytes_ == 9 * 8 * num_pixels + row * (num_vertices + 2 * num_pixels)
    blurs = [launch for launch in launches[:9] if launch.name == "blur"]
    assert sum(touched_bytes(x, num_vertices) for x in blurs) == blurred * (8 + 2 * row)


@interpreted
def test_launches_of_many_labels_and_long_sums() -> None:
    """More than 32 channels go in groups, which share the table of vertices."""
    img = np.full((9, 12, 3), 90, dtype=np.uint8)
    with recorded(run=True) as launches:
        dense_crf(make_prob(81, 9, 12), img, num_iters=1, backend="triton")
    build = ["embed", "embed", "connect", "connect", *2 * ["sum_stretches"], *6 * ["blur"]]
    group = [*2 * ["sum_stretches"], *6 * ["blur"], "add_message"]
    names = [launch.name for launch in launches]
    assert names == [*build, "normalise", "normalise", "update", *3 * group, "update"]
    tables = {launch.values["table"].shape for launch in launches[-5:-1]}
    assert {shape[1] for shape in tables} == {28}


@pytest.mark.parametrize("backend", ["torch", "triton"])
@interpreted
def test_slices_bound_memory(backend: str) -> None:
    """Images of as many labels go in slices that fit, two with three, with the same results to the
    bit; those of one and of four labels stay among themselves."""
    from adcam.ops.dense_crf import interface, torch_lattice, triton_lattice

    sizes = [(4, 5), (2, 5), (5, 4), (6, 7), (3, 3), (2, 2), (3, 2)]
    labels = [2, 3, 2, 2, 2, 4, 1]
    probs = [
        make_prob(num, *hw, seed=i) for i, (num, hw) in enumerate(zip(labels, sizes, strict=True))
    ]
    imgs = [make_img(*hw, seed=i) for i, hw in enumerate(sizes)]
    alone = [
        dense_crf(prob, img, num_iters=3, backend=backend)
        for prob, img in zip(probs, imgs, strict=True)
    ]
    built: list[list[tuple[int, ...]]] = []
    module = {"torch": torch_lattice, "triton": triton_lattice}[backend]
    mean_field = module.MeanField

    def count(imgs: list[torch.Tensor], **kernels: Any) -> Any:
        built.append([tuple(img.shape[:2]) for img in imgs])
        return mean_field(imgs, **kernels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MeanField", count)
        patch.setattr(interface, "_SLICE_BYTES", 40 * (400 + 24 * 3))
        parts = dense_crf_batch(probs, imgs, num_iters=3, backend=backend)
    first, three, second, large, small, four, one = sizes
    assert built == [[one], [first, second], [large], [small, three], [four]]
    for got, want in zip(parts, alone, strict=True):
        np.testing.assert_array_equal(got, want)


@needs_triton
def test_waits_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three for images that are computed together: is all in [0, 1], which vertices, how many."""
    from adcam.ops.dense_crf import interface, triton_lattice  # noqa: F401

    probs = [torch.from_numpy(make_prob(3, 9, 12, seed=i)) for i in range(4)]
    imgs = [torch.from_numpy(make_img(9, 12, seed=i)) for i in range(4)]
    tolist, to = torch.Tensor.tolist, torch.Tensor.to
    seen: list[str] = []

    def send(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if not options.get("non_blocking") and tensor.dtype != torch.uint8:
            seen.append("to")  # from memory that is not pinned: it would wait
        return to(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: (seen.append("tolist"), tolist(x))[1])
    monkeypatch.setattr(torch.Tensor, "to", send)
    monkeypatch.setattr(interface, "_choose", lambda *_: "triton")
    with recorded(run=False), OpCounter() as counter:
        monkeypatch.setattr(torch, "empty", torch.zeros)
        dense_crf_batch(probs, imgs, **BOTH)  # type: ignore[arg-type]
    assert seen == ["tolist", "tolist"] and counter.waited == ["nonzero"]


# ---- compiled ahead of time ----------------------------------------------------------------------


def launches_of(num_labels: int) -> list[Launch]:
    """Every kernel as a call launches it, each set of constants once; nothing is computed."""
    hw = (9, 12)
    with recorded(run=False) as launches:
        from adcam.ops.dense_crf import triton_lattice

        with pytest.MonkeyPatch.context() as patch:  # all entries at one vertex: a long sum
            patch.setattr(torch, "empty", torch.zeros)
            crf = triton_lattice.MeanField([torch.from_numpy(make_img(*hw))], **BOTH)  # type: ignore[arg-type]
        crf.infer([torch.from_numpy(make_prob(num_labels, *hw))], num_iters=2)
    distinct = {(launch.name, *launch.constants.items()): launch for launch in launches}
    return list(distinct.values())


def compile_launch(launch: Launch, capability: int) -> Any:
    """Compile with the types that Triton takes from a launch; its numbers are not specialised."""
    signature, constants = {}, launch.constants
    for kind in launch.kernel.params:
        value = launch.values[kind.name]
        if isinstance(value, torch.Tensor):
            aligned = value.data_ptr() % 16 == 0
            signature[kind.name] = TYPES[value.dtype] + ("" if aligned else ":1")
        elif kind.name not in constants:
            assert kind.do_not_specialize or isinstance(value, float)
            signature[kind.name] = "fp32" if isinstance(value, float) else "i32"
    return compile_ahead(
        launch.kernel,
        capability,
        signature=signature,
        constants=constants,
        enable_fp_fusion=not launch.is_exact,
    )


def check_compiles(num_labels: int, capability: int) -> None:
    launches = launches_of(num_labels)
    kinds = {"embed", "connect", "sum_stretches", "blur", "normalise", "update"}
    assert {launch.name for launch in launches} == (
        kinds | {"add_message"} if num_labels > 33 else kinds
    )
    for launch in launches:
        ptx = compile_launch(launch, capability).asm["ptx"]
        is_sum_of_products = launch.values.get("has_weights", False)
        assert launch.is_exact == (launch.name == "embed" or is_sum_of_products)
        if launch.is_exact:  # products are rounded: pixels keep simplices, sums their bits
            assert "fma.rn.f32" not in ptx
        if launch.values.get("width", 1) % 4 == 0:  # rows of channels are read as vectors
            assert "ld.global.v4" in ptx


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiles_as_launched(capability: int) -> None:
    check_compiles(3, capability)


@needs_triton
@pytest.mark.parametrize(
    ("num_labels", "capability"),
    on_each_gpu([(4,), (9,), (33,), (34,)], never_slow=[(2,), (5,), (21,), (81,)]),
)
def test_compiles_other_numbers_of_labels(num_labels: int, capability: int) -> None:
    check_compiles(num_labels, capability)


# ---- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("num_labels", [2, 3, 5, 21, 81])
@pytest.mark.parametrize("kernels", [BOTH, {"gaussian": None, "bilateral": (36, 3, 4)}])
def test_gpu(gpu: torch.device, num_labels: int, kernels: dict[str, Any]) -> None:
    sizes = [(63, 101), (375, 500), (1, 7), (40, 29)]
    probs = [make_prob(num_labels, *hw, seed=i) for i, hw in enumerate(sizes)]
    imgs = [make_img(*hw, seed=i) for i, hw in enumerate(sizes)]
    imgs[3] = np.full_like(imgs[3], 90)
    on_gpu = [torch.from_numpy(prob).to(gpu) for prob in probs]
    with nan_poisoned():
        got = dense_crf_batch(on_gpu, imgs, backend="triton", **kernels)
    for prob, img, refined in zip(probs, imgs, got, strict=True):
        want = dense_crf(prob, img, backend="reference", **kernels)
        np.testing.assert_allclose(refined.cpu().numpy(), want, atol=5e-4)
    again = dense_crf_batch(on_gpu, imgs, backend="triton", **kernels)
    assert all(torch.equal(*pair) for pair in zip(got, again, strict=True))


@pytest.mark.gpu
def test_gpu_two_labels_with_three(gpu: torch.device) -> None:
    """They go together, and each is what it is alone, to the bit."""
    sizes = [(63, 101), (120, 160), (1, 7), (40, 29)]
    probs = [
        torch.from_numpy(make_prob(2 + i % 2, *hw, seed=i)).to(gpu) for i, hw in enumerate(sizes)
    ]
    imgs = [make_img(*hw, seed=i) for i, hw in enumerate(sizes)]
    together = dense_crf_batch(probs, imgs, backend="triton", **BOTH)  # type: ignore[arg-type]
    for prob, img, got in zip(probs, imgs, together, strict=True):
        want = dense_crf(prob, img, backend="triton", **BOTH)  # type: ignore[arg-type]
        assert torch.equal(got, want)


@pytest.mark.gpu
def test_gpu_lattice_is_that_of_the_interpreter(gpu: torch.device) -> None:
    """Weights are those of the reference to the bit: products are not fused with sums."""
    from adcam.ops.dense_crf import triton_lattice
    from adcam.ops.dense_crf.placement import place_kernels

    img = np.random.default_rng(0).integers(0, 256, (113, 221, 3)).astype(np.uint8)
    placed = place_kernels((113, 221), (1.7, 3), (11, 6, 4))
    numbers = triton_lattice._number_images(placed, 1).to(gpu)
    pixels = torch.from_numpy(img).to(gpu).reshape(-1, 3)
    _, weights = triton_lattice._embed(pixels, [(113, 221)], placed, numbers)
    oracle = reference.MeanField(img, gaussian=(1.7, 3), bilateral=(11, 6, 4))
    for kernel, (normalised, _) in zip(placed, oracle._kernels, strict=True):
        expected = normalised._lattice._slice.data.reshape(len(pixels), -1).T
        np.testing.assert_array_equal(weights[kernel.columns].cpu(), expected)
