"""Token attention in Triton: against the reference in the interpreter and on a GPU; compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from triton_testing import (
    CAPABILITIES,
    Launch,
    compile_launch,
    interpreted,
    nan_poisoned,
    needs_triton,
    on_each_gpu,
    record_launches,
)

from adcam.ops import _launch
from adcam.ops.token_attention import (
    accumulate_blocks,
    accumulate_token_attention,
    attend_and_accumulate,
    attend_with_normalizers,
    cls_attention,
    has_kernels,
    token_attention,
)

# float32 products are made of three of TF32, those of half precision are exact in float32.
ATOL = 1e-5


def make_qk(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: str | torch.device = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k (B, heads, tokens, d) as timm cuts them from one tensor: not contiguous."""
    batch, heads, tokens, dim = shape
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, tokens, 3, heads, dim, generator=generator)
    q, k, _ = qkv.to(device, dtype).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k


def check(q: torch.Tensor, k: torch.Tensor, num_prefix_tokens: int) -> None:
    """Both ways of the second kernel, written and added, against the reference."""
    options: dict[str, Any] = {"scale": 0.3, "num_prefix_tokens": num_prefix_tokens}
    want, _ = token_attention(q, k, cls_index=None, backend="reference", **options)
    with nan_poisoned():
        got = accumulate_token_attention(None, q, k, backend="triton", **options)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=ATOL)
    total = torch.rand(got.shape, generator=torch.Generator().manual_seed(1)).to(q.device)
    before = total.clone()
    with nan_poisoned():
        added = accumulate_token_attention(total, q, k, backend="triton", **options)
    assert added.data_ptr() == total.data_ptr()
    torch.testing.assert_close(added - before, want, rtol=0, atol=ATOL)


# Not bfloat16: the interpreter of Triton 3.9 multiplies its bits as integers.
@pytest.mark.parametrize(
    ("shape", "num_prefix_tokens", "dtype"),
    [
        ((2, 3, 38, 8), 1, torch.float32),
        ((1, 1, 35, 32), 2, torch.float16),
        ((1, 2, 16, 20), 0, torch.float32),
        ((1, 2, 22, 64), 5, torch.float16),
        ((1, 2, 6, 4), 5, torch.float32),
        ((0, 2, 6, 4), 1, torch.float32),
    ],
)
@interpreted
def test_interpreted(
    shape: tuple[int, int, int, int], num_prefix_tokens: int, dtype: torch.dtype
) -> None:
    check(*make_qk(shape, dtype), num_prefix_tokens)


def check_output(q: torch.Tensor, k: torch.Tensor) -> None:
    """Beside the kernels the output is that of torch's fused attention, bit for bit.

    In half precision it may be that of another of torch's kernels, which rounds otherwise: cuDNN's,
    which plans anew for each shape, gives way.
    """
    v = k.flip(2)
    output, total = attend_and_accumulate(None, q, k, v, scale=0.3, backend="triton")
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)
    eps = 0 if q.dtype == torch.float32 else 2 * torch.finfo(q.dtype).eps
    torch.testing.assert_close(output, fused, rtol=eps, atol=eps)
    assert torch.equal(total, accumulate_token_attention(None, q, k, scale=0.3, backend="triton"))


@interpreted
def test_output_interpreted() -> None:
    check_output(*make_qk((1, 2, 20, 8), torch.float32))


@interpreted
def test_backward_is_the_reference() -> None:
    grads = []
    for backend in ("triton", "reference"):
        q, k = (x.detach().requires_grad_() for x in make_qk((1, 2, 7, 8), torch.float32))
        token_attention(q, k, scale=0.3, backend=backend)[0].square().sum().backward()
        grads.append((q.grad, k.grad))
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-6)


Blocks = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]


def make_blocks(
    count: int, shape: tuple[int, int, int, int], dtype: torch.dtype, known: bool
) -> Blocks:
    """Blocks of different queries and keys, with the normalisers that an attention leaves."""
    q, k = make_qk(shape, dtype)
    blocks: Blocks = []
    for index in range(count):
        # Same strides as a view of timm's tensor has.
        query, key = (x.transpose(1, 2).clone().transpose(1, 2) * (1 + index / 4) for x in (q, k))
        lse = (0.3 * query.float() @ key.float().mT).logsumexp(dim=-1)
        blocks.append((query, key, lse if known else None))
    return blocks


@pytest.mark.parametrize(
    ("count", "shape", "prefix", "known"),
    [
        (1, (2, 3, 38, 8), 1, True),
        (2, (1, 2, 20, 20), 0, True),
        (4, (1, 1, 22, 16), 5, True),
        (6, (2, 2, 18, 8), 1, True),
        (8, (1, 1, 18, 8), 1, True),
        (3, (1, 2, 18, 8), 1, False),
    ],
)
@interpreted
def test_blocks_together_interpreted(
    count: int, shape: tuple[int, int, int, int], prefix: int, known: bool
) -> None:
    blocks = make_blocks(count, shape, torch.float32, known)
    options: dict[str, Any] = {"scale": 0.3, "num_prefix_tokens": prefix, "weight": 1 / count}
    want = accumulate_blocks(None, blocks, backend="reference", **options)
    with nan_poisoned():
        got = accumulate_blocks(None, blocks, backend="triton", **options)
    torch.testing.assert_close(got, want, rtol=0, atol=ATOL)
    total = torch.ones_like(want)
    added = accumulate_blocks(total, blocks, backend="triton", **options)
    assert added.data_ptr() == total.data_ptr()
    torch.testing.assert_close(added - 1, want, rtol=0, atol=ATOL)


@interpreted
def test_blocks_of_different_heads_interpreted() -> None:
    wide, narrow = (
        make_blocks(2, (1, 2, 18, 16), torch.float32, True),
        make_blocks(1, (1, 4, 18, 8), torch.float32, True),
    )
    blocks = [wide[0], *narrow, wide[1]]
    want = accumulate_blocks(None, blocks, scale=0.3, backend="reference")
    got = accumulate_blocks(None, blocks, scale=0.3, backend="triton")
    torch.testing.assert_close(got, want, rtol=0, atol=ATOL)


@pytest.mark.parametrize(("prefix", "index"), [(1, 0), (5, 2)])
@pytest.mark.parametrize("dim", [8, 20])
@interpreted
def test_class_token_interpreted(prefix: int, index: int, dim: int) -> None:
    q, k = make_qk((2, 3, prefix + 70, dim), torch.float32)
    options: dict[str, Any] = {"scale": 0.3, "num_prefix_tokens": prefix, "cls_index": index}
    lse = (0.3 * q @ k.mT).logsumexp(dim=-1)
    with nan_poisoned():
        got = cls_attention(q, k, normalizers=lse, **options)
    torch.testing.assert_close(got, cls_attention(q, k, **options), rtol=0, atol=1e-6)


@interpreted
def test_the_output_of_the_fused_attention_and_its_normalizers() -> None:
    q, k = make_qk((2, 3, 19, 8), torch.float32)
    output, normalizers = attend_with_normalizers(q, k, k, scale=0.3)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, k, scale=0.3)
    assert torch.equal(output, fused)
    torch.testing.assert_close(normalizers, (0.3 * q @ k.mT).logsumexp(dim=-1))


FLOAT32 = ((1, 3, 785, 64), 1, torch.float32)
NARROW = ((2, 3, 201, 32), 5, torch.float16)
WIDE = ((2, 16, 256, 72), 0, torch.bfloat16)
WIDE_FLOAT32 = ((1, 2, 197, 128), 1, torch.float32)
WIDEST = ((1, 2, 197, 256), 1, torch.bfloat16)
# What DeiT-S launches at 448 and 446 px, and other widths, prefixes and dtypes.
SHAPES = [
    ((2, 6, 785, 64), 1, torch.bfloat16),
    ((2, 6, 786, 64), 1, torch.bfloat16),
    ((2, 6, 789, 64), 5, torch.float16),
    FLOAT32,
    NARROW,
    WIDE,
    ((1, 3, 197, 160), 1, torch.float16),
    WIDE_FLOAT32,
    WIDEST,
]


def launches_of(
    shape: tuple[int, int, int, int],
    prefix: int,
    dtype: torch.dtype,
    capability: int | None = None,
) -> list[Launch]:
    """All that a capture launches for seven blocks, and for one without known normalisers."""
    from adcam.ops.token_attention import triton_kernels

    q, k = make_qk(shape, dtype)
    lse = torch.zeros(shape[:3])
    options: dict[str, Any] = {"scale": 0.3, "num_prefix_tokens": prefix}
    with record_launches(capability) as launches:
        triton_kernels.accumulate_blocks(None, [(q, k, lse)] * 7, **options)
        triton_kernels.accumulate(None, q, k, **options)
        if prefix:
            triton_kernels.cls_attention(q, k, lse, cls_index=0, **options)
    return launches


@needs_triton
def test_launches_of_a_capture() -> None:
    """Six blocks are one pass that writes the sum, 4 N² bytes; a seventh reads and writes it."""
    launches = launches_of((2, 6, 785, 64), 1, torch.bfloat16)
    assert [launch.name for launch in launches] == [
        "add_mean",
        "add_mean",
        "row_normalizers",
        "add_mean",
        "class_rows",
    ]
    first, second, _, _, row = launches
    assert (first.values["num_blocks"], first.values["from_zero"]) == (6, True)
    assert (second.values["num_blocks"], second.values["from_zero"]) == (1, False)
    # Queries and keys are read where they lie.
    q, k = (x[:, :, 1:] for x in make_qk((2, 6, 785, 64), torch.bfloat16))
    assert first.values["q5"].stride() == q.stride() and first.values["k0"].stride() == k.stride()
    assert row.grid == (13, 2)


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("shape", "prefix", "dtype"), SHAPES[:2])
def test_compiles_as_launched(
    capability: int, shape: tuple[int, int, int, int], prefix: int, dtype: torch.dtype
) -> None:
    for launch in launches_of(shape, prefix, dtype, capability):
        ptx = compile_launch(launch, capability).asm["ptx"]
        assert launch.name == "class_rows" or "mma" in ptx  # on tensor cores


@needs_triton
@pytest.mark.parametrize(
    ("shape", "prefix", "dtype", "capability"),
    [
        *((*x, sm) for x in (FLOAT32, WIDE_FLOAT32, WIDEST) for sm in CAPABILITIES),
        (*WIDE, CAPABILITIES[-1]),
    ],
)
def test_compiles_one_block_as_launched(
    shape: tuple[int, int, int, int], prefix: int, dtype: torch.dtype, capability: int
) -> None:
    """A row's normalisers and one block of float32, of wide heads; six are the slow tests'."""
    _, _, normalizers, mean, *_ = launches_of(shape, prefix, dtype, capability)
    for launch in (normalizers, mean):
        assert "mma" in compile_launch(launch, capability).asm["ptx"]


@needs_triton
def test_the_safe_tile_compiles_for_every_gpu() -> None:
    """sm_86, sm_89 and sm_120 have 99 KiB of shared memory, where sm_80 has 163."""
    for inputs in (SHAPES[0], FLOAT32, WIDE_FLOAT32, WIDEST):
        for launch in launches_of(*inputs)[2:4]:
            assert compile_launch(launch, 80).metadata.shared <= 99 << 10


@pytest.mark.parametrize(("dtype", "widest"), [(torch.float32, 128), (torch.bfloat16, 256)])
def test_wider_heads_are_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, widest: int
) -> None:
    monkeypatch.setattr(
        "adcam.ops.token_attention.triton_not_supported_reasons", lambda *tensors: []
    )
    assert has_kernels(make_qk((1, 1, 9, widest), dtype)[0])
    q, k = make_qk((1, 2, 9, widest + 1), dtype)
    assert not has_kernels(q)
    with record_launches() as launches:
        got = accumulate_token_attention(None, q, k, scale=0.1)
        rows = cls_attention(q, k, scale=0.1, normalizers=torch.zeros(1, 2, 9))
    want, want_rows = token_attention(q, k, scale=0.1, backend="reference")
    torch.testing.assert_close(got, want, rtol=0, atol=5e-3)
    torch.testing.assert_close(rows, want_rows)
    assert launches == []
    with pytest.raises(RuntimeError, match=f"no kernel for {dtype} heads of more than {widest} ch"):
        accumulate_token_attention(None, q, k, scale=0.1, backend="triton")


@needs_triton
@pytest.mark.parametrize(
    ("shape", "prefix", "dtype", "capability"),
    on_each_gpu(SHAPES[2:], never_slow=[NARROW]),
)
def test_compiles_other_inputs(
    shape: tuple[int, int, int, int], prefix: int, dtype: torch.dtype, capability: int
) -> None:
    for launch in launches_of(shape, prefix, dtype, capability):
        compile_launch(launch, capability)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("shape", [SHAPES[0][0], SHAPES[1][0]])
def test_compiles_in_every_tile(capability: int, shape: tuple[int, int, int, int]) -> None:
    inputs = {"float16": (shape, 1, torch.bfloat16), "float32": (shape, 1, torch.float32)}
    for kind, of_kind in {**inputs, "wide float32": WIDE_FLOAT32}.items():
        name = f"token_attention, {kind}"
        for tile in _launch.TILES[name]:
            with _launch.force_tile(name, tile):
                for launch in launches_of(*of_kind)[:3]:
                    compile_launch(launch, capability)


@pytest.mark.gpu
@pytest.mark.parametrize("patches", [1, 63, 196, 784, 1369, 2304])
@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gpu(gpu: torch.device, patches: int, num_prefix_tokens: int, dtype: torch.dtype) -> None:
    for dim in (32, 64, 72, 128 if dtype == torch.float32 else 256):
        check(*make_qk((2, 3, num_prefix_tokens + patches, dim), dtype, gpu), num_prefix_tokens)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gpu_output(gpu: torch.device, dtype: torch.dtype) -> None:
    check_output(*make_qk((2, 3, 197, 64), dtype, gpu))


@pytest.mark.gpu
def test_gpu_addresses_beyond_32_bits(gpu: torch.device) -> None:
    patches, batch = 2304, 410
    assert batch * patches**2 > 2**31
    q, k = make_qk((1, 1, patches + 1, 32), torch.bfloat16, gpu)
    got = accumulate_token_attention(
        None, q.expand(batch, -1, -1, -1), k.expand(batch, -1, -1, -1), scale=0.3, backend="triton"
    )
    want, _ = token_attention(q, k, scale=0.3, backend="reference")
    torch.testing.assert_close(got[-1:], want, rtol=0, atol=ATOL)


@pytest.mark.gpu
def test_gpu_large_logits_do_not_overflow(gpu: torch.device) -> None:
    q, k = make_qk((1, 2, 100, 64), torch.float32, gpu)
    got, _ = token_attention(q * 1e4, k * 1e4, scale=1.0, backend="triton")
    assert torch.isfinite(got).all()
