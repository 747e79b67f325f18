"""Token attention: exact case, the full softmax and timm's own attention as oracles."""

from __future__ import annotations

import math

import pytest
import torch

from adcam.ops.token_attention import cls_attention, token_attention

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
@pytest.mark.parametrize("tokens", [16, 63])
def test_equals_the_full_softmax(
    dtype: torch.dtype, num_prefix_tokens: int, cls_index: int | None, tokens: int
) -> None:
    q, k = make_qk(tokens=tokens, dtype=dtype)
    options = {"scale": 0.7, "num_prefix_tokens": num_prefix_tokens}
    full = torch.einsum("bhid,bhjd->bhij", q, k).mul(0.7).softmax(dim=-1).mean(dim=1)
    patch2patch, cls2patch = token_attention(q, k, cls_index=cls_index, **options)
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
    got, got_cls = token_attention(q, k, scale=0.5)
    want, want_cls = token_attention(q.float(), k.float(), scale=0.5)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert got_cls is not None
    assert want_cls is not None
    assert torch.equal(got_cls, want_cls)
    assert torch.equal(
        cls_attention(q, k, scale=0.5), cls_attention(q.float(), k.float(), scale=0.5)
    )


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


def test_gradcheck() -> None:
    q, k = (x.requires_grad_() for x in make_qk(heads=2, tokens=5, dim=3))
    assert torch.autograd.gradcheck(lambda q, k: token_attention(q, k, scale=0.5), (q, k))
    assert torch.autograd.gradcheck(lambda q, k: cls_attention(q, k, scale=0.5), (q, k))


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
