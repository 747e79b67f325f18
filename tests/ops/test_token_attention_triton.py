"""Token attention in Triton: against the reference in the interpreter and on a GPU; compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from triton_testing import CAPABILITIES, compile_ahead, interpreted, nan_poisoned, needs_triton

from adcam.ops.token_attention import (
    accumulate_token_attention,
    attend_and_accumulate,
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
    """Beside the kernels the output is that of torch's fused attention, bit for bit."""
    v = k.flip(2)
    output, total = attend_and_accumulate(None, q, k, v, scale=0.3, backend="triton")
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)
    assert torch.equal(output, fused)
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


# As a launch sees them: the last stride is 1, the others of timm's view are multiples of 16.
STRIDES = {f"{tensor}_{axis}": "i32:16" for tensor in "qk" for axis in ("batch", "head", "token")}
UNIT_STRIDES = {"q_channel": 1, "k_channel": 1, "total_column": 1}


def compile_kernel(
    name: str,
    capability: int,
    dtype: str,
    config: Any,
    head_dim: int,
    padded_dim: int,
    divisor: str = "",
) -> None:
    from adcam.ops.token_attention import triton_kernels

    kernel = getattr(triton_kernels, name)
    dims = {"head_dim": head_dim, "padded_dim": padded_dim, "from_zero": False}
    constants = {**UNIT_STRIDES, **dims, **config.kwargs}
    pointers = {"q": f"*{dtype}", "k": f"*{dtype}", "normalizers": "*fp32", "total": "*fp32"}
    sizes = {"tokens": "i32", "patches": f"i32{divisor}", "heads": "i32", "scale": "fp32"}
    rows = {"total_batch": f"i64{divisor}", "total_row": f"i32{divisor}"}
    compiled = compile_ahead(
        kernel,
        capability,
        signature={**pointers, **sizes, **STRIDES, **rows},
        constants={key: value for key, value in constants.items() if key in kernel.arg_names},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    assert "mma" in compiled.asm["ptx"]  # on tensor cores


def configs() -> list[Any]:
    from adcam.ops.token_attention import triton_kernels

    return triton_kernels.CONFIGS


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", ["_row_normalizers", "_add_mean"])
@pytest.mark.parametrize("divisor", ["", ":16"])  # N = 785 and N = 784
def test_compiles(name: str, capability: int, divisor: str) -> None:
    compile_kernel(name, capability, "bf16", configs()[0], 64, 64, divisor)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", ["_row_normalizers", "_add_mean"])
@pytest.mark.parametrize(
    ("dtype", "head_dim", "padded_dim"), [("fp16", 32, 32), ("fp32", 64, 64), ("bf16", 72, 128)]
)
def test_compiles_other_inputs(
    name: str, capability: int, dtype: str, head_dim: int, padded_dim: int
) -> None:
    compile_kernel(name, capability, dtype, configs()[0], head_dim, padded_dim)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", ["_row_normalizers", "_add_mean"])
def test_compiles_in_every_config(name: str, capability: int) -> None:
    assert len(configs()) > 1
    for config in configs()[1:]:
        compile_kernel(name, capability, "bf16", config, 64, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("patches", [1, 63, 196, 784, 1369, 2304])
@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gpu(gpu: torch.device, patches: int, num_prefix_tokens: int, dtype: torch.dtype) -> None:
    for dim in (32, 64, 72):
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
