"""The `layers` option: which blocks it names."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcam.ops.token_attention import resolve_layers


@pytest.mark.parametrize(
    ("layers", "depth", "expected"),
    [
        ("all", 3, (0, 1, 2)),
        ("last:1", 12, (11,)),
        ("last:8", 12, (4, 5, 6, 7, 8, 9, 10, 11)),
        ("last:2/3", 12, (4, 5, 6, 7, 8, 9, 10, 11)),
        ("last:2/3", 4, (1, 2, 3)),  # 2.67 blocks are rounded up
        ("last:1/2", 1, (0,)),
        ("last:3/3", 5, (0, 1, 2, 3, 4)),
        ((3, 1), 4, (1, 3)),
        ([-1, 0], 4, (0, 3)),
        ((-1, 3), 4, (3,)),  # the same block named twice
    ],
)
def test_known_choices(layers: str | tuple[int, ...], depth: int, expected: tuple[int]) -> None:
    assert resolve_layers(layers, depth) == expected


@pytest.mark.parametrize(
    "layers",
    [
        *("last:0", "last:5", "last:-1", "last:5/4", "last:0/3", "last:1/0", "last:", "last:x"),
        *("last:1.5", "first:2", "", "ALL"),
    ],
)
def test_unreadable_or_unfitting_texts(layers: str) -> None:
    with pytest.raises(ValueError, match="layers"):
        resolve_layers(layers, 4)


@pytest.mark.parametrize("layers", [(), (4,), (-5,), (0, 7)])
def test_indices_outside_the_network(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"-4\.\.3"):
        resolve_layers(layers, 4)


@settings(deadline=None)
@given(depth=st.integers(1, 40), top=st.integers(1, 12), bottom=st.integers(1, 12))
def test_a_share_is_the_smallest_run_of_last_blocks_that_reaches_it(
    depth: int, top: int, bottom: int
) -> None:
    if top > bottom:
        top, bottom = bottom, top
    chosen = resolve_layers(f"last:{top}/{bottom}", depth)
    assert chosen == tuple(range(depth - len(chosen), depth))
    assert len(chosen) * bottom >= top * depth > (len(chosen) - 1) * bottom


@settings(deadline=None)
@given(data=st.data(), depth=st.integers(1, 12))
def test_results_are_legal_input_again(data: st.DataObject, depth: int) -> None:
    index = st.integers(-depth, depth - 1)
    chosen = resolve_layers(data.draw(st.lists(index, min_size=1)), depth)
    assert resolve_layers(chosen, depth) == chosen
    assert list(chosen) == sorted(set(chosen))
