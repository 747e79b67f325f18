"""The CRF's lattice in Triton: embedding, neighbours, splat, blur, and slice with the update.

Every sum is taken in a fixed order, so that two runs agree to the last bit: the entries of the
splat, one for each pixel and corner, are sorted by vertex, and a program sums stretches of them.
``triton_lattice.py`` launches the kernels and says what the tensors hold.

Sizes are not specialised: what a launch compiles does not depend on the image. Addresses that grow
with pixels or vertices times channels are computed in 64 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _round(values):
    """The nearest whole number, of two equally near ones the even one, as ``numpy.rint``."""
    below = tl.floor(values)
    rest = values - below
    is_odd = tl.floor(below * 0.5) * 2 != below
    return below + ((rest > 0.5) | ((rest == 0.5) & is_odd)).to(tl.float32)


@triton.jit(do_not_specialize=["num_pixels", "num_columns", "num_rows", "first_corner"])
def embed(
    img,
    shapes,
    axes,
    numbers,
    keys,
    weights,
    num_pixels,
    num_columns,
    num_rows,
    first_corner,
    dim: tl.constexpr,
    block: tl.constexpr,
):
    """Find the simplex of each pixel: keys of its vertices, and its weights.

    ``reference._find_simplices`` and the keys of ``placement.py``, in the same float32 arithmetic:
    to be launched without fused multiply-add. Grid (blocks of the largest image, images).

    ``img`` (N, 3) uint8. ``shapes`` (images, 3) int32: first pixel, number of pixels, width.
    ``axes`` float32, one after the other: columns, rows, three times 256 levels. ``numbers`` int64:
    step along each of up to 8 axes, key of the first lattice point, keys an image. ``keys`` and
    ``weights`` (K, N): rows ``first_corner`` to ``first_corner + dim`` are written.
    """
    size: tl.constexpr = dim + 1
    image = tl.program_id(1)
    first = tl.load(shapes + 3 * image)
    count = tl.load(shapes + 3 * image + 1)
    width = tl.load(shapes + 3 * image + 2)
    local = tl.program_id(0) * block + tl.arange(0, block)
    inside = local < count
    pixel = (first + local).to(tl.int64)
    axis = tl.arange(0, 8)[None, :]

    total = tl.zeros((block,), tl.float32)
    elevated = tl.zeros((block, 8), tl.float32)
    for back in tl.static_range(dim):
        if dim - back == 1:
            place = local % width
        elif dim - back == 2:
            place = num_columns + local // width
        else:
            level = tl.load(img + 3 * pixel + (dim - back - 3), mask=inside, other=0)
            place = num_columns + num_rows + 256 * (dim - back - 3) + level.to(tl.int32)
        scaled = tl.load(axes + place, mask=inside, other=0)
        value = total - scaled * (dim - back)
        elevated = tl.where(axis == dim - back, value[:, None], elevated)
        total += scaled
    elevated = tl.where(axis == 0, total[:, None], elevated)

    cell = _round(elevated * (1 / size))
    excess = tl.sum(cell, axis=1).to(tl.int32)
    residual = elevated - cell * size
    rank = tl.zeros((block, 8), tl.int32) + excess[:, None]
    for other in tl.static_range(size):
        its = tl.sum(tl.where(axis == other, residual, 0.0), axis=1)[:, None]
        is_before = (its > residual) | ((its == residual) & (axis > other))
        rank += is_before.to(tl.int32)
    wraps = (rank < 0).to(tl.int32) - (rank > dim).to(tl.int32)
    cell += wraps.to(tl.float32)
    rank += wraps * size
    offset = (elevated - cell * size) * (1 / size)

    used = axis < size
    step = tl.load(numbers + axis)
    key = tl.sum(tl.where(used, step * cell.to(tl.int64), 0), axis=1)
    key += tl.load(numbers + 8) + tl.load(numbers + 9) * image
    largest = tl.sum(tl.where(used & (rank == 0), offset, 0.0), axis=1)
    before = largest - 1
    for corner in tl.static_range(size):
        here = used & (rank == dim - corner)
        ordered = tl.sum(tl.where(here, offset, 0.0), axis=1)
        weight = ordered + (1 - largest) if corner == 0 else ordered - before
        before = ordered
        out = (first_corner + corner).to(tl.int64) * num_pixels + pixel
        tl.store(weights + out, weight, mask=inside)
        tl.store(keys + out, key, mask=inside)
        key -= tl.sum(tl.where(here, step, 0), axis=1)


@triton.jit(do_not_specialize=["start", "stop", "num_vertices", "rounds"])
def connect(keys, numbers, after, before, start, stop, num_vertices, rounds, block: tl.constexpr):
    """Find the neighbours of the vertices ``start``..``stop``, whose ``keys`` are sorted.

    Grid (vertices / block, axes). ``after`` (A, M) is written, -1 where there is no neighbour; into
    ``before`` (A, M), -1 everywhere, goes the way back. ``rounds`` halve the stretch to one vertex.
    """
    axis = tl.program_id(1)
    vertex = start + tl.program_id(0) * block + tl.arange(0, block)
    inside = vertex < stop
    wanted = tl.load(keys + vertex, mask=inside, other=0) + tl.load(numbers + axis)
    low = tl.zeros((block,), tl.int32) + start
    high = tl.zeros((block,), tl.int32) + stop
    for _ in range(rounds):
        middle = low + (high - low) // 2
        is_open = low < high
        is_below = tl.load(keys + middle, mask=is_open, other=0) < wanted
        low = tl.where(is_open & is_below, middle + 1, low)
        high = tl.where(is_open & (is_below == 0), middle, high)
    found = inside & (low < stop)
    found = found & (tl.load(keys + low, mask=found, other=0) == wanted)
    row = axis.to(tl.int64) * num_vertices
    tl.store(after + row + vertex, tl.where(found, low, -1), mask=inside)
    tl.store(before + row + low, vertex, mask=found)


@triton.jit(do_not_specialize=["num_stretches"])
def sum_stretches(
    values,
    pixels,
    weights,
    firsts,
    targets,
    table,
    num_stretches,
    has_weights: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    block: tl.constexpr,
):
    """Sum stretches of entries, each of which ends where the next begins, into rows of ``table``.

    Grid (stretches / block). ``values`` and ``table`` have ``width`` channels a row; ``firsts``
    int32, one more than stretches; ``targets`` int32. An entry is the row of ``values`` that
    ``pixels`` names, times its weight; without weights it is the row of its own number.
    """
    stretch = tl.program_id(0) * block + tl.arange(0, block)
    inside = stretch < num_stretches
    first = tl.load(firsts + stretch, mask=inside, other=0)
    count = tl.load(firsts + stretch + 1, mask=inside, other=0) - first
    channel = tl.arange(0, channels)
    at_once: tl.constexpr = 8
    total = tl.zeros((block, channels), tl.float32)
    for done in range(0, tl.max(count, axis=0), at_once):
        near = done + tl.arange(0, at_once)
        entry = first[:, None] + near[None, :]
        here = near[None, :] < count[:, None]
        row = entry
        if has_weights:
            row = tl.load(pixels + entry, mask=here, other=0)
        place = row.to(tl.int64)[:, :, None] * width + channel[None, None, :]
        mask = here[:, :, None] & (channel[None, None, :] < width)
        value = tl.load(values + place, mask=mask, other=0)
        if has_weights:
            value *= tl.load(weights + entry, mask=here, other=0)[:, :, None]
        total += tl.sum(value, axis=1)
    target = tl.load(targets + stretch, mask=inside, other=0).to(tl.int64)
    mask = inside[:, None] & (channel[None, :] < width)
    tl.store(table + target[:, None] * width + channel[None, :], total, mask=mask)


@triton.jit(do_not_specialize=["axis", "start", "num_vertices", "source", "target"])
def blur(
    table,
    after,
    before,
    axis,
    start,
    num_vertices,
    source,
    target,
    width: tl.constexpr,
    channels: tl.constexpr,
    block: tl.constexpr,
):
    """Blur with (1/2, 1, 1/2) along one axis, from the rows at ``source`` to those at ``target``.

    Grid (vertices from ``start`` on / block).
    """
    vertex = start + tl.program_id(0) * block + tl.arange(0, block)
    inside = vertex < num_vertices
    channel = tl.arange(0, channels)
    is_used = channel[None, :] < width
    row = axis.to(tl.int64) * num_vertices + vertex
    ahead = tl.load(after + row, mask=inside, other=-1)
    behind = tl.load(before + row, mask=inside, other=-1)
    rows = table + source.to(tl.int64) * width + channel[None, :]
    sides = tl.load(
        rows + ahead.to(tl.int64)[:, None] * width, mask=(ahead >= 0)[:, None] & is_used, other=0
    )
    sides += tl.load(
        rows + behind.to(tl.int64)[:, None] * width, mask=(behind >= 0)[:, None] & is_used, other=0
    )
    mask = inside[:, None] & is_used
    place = vertex.to(tl.int64)[:, None] * width
    own = tl.load(rows + place, mask=mask, other=0)
    out = table + target.to(tl.int64) * width + channel[None, :] + place
    tl.store(out, own + 0.5 * sides, mask=mask)


@triton.jit
def _message(
    table,
    corners,
    weights,
    pixel,
    inside,
    channel,
    num_pixels,
    num_corners: tl.constexpr,
    width: tl.constexpr,
):
    """Slice: the weighted sum of the rows of a pixel's corners, (block, channels)."""
    total = tl.zeros((pixel.shape[0], channel.shape[0]), tl.float32)
    for corner in tl.static_range(num_corners):
        place = pixel + corner * num_pixels.to(tl.int64)
        row = tl.load(corners + place, mask=inside, other=0).to(tl.int64)
        weight = tl.load(weights + place, mask=inside, other=0)
        mask = inside[:, None] & (channel[None, :] < width)
        value = tl.load(table + row[:, None] * width + channel[None, :], mask=mask, other=0)
        total += weight[:, None] * value
    return total


@triton.jit(do_not_specialize=["num_pixels", "first_corner"])
def normalise(
    table,
    corners,
    weights,
    compat,
    num_pixels,
    first_corner,
    num_corners: tl.constexpr,
    block: tl.constexpr,
):
    """Multiply a kernel's weights by the root of ``compat`` over the kernel's row sums.

    Grid (pixels / block). ``table`` holds the blurred sums of ones, one channel.
    """
    pixel = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)
    inside = pixel < num_pixels
    pixel += first_corner.to(tl.int64) * num_pixels
    total = tl.zeros((block,), tl.float32)
    for corner in tl.static_range(num_corners):
        place = pixel + corner * num_pixels.to(tl.int64)
        row = tl.load(corners + place, mask=inside, other=0).to(tl.int64)
        weight = tl.load(weights + place, mask=inside, other=0)
        total += weight * tl.load(table + row, mask=inside, other=0)
    factor = tl.sqrt(compat / (total + 1e-20))
    for corner in tl.static_range(num_corners):
        place = pixel + corner * num_pixels.to(tl.int64)
        weight = tl.load(weights + place, mask=inside, other=0)
        tl.store(weights + place, weight * factor, mask=inside)


@triton.jit(do_not_specialize=["num_pixels"])
def add_message(
    table,
    corners,
    weights,
    evidence,
    logits,
    num_pixels,
    num_corners: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    block: tl.constexpr,
):
    """Slice one group of channels: ``logits`` = ``evidence`` + message, both (N, width).

    Grid (pixels / block).
    """
    pixel = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)
    inside = pixel < num_pixels
    channel = tl.arange(0, channels)
    place = pixel[:, None] * width + channel[None, :]
    mask = inside[:, None] & (channel[None, :] < width)
    value = tl.load(evidence + place, mask=mask, other=0)
    value += _message(
        table, corners, weights, pixel, inside, channel, num_pixels, num_corners, width
    )
    tl.store(logits + place, value, mask=mask)


@triton.jit(do_not_specialize=["num_pixels", "num_labels"])
def update(
    table,
    corners,
    weights,
    evidence,
    out,
    num_pixels,
    num_labels,
    num_corners: tl.constexpr,
    is_last: tl.constexpr,
    groups: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    block: tl.constexpr,
):
    """Slice, softmax, and what the next splat sums: one pass over the pixels.

    Grid (pixels / block). ``evidence`` (groups, N, width): logarithms of probabilities, to that of
    label 0. The message is added where there are corners, and then there is one group. ``out``: the
    marginals (labels, N) if ``is_last``, else their differences to that of label 0, (groups, N,
    width).
    """
    pixel = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)
    inside = pixel < num_pixels
    channel = tl.arange(0, channels)
    mask = inside[:, None] & (channel[None, :] < groups * width)
    group = (channel // width).to(tl.int64) * num_pixels * width
    place = group[None, :] + pixel[:, None] * width + (channel % width)[None, :]
    logits = tl.load(evidence + place, mask=mask, other=-1e30)
    if num_corners > 0:
        logits += _message(
            table, corners, weights, pixel, inside, channel, num_pixels, num_corners, width
        )
    top = tl.maximum(tl.max(logits, axis=1), 0.0)
    raised = tl.exp(logits - top[:, None])
    base = tl.exp(0.0 - top)
    inverse = 1 / (base + tl.sum(raised, axis=1))
    if is_last:
        tl.store(out + pixel, base * inverse, mask=inside)
        place = (1 + channel).to(tl.int64)[None, :] * num_pixels + pixel[:, None]
        is_label = inside[:, None] & (channel[None, :] < num_labels - 1)
        tl.store(out + place, raised * inverse[:, None], mask=is_label)
    else:
        tl.store(out + place, (raised - base[:, None]) * inverse[:, None], mask=mask)
