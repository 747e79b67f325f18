"""Which blocks of a network take part: the one place that reads the `layers` option."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

LEGAL = "'all', 'last:N', 'last:A/B' (a share of the depth) or a list of block indices"


def resolve_layers(layers: str | Sequence[int], depth: int) -> tuple[int, ...]:
    """Turn a choice of blocks into ascending block indices.

    Args:
        layers: ``"all"``; ``"last:8"``, the last eight; ``"last:2/3"``, that share of the depth,
            rounded up; or explicit indices, negative ones counted from the end.
        depth: Number of blocks of the network.

    Returns:
        Ascending indices in ``0..depth-1``, at least one.

    Raises:
        ValueError: If the choice cannot be read or lies outside the network, or there are no
            blocks at all.

    Example:
        >>> resolve_layers("last:1/3", 12)
        (8, 9, 10, 11)
    """
    if depth == 0:
        raise ValueError(
            "a network without transformer blocks has no attention to read; method 'cam' needs none"
        )
    if not isinstance(layers, str):
        chosen = sorted({index + depth if index < 0 else index for index in layers})
        if not chosen or chosen[0] < 0 or chosen[-1] >= depth:
            raise ValueError(f"layers must lie in -{depth}..{depth - 1}, got {list(layers)}")
        return tuple(chosen)
    check_layers(layers)
    if layers == "all":
        return tuple(range(depth))
    share = Fraction(layers.removeprefix("last:"))
    # A bare whole number counts blocks; a quotient is a share of them.
    count = -(-share * depth // 1) if "/" in layers else share
    if not 1 <= count <= depth:
        raise ValueError(f"layers={layers!r} does not fit a network of {depth} blocks")
    return tuple(range(depth - int(count), depth))


def check_layers(layers: str | Sequence[int], name: str = "layers") -> None:
    """Refuse a choice of blocks that fits no network, whatever its depth.

    Args:
        layers: A choice as in :func:`resolve_layers`.
        name: Name of the option, for the message.

    Raises:
        ValueError: If the choice cannot be read.
    """
    if not isinstance(layers, str):
        if not layers or not all(isinstance(index, int) for index in layers):
            raise ValueError(f"{name} must be {LEGAL}, got {layers!r}")
        return
    if layers == "all":
        return
    try:
        share = Fraction(layers.removeprefix("last:"))
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    legal = 0 < share <= 1 if "/" in layers else share >= 1 and share.denominator == 1
    if not layers.startswith("last:") or not legal:
        raise ValueError(f"{name} must be {LEGAL}, got {layers!r}")
