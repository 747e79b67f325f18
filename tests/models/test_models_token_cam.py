"""TokenCAM: grid orientation, sizes, kinds of ViT, precision, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adcam.models.token_cam import TokenCAM, build_backbone, compute_grid_hw

TINY = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "deit": ("deit_tiny_patch16_224", {}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 4}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "no class token": ("vit_tiny_patch16_224", {"class_token": False}),
    "no_embed_class": ("deit3_small_patch16_224", {}),
}


def make_network(kind: str = "deit", *, num_fg_classes: int = 4, **options: Any) -> TokenCAM:
    torch.manual_seed(0)
    name, own = KINDS[kind]
    network = TokenCAM(
        name,
        num_fg_classes=num_fg_classes,
        img_size=32,
        backbone_kwargs={**TINY, **own, **options},
    )
    nn.init.normal_(network.head.weight, std=0.1)
    nn.init.normal_(network.head.bias)  # type: ignore[arg-type]
    return network.eval()


def make_pointwise(network: TokenCAM) -> None:
    """Keep only the centre of the 3×3 head, so that a map value depends on one token."""
    with torch.no_grad():
        centre = network.head.weight[:, :, 1, 1].clone()
        network.head.weight.zero_()
        network.head.weight[:, :, 1, 1] = centre


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid_hw", [(4, 4), (3, 5), (5, 2), (1, 1)])
@torch.no_grad()
def test_shapes_and_logits(kind: str, grid_hw: tuple[int, int]) -> None:
    network = make_network(kind)
    inputs = torch.randn(2, 3, 8 * grid_hw[0], 8 * grid_hw[1])
    maps = network.token_maps(inputs, layer_sets=[(0, 1), (1,)])
    num_patches = grid_hw[0] * grid_hw[1]
    assert maps.grid_hw == grid_hw
    assert maps.depth == 2
    assert maps.cam.shape == (2, 4, *grid_hw)
    torch.testing.assert_close(maps.logits, maps.cam.flatten(2).mean(dim=2), rtol=0, atol=1e-6)
    torch.testing.assert_close(network(inputs), maps.logits, rtol=0, atol=1e-6)
    assert set(maps.attn_patch2patch) == {(0, 1), (1,)}
    assert maps.attn_patch2patch[(1,)].shape == (2, num_patches, num_patches)
    if kind == "no class token":
        assert maps.attn_cls2patch is None
    else:
        assert maps.attn_cls2patch is not None
        assert maps.attn_cls2patch.shape == (2, 2, num_patches)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_maps_are_the_head_on_the_tokens_in_row_major_order(kind: str) -> None:
    network = make_network(kind)
    make_pointwise(network)
    inputs = torch.randn(2, 3, 24, 40)  # a 3×5 grid
    tokens = network.backbone.forward_features(inputs)
    first = tokens.shape[1] - 15
    assert first == network.backbone.num_prefix_tokens
    cam = network.token_maps(inputs).cam
    weight, bias = network.head.weight[:, :, 1, 1], network.head.bias
    for row in range(3):
        for column in range(5):
            expected = tokens[:, first + 5 * row + column] @ weight.T + bias
            torch.testing.assert_close(cam[:, :, row, column], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("corner", [(0, 0), (0, 4), (2, 0), (2, 4), (1, 3)])
@torch.no_grad()
def test_a_change_in_one_patch_shows_at_that_place(corner: tuple[int, int]) -> None:
    network = make_network(depth=1)
    make_pointwise(network)
    plain = torch.zeros(1, 3, 24, 40)
    changed = plain.clone()
    top, left = 8 * corner[0], 8 * corner[1]
    changed[:, :, top : top + 8, left : left + 8] = torch.randn(
        3, 8, 8, generator=torch.Generator().manual_seed(3)
    )
    change = (network.token_maps(changed).cam - network.token_maps(plain).cam).abs().sum(dim=1)[0]
    assert divmod(int(change.argmax()), 5) == corner
    assert change.max() > 5 * change.flatten().sort().values[-2]


@torch.no_grad()
def test_the_head_is_a_padded_3x3_convolution() -> None:
    network = make_network()
    inputs = torch.randn(1, 3, 24, 40)
    tokens = network.backbone.forward_features(inputs)[:, 1:]
    padded = torch.zeros(24, 5, 7)
    padded[:, 1:-1, 1:-1] = tokens[0].T.reshape(24, 3, 5)
    expected = torch.stack(
        [
            torch.stack(
                [
                    torch.einsum(
                        "cdij,dij->c", network.head.weight, padded[:, i : i + 3, j : j + 3]
                    )
                    for j in range(5)
                ],
                dim=-1,
            )
            for i in range(3)
        ],
        dim=-2,
    ) + network.head.bias.reshape(-1, 1, 1)  # type: ignore[union-attr]
    torch.testing.assert_close(network.token_maps(inputs).cam[0], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_images_of_a_batch_do_not_mix() -> None:
    network = make_network()
    inputs = torch.randn(3, 3, 16, 40)
    together = network.token_maps(inputs, layer_sets=[(0, 1)])
    for index in range(3):
        alone = network.token_maps(inputs[index : index + 1], layer_sets=[(0, 1)])
        torch.testing.assert_close(alone.cam[0], together.cam[index], rtol=0, atol=1e-5)
        torch.testing.assert_close(
            alone.attn_patch2patch[(0, 1)][0],
            together.attn_patch2patch[(0, 1)][index],
            rtol=0,
            atol=1e-6,
        )


@pytest.mark.parametrize("hw", [(8, 8), (8, 80), (64, 24), (32, 32)])
def test_any_multiple_of_the_patch(hw: tuple[int, int]) -> None:
    maps = make_network().token_maps(torch.randn(1, 3, *hw))
    assert maps.grid_hw == (hw[0] // 8, hw[1] // 8)
    assert bool(maps.cam.isfinite().all())


@pytest.mark.parametrize("hw", [(20, 32), (32, 20), (7, 8), (0, 8)])
def test_other_sizes_are_refused(hw: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"{hw[0]}×{hw[1]} \(H×W\).*8×8"):
        make_network().token_maps(torch.zeros(1, 3, *hw))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 32, 32, 3)])
def test_other_layouts_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        make_network()(torch.zeros(shape))


def test_grid_of_a_patch_that_is_not_square() -> None:
    assert compute_grid_hw(torch.zeros(1, 3, 48, 64), (16, 8)) == (3, 8)
    with pytest.raises(ValueError, match="16×8"):
        compute_grid_hw(torch.zeros(1, 3, 40, 64), (16, 8))


def test_gradients_reach_pixels_and_weights() -> None:
    network = make_network()
    inputs = torch.randn(1, 3, 24, 40, requires_grad=True)
    maps = network.token_maps(inputs, layer_sets=[(0, 1)])

    def grad_of(value: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(value, inputs, retain_graph=True)
        return grad

    assert maps.attn_cls2patch is not None
    for value in (maps.logits, maps.cam, maps.attn_cls2patch, maps.attn_patch2patch[(0, 1)]):
        assert grad_of(value.square().sum()).abs().max() > 0
    maps.logits.sum().backward()
    assert all(
        parameter.grad is not None and bool(parameter.grad.isfinite().all())
        for parameter in network.parameters()
    )


@torch.no_grad()
def test_bfloat16_stays_close_to_float32() -> None:
    network = make_network()
    inputs = torch.randn(2, 3, 24, 40)
    full = network.token_maps(inputs, layer_sets=[(0, 1)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network.token_maps(inputs, layer_sets=[(0, 1)])
    assert half.cam.dtype == half.logits.dtype == torch.float32
    assert half.attn_patch2patch[(0, 1)].dtype == torch.float32
    torch.testing.assert_close(half.cam, full.cam, rtol=0, atol=0.05 * float(full.cam.abs().max()))
    torch.testing.assert_close(
        half.attn_patch2patch[(0, 1)], full.attn_patch2patch[(0, 1)], rtol=0.05, atol=1e-4
    )
    torch.testing.assert_close(half.attn_cls2patch, full.attn_cls2patch, rtol=0.05, atol=1e-4)


def test_pixel_statistics_are_those_of_the_weights() -> None:
    deit = make_network("deit")
    assert deit.pixel_stats == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    augreg = make_network("registers")  # trained with inputs in [-1, 1]
    assert augreg.pixel_stats == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deit_tinny_patch16_224", {}, "unknown timm model 'deit_tinny.*deit_tiny_patch16_224"),
        ("deit_tiny", {}, "unknown timm model 'deit_tiny'.* deit_tiny_patch16_224"),
        ("hf-hub:someone/else", {}, "unknown timm model"),
        ("resnet18", {}, "resnet18"),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24}, "SwinTransformer"),
        ("deit_tiny_patch16_224", {**TINY, "embeddim": 24}, "embeddim"),
        ("deit_tiny_patch16_224", {**TINY, "num_heads": 5}, "num_heads"),
        ("vit_tiny_patch16_224", {**TINY, "attn_layer": "diff"}, "DiffAttention"),
    ],
)
def test_models_that_do_not_serve(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenCAM(name, num_fg_classes=2, backbone_kwargs=options)


def test_a_build_says_nothing_about_pooling(recwarn: pytest.WarningsRecorder) -> None:
    make_network()
    assert not recwarn.list


def test_patches_are_embedded_in_full_precision_while_gradients_are_taken() -> None:
    embed = build_backbone("vit_tiny_patch16_224", img_size=32, weights=None, depth=1).patch_embed
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exact = embed(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(embed(inputs), exact)
        with torch.inference_mode():
            assert embed(inputs).dtype == torch.bfloat16
        with pytest.raises(RuntimeError):
            embed(inputs[:, :2])
        assert (inputs[0, 0] @ inputs[0, 0]).dtype == torch.bfloat16  # autocast is on again
