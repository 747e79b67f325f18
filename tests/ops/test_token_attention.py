"""Token attention: exact case, the full softmax and timm's own attention as oracles."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from memory_testing import peak_bytes

from adcam.ops.token_attention import (
    accumulate_token_attention,
    attend,
    attend_and_accumulate,
    available_backends,
    blocked,
    cls_attention,
    reference,
    token_attention,
)

BACKENDS = ("torch", "reference")
DTYPES = (torch.float32, torch.float64)
ATOL = {torch.float32: 1e-6, torch.float64: 1e-14}


def make_qk(
    batch: int = 2,
    heads: int = 3,
    tokens: int = 16,
    dim: int = 8,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, batch, heads, tokens, dim, generator=generator, dtype=torch.float64)
    return q.to(dtype), k.to(dtype)


def make_qkv(**options: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v as timm cuts them from one tensor: not contiguous."""
    tensors = [*make_qk(**options), make_qk(**options, seed=1)[0]]
    q, k, v = torch.stack([x.transpose(1, 2) for x in tensors], dim=2).unbind(2)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_by_hand(dtype: torch.dtype) -> None:
    # One class token and two patches, two heads of one channel, scale 2. Keys are 0, 0, ln(2)/2,
    # so a query of 1 weighs them 1:1:2, a query of 2 weighs them 1:1:4, a query of 0 alike.
    k = torch.tensor([0, 0, math.log(2) / 2], dtype=dtype).reshape(1, 1, 3, 1).expand(1, 2, 3, 1)
    q = torch.tensor([[1, 2, 0], [0, 1, 2]], dtype=dtype).reshape(1, 2, 3, 1)
    patch2patch, cls2patch = token_attention(q, k, scale=2.0)
    want = [[(1 / 6 + 1 / 4) / 2, (4 / 6 + 2 / 4) / 2], [(1 / 3 + 1 / 6) / 2, (1 / 3 + 4 / 6) / 2]]
    want_cls = [(1 / 4 + 1 / 3) / 2, (2 / 4 + 1 / 3) / 2]
    assert cls2patch is not None
    torch.testing.assert_close(patch2patch[0], torch.tensor(want, dtype=dtype))
    torch.testing.assert_close(cls2patch[0], torch.tensor(want_cls, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_prefix_tokens", "cls_index"), [(0, None), (1, 0), (2, 0), (2, 1), (5, 0), (5, None)]
)
@pytest.mark.parametrize(("tokens", "block_numel"), [(16, 10**6), (63, 10**6), (63, 500), (63, 1)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_full_softmax(
    dtype: torch.dtype,
    num_prefix_tokens: int,
    cls_index: int | None,
    tokens: int,
    block_numel: int,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocked, "_BLOCK_NUMEL", block_numel)  # one block, uneven ones, one row
    q, k = make_qk(tokens=tokens, dtype=dtype)
    options = {"scale": 0.7, "num_prefix_tokens": num_prefix_tokens}
    full = torch.einsum("bhid,bhjd->bhij", q, k).mul(0.7).softmax(dim=-1).mean(dim=1)
    patch2patch, cls2patch = token_attention(q, k, cls_index=cls_index, backend=backend, **options)
    want = full[:, num_prefix_tokens:, num_prefix_tokens:]
    assert patch2patch.dtype == dtype
    torch.testing.assert_close(patch2patch, want, rtol=0, atol=ATOL[dtype])
    if cls_index is None:
        assert cls2patch is None
        return
    row = full[:, cls_index, num_prefix_tokens:]
    torch.testing.assert_close(cls2patch, row, rtol=0, atol=ATOL[dtype])
    alone = cls_attention(q, k, cls_index=cls_index, **options)
    assert alone.dtype == dtype
    torch.testing.assert_close(alone, row, rtol=0, atol=ATOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_prefix_tokens", [1, 2, 5])
def test_rows_miss_what_prefix_tokens_got(dtype: torch.dtype, num_prefix_tokens: int) -> None:
    q, k = make_qk(dtype=dtype)
    patch2patch, cls2patch = token_attention(
        q, k, scale=0.5, num_prefix_tokens=num_prefix_tokens, cls_index=0
    )
    assert cls2patch is not None
    for rows in (patch2patch, cls2patch):
        assert rows.min() >= 0
        assert rows.sum(dim=-1).max() < 1 - 1e-3
    everything, _ = token_attention(q, k, scale=0.5, num_prefix_tokens=0, cls_index=None)
    ones = torch.ones(2, 16, dtype=dtype)
    torch.testing.assert_close(everything.sum(dim=-1), ones, rtol=0, atol=ATOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_permutation_equivariance(dtype: torch.dtype) -> None:
    q, k = make_qk(dtype=dtype)
    order = torch.randperm(14, generator=torch.Generator().manual_seed(3))
    tokens = torch.cat([torch.arange(2), order + 2])
    want, want_cls = token_attention(q, k, scale=0.5, num_prefix_tokens=2)
    got, got_cls = token_attention(q[:, :, tokens], k[:, :, tokens], scale=0.5, num_prefix_tokens=2)
    assert want_cls is not None
    torch.testing.assert_close(got, want[:, order][:, :, order], rtol=0, atol=ATOL[dtype])
    torch.testing.assert_close(got_cls, want_cls[:, order], rtol=0, atol=ATOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_equals_single(dtype: torch.dtype) -> None:
    q, k = make_qk(batch=3, tokens=14, dtype=dtype)
    got, got_cls = token_attention(q, k, scale=0.5)
    row = cls_attention(q, k, scale=0.5)
    assert got_cls is not None
    for i in range(3):
        want, want_cls = token_attention(q[i : i + 1], k[i : i + 1], scale=0.5)
        torch.testing.assert_close(got[i : i + 1], want, rtol=0, atol=ATOL[dtype])
        torch.testing.assert_close(got_cls[i : i + 1], want_cls, rtol=0, atol=ATOL[dtype])
        torch.testing.assert_close(row[i : i + 1], want_cls, rtol=0, atol=ATOL[dtype])


def test_large_logits_do_not_overflow() -> None:
    q, k = make_qk(dtype=torch.float32)
    patch2patch, cls2patch = token_attention(q * 1e4, k * 1e4, scale=1.0, num_prefix_tokens=1)
    assert cls2patch is not None
    assert torch.isfinite(patch2patch).all()
    assert torch.isfinite(cls2patch).all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half: torch.dtype) -> None:
    q, k = make_qk(dtype=half)
    got, got_cls = token_attention(q, k, scale=0.5, backend="reference")
    want, want_cls = token_attention(q.float(), k.float(), scale=0.5, backend="reference")
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert got_cls is not None
    assert want_cls is not None
    assert torch.equal(got_cls, want_cls)
    assert torch.equal(
        cls_attention(q, k, scale=0.5), cls_attention(q.float(), k.float(), scale=0.5)
    )


def test_float16_products_are_not_rounded() -> None:
    q, k = make_qk(dtype=torch.float16)
    got, _ = token_attention(q, k, scale=0.5, backend="torch")
    want, _ = token_attention(q, k, scale=0.5, backend="reference")
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_bfloat16_products_are_rounded_once() -> None:
    q, k = make_qk(tokens=63, dim=64, dtype=torch.bfloat16)
    got, _ = token_attention(q, k, scale=0.125, backend="torch")
    want, _ = token_attention(q, k, scale=0.125, backend="reference")
    assert got.dtype == torch.float32
    # Rounding to 8 bits moves a score s by up to |s| / 512, so its exponential and the sum that
    # divides it by a factor of up to exp(|s| / 512) each. Half as much again for other roundings.
    largest = float((q.float() @ k.float().mT).abs().max()) * 0.125
    assert 3 < largest < 8
    difference = (got - want).abs()
    assert (difference <= want * math.expm1(3 * largest / 512)).all()
    assert difference.max() > 0


def test_autocast_does_not_reach_inside() -> None:
    q, k = make_qk(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, _ = token_attention(q, k, scale=0.5)
        row = cls_attention(q, k, scale=0.5)
    want, _ = token_attention(q, k, scale=0.5)
    assert torch.equal(got, want)
    assert torch.equal(row, cls_attention(q, k, scale=0.5))


def test_inputs_are_not_changed() -> None:
    q, k = make_qk()
    kept_q, kept_k = q.clone(), k.clone()
    token_attention(q, k, scale=0.5)
    cls_attention(q, k, scale=0.5)
    assert torch.equal(q, kept_q)
    assert torch.equal(k, kept_k)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    q, k = (x.requires_grad_() for x in make_qk(heads=2, tokens=5, dim=3))
    total = torch.rand(2, 4, 4, dtype=torch.float64, requires_grad=True)

    def accumulate(*tensors: torch.Tensor | None) -> torch.Tensor:
        return accumulate_token_attention(*tensors, scale=0.5, backend=backend)

    assert torch.autograd.gradcheck(accumulate, (None, q, k))
    assert torch.autograd.gradcheck(accumulate, (total, q, k))
    assert torch.autograd.gradcheck(accumulate, (None, q, k.detach()))
    assert torch.autograd.gradgradcheck(accumulate, (None, q.detach(), k))
    assert torch.autograd.gradgradcheck(accumulate, (None, q, k))
    assert torch.autograd.gradcheck(lambda x: accumulate(None, x, x), (q,))
    assert torch.autograd.gradcheck(lambda q, k: cls_attention(q, k, scale=0.5), (q, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_is_the_reference(dtype: torch.dtype) -> None:
    grads = []
    for backend in BACKENDS:
        q, k = (x.requires_grad_() for x in make_qk(dtype=dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, _ = token_attention(q, k, scale=0.5, backend=backend)
        out.square().sum().backward()
        assert q.grad is not None
        assert k.grad is not None
        assert q.grad.dtype == dtype
        grads += [q.grad, k.grad]
    atol = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(grads[0], grads[2], rtol=0, atol=atol)
    torch.testing.assert_close(grads[1], grads[3], rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_running_sum(dtype: torch.dtype, backend: str) -> None:
    total, want = None, torch.zeros(2, 14, 14)
    for seed in range(3):
        q, k = make_qk(dtype=dtype, seed=seed)
        options: dict[str, Any] = {"scale": 0.5, "num_prefix_tokens": 2, "backend": backend}
        before = total
        total = accumulate_token_attention(before, q, k, **options)
        # The fast one holds no second (N, N) tensor.
        assert before is None or (total is before) == (backend == "torch")
        want = want + token_attention(q, k, **options)[0]
    torch.testing.assert_close(total, want, rtol=0, atol=ATOL.get(dtype, 1e-6))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd_leaves_the_running_sum_alone(backend: str) -> None:
    q, k = make_qk()
    total = torch.rand(2, 15, 15, dtype=torch.float64)
    kept = total.clone()
    got = accumulate_token_attention(total, q.requires_grad_(), k, scale=0.5, backend=backend)
    assert torch.equal(total, kept)
    assert got.requires_grad
    with torch.no_grad():
        again = accumulate_token_attention(total, q, k, scale=0.5, backend=backend)
    torch.testing.assert_close(again, got)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 5])
@pytest.mark.parametrize(("tokens", "block_numel"), [(16, 10**6), (63, 500), (63, 100), (63, 1)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_output_and_sum_of_one_softmax(
    dtype: torch.dtype,
    num_prefix_tokens: int,
    tokens: int,
    block_numel: int,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocked, "_BLOCK_NUMEL", block_numel)
    q, k, v = make_qkv(tokens=tokens, dtype=dtype)
    patches = tokens - num_prefix_tokens
    before = torch.full((2, patches, patches), 0.5, dtype=dtype)
    options: dict[str, Any] = {"scale": 0.7, "num_prefix_tokens": num_prefix_tokens}
    attn = torch.einsum("bhid,bhjd->bhij", q, k).mul(0.7).softmax(dim=-1)
    for total in (None, before.clone()):
        output, summed = attend_and_accumulate(total, q, k, v, backend=backend, **options)
        assert output.dtype == summed.dtype == dtype
        want = torch.einsum("bhij,bhjd->bhid", attn, v)
        torch.testing.assert_close(output, want, rtol=0, atol=10 * ATOL[dtype])
        want = attn.mean(dim=1)[:, num_prefix_tokens:, num_prefix_tokens:]
        want = want if total is None else want + before
        torch.testing.assert_close(summed, want, rtol=0, atol=ATOL[dtype])
        assert (summed is total) == (total is not None and backend == "torch")


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_output_of_half_precision(half: torch.dtype, backend: str) -> None:
    q, k, v = make_qkv(tokens=63, dim=64, dtype=half)
    options: dict[str, Any] = {"scale": 0.125, "backend": backend}
    output, total = attend_and_accumulate(None, q, k, v, **options)
    want = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
    assert output.dtype == half
    # The values are up to 4; scores and attention are rounded by 2^-9 in bfloat16.
    torch.testing.assert_close(output.float(), want, rtol=0, atol=2e-2)
    alone = accumulate_token_attention(None, q, k, **options)
    torch.testing.assert_close(total, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block_numel", [1, 100, 1 << 19])
def test_output_alone(
    dtype: torch.dtype, block_numel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "_BLOCK_NUMEL", block_numel)
    q, k, v = make_qkv(tokens=63, dim=64, dtype=dtype)
    output = attend(q, k, v, scale=0.125)
    want = reference.attend(q.float(), k.float(), v.float(), 0.125)
    assert output.dtype == dtype
    atol = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(output.float(), want, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_alone_has_a_gradient(dtype: torch.dtype) -> None:
    fast = [x.requires_grad_() for x in make_qkv(tokens=9, dim=8, dtype=dtype)]
    slow = [x.detach().float().requires_grad_() for x in fast]
    attend(fast[0], fast[1], fast[2], scale=0.3).float().square().sum().backward()
    reference.attend(slow[0], slow[1], slow[2], 0.3).square().sum().backward()
    for got, want in zip(fast, slow, strict=True):
        assert got.grad is not None
        assert want.grad is not None
        difference = (got.grad.float() - want.grad).norm() / want.grad.norm()
        assert difference < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_has_the_layout_of_the_fused_attention(dtype: torch.dtype) -> None:
    q, k, v = make_qkv(dtype=dtype)
    output, _ = attend_and_accumulate(None, q, k, v, scale=0.5)
    for result in (output, attend(q, k, v, scale=0.5)):
        assert result.transpose(1, 2).is_contiguous()  # so that joining the heads copies nothing


@pytest.mark.parametrize("backend", BACKENDS)
def test_output_has_a_gradient(backend: str) -> None:
    q, k, v = (x.requires_grad_() for x in make_qkv(heads=2, tokens=5, dim=3))
    total = torch.rand(2, 4, 4, dtype=torch.float64, requires_grad=True)
    kept = total.detach().clone()

    def both(*tensors: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return attend_and_accumulate(*tensors, scale=0.5, backend=backend)

    assert torch.autograd.gradcheck(both, (total, q, k, v))
    assert torch.autograd.gradcheck(both, (None, q.detach(), k.detach(), v))
    assert torch.equal(total, kept)
    with torch.no_grad():
        want = both(None, q, k, v)
    torch.testing.assert_close(both(None, q, k, v), want)


def test_memory_at_768_pixels() -> None:
    q, k, v = make_qkv(batch=1, tokens=2305, dim=64, dtype=torch.float32)

    def two_blocks(backend: str, *, attend: bool) -> None:
        total = None
        for _ in range(2):
            options: dict[str, Any] = {"scale": 0.125, "backend": backend}
            if attend:
                _, total = attend_and_accumulate(total, q, k, v, **options)
            else:
                total = accumulate_token_attention(total, q, k, **options)

    size = 4 * 2304**2  # of the result; the attention of all heads and blocks is six times it
    assert size <= peak_bytes(lambda: two_blocks("torch", attend=False)) < 1.3 * size
    assert size <= peak_bytes(lambda: two_blocks("torch", attend=True)) < 1.4 * size
    assert peak_bytes(lambda: two_blocks("reference", attend=False)) > 2 * size


def test_equals_timm_attention() -> None:
    attention = pytest.importorskip("timm.layers").Attention
    torch.manual_seed(0)
    module = attention(
        dim=24, num_heads=3, qkv_bias=True, qk_norm=True, norm_layer=torch.nn.LayerNorm
    )
    module.fused_attn = False
    seen = {}
    module.q_norm.register_forward_hook(lambda _m, _i, out: seen.update(q=out))
    module.k_norm.register_forward_hook(lambda _m, _i, out: seen.update(k=out))
    module.attn_drop.register_forward_hook(lambda _m, _i, out: seen.update(attn=out))
    with torch.no_grad():
        module.eval()(torch.randn(2, 17, 24))
    patch2patch, cls2patch = token_attention(
        seen["q"], seen["k"], scale=module.scale, num_prefix_tokens=2
    )
    want = seen["attn"].mean(dim=1)
    torch.testing.assert_close(patch2patch, want[:, 2:, 2:], rtol=0, atol=1e-6)
    torch.testing.assert_close(cls2patch, want[:, 0, 2:], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("q_shape", "k_shape"),
    [((2, 5, 4), (2, 5, 4)), ((1, 2, 5, 4), (1, 2, 6, 4)), ((1, 2, 5, 4), (2, 2, 5, 4))],
)
@pytest.mark.parametrize("function", [token_attention, cls_attention])
def test_shapes_that_do_not_match(
    function: object, q_shape: tuple[int, ...], k_shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"\(B, heads, tokens, d\).*got \("):
        function(torch.ones(q_shape), torch.ones(k_shape), scale=1.0)


@pytest.mark.parametrize("function", [token_attention, cls_attention])
def test_illegal_options(function: object) -> None:
    q, k = make_qk(tokens=5)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"scale must be finite and > 0, got {scale}"):
            function(q, k, scale=scale)
    for num_prefix_tokens in (-1, 5):
        with pytest.raises(
            ValueError, match=rf"lie in 0\.\.4 for 5 tokens, got {num_prefix_tokens}"
        ):
            function(q, k, scale=1.0, num_prefix_tokens=num_prefix_tokens)
    for cls_index in (-1, 2):
        with pytest.raises(ValueError, match=rf"cls_index must lie in 0\.\.1 .*got {cls_index}"):
            function(q, k, scale=1.0, num_prefix_tokens=2, cls_index=cls_index)
    with pytest.raises(ValueError, match="cls_index"):
        function(q, k, scale=1.0, num_prefix_tokens=0)
    with pytest.raises(ValueError, match="one dtype"):
        function(q, k.float(), scale=1.0)
    with pytest.raises(ValueError, match=r"q must have a dtype.*torch\.int64"):
        function(q.long(), k.long(), scale=1.0)
    total = torch.zeros(2, 4, 4, dtype=torch.float64)
    for wrong in (total.float(), total[:1], total[:, 1:]):
        with pytest.raises(
            ValueError, match=r"total must be \(2, 4, 4\) torch\.float64 on cpu, got"
        ):
            accumulate_token_attention(wrong, q, k, scale=1.0)
        with pytest.raises(ValueError, match=r"total must be \(2, 4, 4\)"):
            attend_and_accumulate(wrong, q, k, q, scale=1.0)
    for wrong in (q.float(), q[:1], q[..., 1:]):
        with pytest.raises(ValueError, match=r"v must have the shape and dtype of q, .*, got \("):
            attend_and_accumulate(None, q, k, wrong, scale=1.0)
        with pytest.raises(ValueError, match="v must have"):
            attend(q, k, wrong, scale=1.0)


def test_backends() -> None:
    assert list(available_backends()) == ["triton", *BACKENDS]
    q, k = make_qk(tokens=5)
    with pytest.raises(ValueError, match=r"backend must be one of .*'numpy'"):
        token_attention(q, k, scale=1.0, backend="numpy")
    with pytest.raises(RuntimeError, match=r"'triton' cannot run: .*no kernel for float64"):
        token_attention(q, k, scale=1.0, backend="triton")
    assert torch.equal(
        token_attention(q, k, scale=1.0)[0], token_attention(q, k, scale=1.0, backend="torch")[0]
    )
