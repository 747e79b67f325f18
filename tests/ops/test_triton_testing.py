"""The test tools themselves: a small kernel, interpreted, compiled ahead of time, on a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from triton_testing import (
    CAPABILITIES,
    SHARED_MEMORY,
    compile_ahead,
    interpreted,
    nan_poisoned,
    needs_triton,
    on_each_gpu,
    record_launches,
)

from adcam.ops import _backends, _launch


def row_sums(values: torch.Tensor) -> torch.Tensor:
    import triton_example

    out = torch.full(values.shape[:1], torch.nan, device=values.device)
    triton_example.row_sums[(values.shape[0],)](values, out, values.shape[1], 16)
    return out


@pytest.mark.parametrize("columns", [1, 16, 37])
@interpreted
def test_interpreter(columns: int) -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
    values = torch.rand(3, columns, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(row_sums(values), values.sum(dim=1))


@interpreted
def failing_body(message: str) -> None:
    raise ValueError(message)


@needs_triton
def test_a_failure_comes_back() -> None:
    with pytest.raises(ValueError, match="from the other side"):
        failing_body(message="from the other side")
    assert os.environ.get("TRITON_INTERPRET") != "1"


def test_each_case_that_is_never_slow_has_one_gpu_in_turn() -> None:
    cases = on_each_gpu([(1,), (2,), (3,)], never_slow=[(2,), (4,)])
    assert sorted(case.values for case in cases) == [
        (number, sm) for number in (1, 2, 3, 4) for sm in CAPABILITIES
    ]
    assert [case.values for case in cases if not case.marks] == [
        (2, CAPABILITIES[0]),
        (4, CAPABILITIES[1]),
    ]


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiler(capability: int) -> None:
    import triton_example

    compiled = compile_ahead(
        triton_example.row_sums,
        capability,
        signature={"values": "*fp32", "out": "*fp32", "columns": "i32"},
        constants={"block": 16},
    )
    assert "ld.global" in compiled.asm["ptx"]


@needs_triton
def test_a_kernel_that_does_not_fit_into_a_gpu_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton_example

    monkeypatch.setitem(SHARED_MEMORY, 80, 3)  # a sum over four warps needs more
    with pytest.raises(AssertionError):
        compile_ahead(
            triton_example.row_sums,
            80,
            signature={"values": "*fp32", "out": "*fp32", "columns": "i32"},
            constants={"block": 128},
        )


@pytest.mark.parametrize("capability", [None, *CAPABILITIES])
def test_launches_are_recorded_in_the_tile_of_a_gpu(capability: int | None) -> None:
    name, device = "common_neighbor, float16", torch.device("cpu")
    places = {80: _launch.SHIPPED[8, 0][name], 90: _launch.SHIPPED[9, 0][name]}
    with record_launches(capability):
        assert _launch.find_tile(name, device) == _launch.TILES[name][places.get(capability, 0)]
    assert _launch.find_tile(name, device) == _launch.TILES[name][0]


KERNELS = {
    "common_neighbor": "gate_product",
    "token_attention": "add_mean",
    "prepare": "prepare",
    "walk": "walk",
    "two_hop_walk": "walk_two_hops",
}


@needs_triton
@pytest.mark.checkout
@pytest.mark.parametrize("name", _launch.TILES)
def test_what_is_tuned_launches_the_kernel_in_the_tile_of_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools" / "benchmark"))
    import tune

    monkeypatch.setattr(_backends, "_device_reason", lambda tensors: None)
    asked: list[str] = []
    find_tile = _launch.find_tile
    monkeypatch.setattr(
        _launch, "find_tile", lambda key, device: (asked.append(key), find_tile(key, device))[1]
    )
    tokens = 33**2 if "long" in name else 9
    with record_launches() as launches:
        work = tune.work_of(name, tokens, 2, "cpu")
        launches.clear()
        asked.clear()
        with _launch.force_tile(name, _launch.TILES[name][1]):
            work()
    assert name in asked
    kernel = KERNELS[name.partition(",")[0]]
    (launch, *_) = (launch for launch in launches if launch.name == kernel)
    assert launch.values.get("tokens", launch.values.get("patches")) == tokens


@pytest.mark.gpu
def test_gpu(gpu: torch.device) -> None:
    values = torch.rand(3, 37, generator=torch.Generator().manual_seed(0)).to(gpu)
    torch.testing.assert_close(row_sums(values), values.sum(dim=1))


def test_full_float32_ends_with_the_test(
    full_float32: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not torch.backends.cudnn.allow_tf32
    monkeypatch.undo()
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_poison_is_for_floats_alone(dtype: torch.dtype) -> None:
    """Triton's autotuner makes a buffer of integers, which NaN cannot fill."""
    with nan_poisoned():
        assert torch.empty(3, dtype=dtype).dtype == dtype
        assert torch.zeros(2).new_empty(3, dtype=dtype).dtype == dtype
        assert torch.empty_like(torch.zeros(3, dtype=dtype)).dtype == dtype
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.zeros(3)).isnan().all()
        assert torch.zeros(2).new_empty(3).isnan().all()
