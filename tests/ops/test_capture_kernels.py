"""What a capture does on a GPU: its numbers in the interpreter, its launches on fake tensors."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton_testing import Launch, interpreted, needs_triton, record_launches

from adcam.models.attention_capture import AttentionCapture
from adcam.ops import token_attention

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"reg_tokens": 4},
    "no class token": {"class_token": False},
    "heads of 20": {"embed_dim": 40, "num_heads": 2},
    "normalised": {"qk_norm": True},
}


def make_vit(kind: str) -> Any:
    torch.manual_seed(0)
    options = {"patch_size": 8, "embed_dim": 24, "depth": 6, "num_heads": 3, **KINDS[kind]}
    vit = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, global_pool="", img_size=32, **options
    ).eval()
    for block in vit.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.2)
    return vit


@pytest.mark.parametrize("kind", KINDS)
@interpreted
def test_interpreted(kind: str) -> None:
    """One set, and sets that overlap, against the attention of the unfused path."""
    vit, inputs = make_vit(kind), torch.randn(2, 3, 32, 32)
    seen: list[torch.Tensor] = []
    for block in vit.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _m, _args, out: seen.append(out))
    with torch.no_grad():
        plain = vit.forward_features(inputs)
    for block in vit.blocks:
        block.attn.fused_attn = True
    prefix = vit.num_prefix_tokens
    means = [attn.mean(dim=1) for attn in seen]
    for layer_sets in (((1, 2, 3, 4, 5),), ((0, 1, 2, 3), (2, 3), (5,))):
        with torch.no_grad(), AttentionCapture(vit, layer_sets) as capture:
            output = vit.forward_features(inputs)
        torch.testing.assert_close(output, plain, rtol=0, atol=1e-4)
        for layers in layer_sets:
            want = sum(means[i][:, prefix:, prefix:] for i in layers) / len(layers)
            torch.testing.assert_close(capture.patch2patch[layers], want, rtol=0, atol=1e-5)
        if vit.has_class_token:
            rows = torch.stack([mean[:, 0, prefix:] for mean in means], dim=1)
            torch.testing.assert_close(capture.cls2patch, rows, rtol=0, atol=1e-5)


class Ops(TorchDispatchMode):
    """Counts what torch runs, and the bytes that its copies write."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.copied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.names[name] += 1
        if name in ("copy_", "clone", "_to_copy", "contiguous", "cat", "stack"):
            self.copied += result.numel() * result.element_size()
        return result


def run_fake(
    monkeypatch: pytest.MonkeyPatch, kernel: int, layer_sets: tuple[tuple[int, ...], ...] | None
) -> tuple[Ops, list[Launch]]:
    """DeiT-S, 448 px, two images, bfloat16, no GPU needed; ``None`` captures nothing."""
    monkeypatch.setattr(token_attention, "triton_not_supported_reasons", lambda *tensors: [])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *args, **kwargs: kernel)
    vit = timm.create_model("deit_small_patch16_224", num_classes=0, img_size=448).eval()
    parameters = dict(vit.named_parameters())
    with FakeTensorMode(), torch.no_grad(), record_launches() as launches:
        for name, parameter in parameters.items():
            owner, _, key = name.rpartition(".")
            empty = torch.empty(parameter.shape, dtype=torch.bfloat16, device="cuda")
            setattr(vit.get_submodule(owner), key, nn.Parameter(empty))
        inputs = torch.empty(2, 3, 448, 448, device="cuda", dtype=torch.bfloat16)
        with Ops() as ops:
            if layer_sets is None:
                vit.forward_features(inputs)
            else:
                with AttentionCapture(vit, layer_sets) as capture:
                    vit.forward_features(inputs)
                assert capture.cls2patch.shape == (2, 12, 784)
                assert [x.shape for x in capture.patch2patch.values()] == [(2, 784, 784)]
    return ops, launches


NAMES = {1: "flash", 2: "efficient", 3: "cudnn"}


@needs_triton
@pytest.mark.parametrize("kernel", NAMES)
def test_launches_and_copies(monkeypatch: pytest.MonkeyPatch, kernel: int) -> None:
    """Beside the fused attention of each block: a row of the class token each, one pass over the
    sum for six blocks, and the rows put together. No queries and keys are copied.

    Where torch would take cuDNN's kernel, which makes a plan for each shape, the flash kernel runs.
    """
    ops, launches = run_fake(monkeypatch, kernel, ((6, 7, 8, 9, 10, 11),))
    plain, _ = run_fake(monkeypatch, kernel, None)
    taken = "flash" if NAMES[kernel] == "cudnn" else NAMES[kernel]
    assert ops.names[f"_scaled_dot_product_{taken}_attention"] == 12
    names = Counter(launch.name for launch in launches)
    assert names == {"class_rows": 12, "add_mean": 1}
    # The stack of the rows, float32, is all that is copied.
    rows = 2 * 12 * 784 * 4
    assert ops.copied <= plain.copied + rows
    (added,) = (launch.values for launch in launches if launch.name == "add_mean")
    # The sum is written once and never read: 4 N² bytes an image.
    assert added["num_blocks"] == 6 and added["from_zero"]
    assert added["total"].shape == (2, 784, 784) and added["total"].dtype == torch.float32
    # The mean over six blocks needs no pass of its own.
    assert added["shift"] == pytest.approx(-torch.log2(torch.tensor(36.0)).item())
    assert added["q0"].stride()[1:] == (64, 3 * 384, 1)  # where timm's projection left them


@needs_triton
def test_without_a_kernel_that_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's plain attention has no normalisers to give: one more launch for each block read."""
    _, launches = run_fake(monkeypatch, 0, ((6, 7, 8, 9, 10, 11),))
    names = Counter(launch.name for launch in launches)
    assert names == {"row_normalizers": 6, "add_mean": 1}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu(gpu: torch.device, kind: str, dtype: torch.dtype) -> None:
    """The output stays that of torch; the means are those of the CPU."""
    vit, inputs = make_vit(kind), torch.randn(2, 3, 32, 32)
    layer_sets = ((1, 2, 3, 4, 5),)
    with torch.no_grad(), AttentionCapture(vit, layer_sets) as want:
        vit.forward_features(inputs)
    vit, inputs = vit.to(gpu), inputs.to(gpu)
    with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        plain = vit.forward_features(inputs)
        with AttentionCapture(vit, layer_sets) as got:
            output = vit.forward_features(inputs)
    # Half precision rounds on the way through six blocks.
    atol = 1e-3 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(output, plain, rtol=0, atol=atol)
    torch.testing.assert_close(
        got.patch2patch[layer_sets[0]].cpu(), want.patch2patch[layer_sets[0]], rtol=0, atol=atol
    )
