"""Images of several sizes in one pass: each as in a pass of its own, in fewer operations."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import timm
import torch
from test_models_attention_capture import KINDS, make_vit
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from adcam.cams import build_method
from adcam.labeling.map_maker import MapMaker
from adcam.models.attention_capture import AttentionCapture
from adcam.models.mctformer import MCTformer
from adcam.models.packed_pass import Packing, can_pack, run_packed
from adcam.models.refined_cam import RefinedCAM
from adcam.models.token_cam import TokenCAM
from adcam.ops import token_attention
from adcam.settings import TestViews
from adcam.structures import TokenMaps

SIZES = ((32, 32), (24, 40), (40, 16))
LAYER_SETS = ((0, 1, 2, 3), (2, 3), (1,))
SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}


def make_inputs(*, device: str | torch.device = "cpu") -> list[Tensor]:
    """Three sizes, of different numbers of images."""
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randn(n, 3, *hw, generator=generator) for n, hw in zip((2, 1, 3), SIZES, strict=True)
    ]
    return [x.to(device) for x in images]


def make_network(cls: type[TokenCAM] = TokenCAM) -> TokenCAM:
    torch.manual_seed(0)
    network = cls(
        "deit_tiny_patch16_224", num_fg_classes=3, img_size=32, backbone_kwargs=SMALL
    ).eval()
    for block in network.backbone.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.2)
    return network


def assert_close(got: TokenMaps, want: TokenMaps) -> None:
    assert (got.grid_hw, got.depth, got.model) == (want.grid_hw, want.depth, want.model)
    assert got.attn_patch2patch.keys() == want.attn_patch2patch.keys()
    for layers in want.attn_patch2patch:
        torch.testing.assert_close(got.attn_patch2patch[layers], want.attn_patch2patch[layers])
    for name in ("logits", "cam", "attn_cls2patch", "pixel_logits", "attn_classes2patch"):
        left, right = getattr(got, name), getattr(want, name)
        if right is None:
            assert left is None
        else:
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_one_pass_a_size(kind: str) -> None:
    vit = make_vit(kind, fused=True)
    inputs = make_inputs()
    with torch.no_grad():
        assert can_pack(vit)
        packing, packed, captures = run_packed(vit, inputs, LAYER_SETS)
        assert packing.shapes == tuple(
            (len(x), vit.num_prefix_tokens + x.shape[2] * x.shape[3] // 64) for x in inputs
        )
        parts = packing.split(packed[0], dim=0)
        for x, got, of_size in zip(inputs, parts, captures, strict=True):
            with AttentionCapture(vit, LAYER_SETS) as capture:
                want = vit.forward_features(x)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
            for layers in LAYER_SETS:
                torch.testing.assert_close(
                    of_size.patch2patch[layers], capture.patch2patch[layers], rtol=0, atol=1e-6
                )
            if capture.cls2patch is None:
                assert of_size.cls2patch is None
            else:
                torch.testing.assert_close(of_size.cls2patch, capture.cls2patch, rtol=0, atol=1e-6)


def test_images_do_not_see_one_another() -> None:
    """Another image in the row changes nothing for the rest, of its own size or of another."""
    vit = make_vit("deit", fused=True)
    inputs = make_inputs()
    with torch.no_grad():
        packing, before, _ = run_packed(vit, inputs)
        inputs[2][1] += 1
        _, after, _ = run_packed(vit, inputs)
    old, new = packing.split(before[0], dim=0), packing.split(after[0], dim=0)
    assert torch.equal(old[0], new[0])
    assert torch.equal(old[1], new[1])
    assert torch.equal(old[2][[0, 2]], new[2][[0, 2]])
    assert not torch.allclose(old[2][1], new[2][1])


def test_split() -> None:
    packing = Packing(((2, 3), (1, 4)))
    first, second = packing.split(torch.arange(10).view(1, 10), dim=1)
    assert first.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert second.tolist() == [[[6, 7, 8, 9]]]


def test_what_cannot_be_packed() -> None:
    vit = make_vit("deit", fused=True)
    assert not can_pack(vit)  # autograd records
    with torch.no_grad():
        assert can_pack(vit)
        assert not can_pack(make_vit("deit", fused=False))
        assert not can_pack(vit.train())

        class Own(timm.models.vision_transformer.VisionTransformer):
            def forward_features(self, x: Tensor) -> Tensor:
                return super().forward_features(x) + 1

        assert not can_pack(Own(img_size=32, **SMALL).eval())


@pytest.mark.parametrize("cls", [TokenCAM, RefinedCAM])
def test_networks(cls: type[TokenCAM], monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network(cls)
    inputs = make_inputs()
    with torch.no_grad():
        separate = network.token_maps_of_sizes(inputs, layer_sets=LAYER_SETS)
        passes: list[int] = []
        network.backbone.blocks[0].register_forward_hook(lambda *_: passes.append(1))
        monkeypatch.setattr(TokenCAM, "_packs", lambda *args: True)
        packed = network.token_maps_of_sizes(inputs, layer_sets=LAYER_SETS)
    assert len(passes) == 1
    assert len(packed) == len(separate) == 3
    for got, want in zip(packed, separate, strict=True):
        assert_close(got, want)
    assert (packed[0].pixel_logits is None) == (cls is TokenCAM)


class Shifted(TokenCAM):
    """A subclass with class maps of its own, which a pass of TokenCAM would leave out."""

    def class_maps(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        cam, token = super().class_maps(inputs)
        return cam + 1, token


@pytest.mark.parametrize(
    ("cls", "num_passes"), [(TokenCAM, 1), (RefinedCAM, 1), (MCTformer, 3), (Shifted, 3)]
)
def test_who_packs_on_a_gpu(cls: type[TokenCAM], num_passes: int) -> None:
    """A network whose pass is its own keeps it; fake tensors stand in for the GPU's."""
    network = make_network(cls)
    passes: list[int] = []
    network.backbone.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    run_fake(network, [torch.zeros(2, 3, *hw, dtype=torch.uint8) for hw in SIZES])
    assert len(passes) == num_passes


class Ops(TorchDispatchMode):
    """Counts what torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def run_fake(network: TokenCAM, inputs: list[Tensor]) -> Counter[str]:
    """The operations of a batch through :class:`MapMaker` as on a GPU, mirrored."""
    views = TestViews((32, 40, 48), flip=True)
    maker = MapMaker(network, [build_method("ad_cam")], views=views, device="cpu")
    parameters = dict(network.named_parameters())
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(), torch.no_grad():
        # Where there is a GPU, its kernels cannot run on fake tensors.
        patch.setattr(token_attention, "triton_not_supported_reasons", lambda *tensors: ["fake"])
        for name, parameter in parameters.items():
            owner, _, key = name.rpartition(".")
            empty = torch.empty(parameter.shape, device="cuda")
            setattr(network.get_submodule(owner), key, nn.Parameter(empty, requires_grad=False))
        maker.device = torch.device("cuda")
        with Ops() as ops:
            passes = maker.run_batch(
                [torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in inputs]
            )
    assert [maps.cam.shape[0] for maps in passes.token_maps] == [4, 4, 4]
    return ops.names


def test_fewer_operations() -> None:
    """Of a block, only the attention is computed size by size."""
    many = run_fake(make_network(), [torch.zeros(2, 3, *hw, dtype=torch.uint8) for hw in SIZES])
    one = run_fake(
        make_network(Shifted), [torch.zeros(2, 3, *hw, dtype=torch.uint8) for hw in SIZES]
    )
    assert (one["linear"], many["linear"]) == (4 * 4 * 3, 4 * 4)
    assert (one["gelu"], many["gelu"]) == (4 * 3, 4)
    assert (one["layer_norm"], many["layer_norm"]) == (9 * 3, 9)
    assert one["softmax"] == many["softmax"]


@pytest.mark.gpu
@pytest.mark.parametrize("cls", [TokenCAM, RefinedCAM])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu(gpu: torch.device, cls: type[TokenCAM], dtype: torch.dtype) -> None:
    network, inputs = make_network(cls).to(gpu), make_inputs(device=gpu)
    with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        assert network._packs(inputs, cls)
        got = network.token_maps_of_sizes(inputs, layer_sets=LAYER_SETS)
        want = [network.token_maps(x, layer_sets=LAYER_SETS) for x in inputs]
    # Products of another number of rows may round otherwise: on a CPU, bfloat16 itself moves maps
    # by 4e-3 and attention by 2e-3.
    atol = 1e-3 if dtype == torch.float32 else 2e-2
    for of_size, alone in zip(got, want, strict=True):
        torch.testing.assert_close(of_size.cam, alone.cam, rtol=0, atol=atol)
        assert (of_size.pixel_logits is None) == (cls is TokenCAM)
        if cls is RefinedCAM:
            torch.testing.assert_close(of_size.pixel_logits, alone.pixel_logits, rtol=0, atol=atol)
        for layers in LAYER_SETS:
            torch.testing.assert_close(
                of_size.attn_patch2patch[layers],
                alone.attn_patch2patch[layers],
                rtol=0,
                atol=atol,
            )
