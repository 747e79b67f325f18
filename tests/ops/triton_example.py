"""Small kernels: the one that the test tools are tried on, and wrappers of device functions."""

import triton
import triton.language as tl

from adcam.ops.dense_crf.triton_kernels import _round


@triton.jit
def row_sums(values, out, columns, block: tl.constexpr):
    """Sum each row of a contiguous matrix, one program a row."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, block)
    total = tl.zeros((block,), tl.float32)
    for start in range(0, columns, block):
        inside = start + offsets < columns
        total += tl.load(values + row * columns + start + offsets, mask=inside, other=0)
    tl.store(out + row, tl.sum(total, axis=0))


@triton.jit
def round_all(values, out, block: tl.constexpr):
    """Round ``block`` values to whole numbers."""
    place = tl.arange(0, block)
    tl.store(out + place, _round(tl.load(values + place)))
