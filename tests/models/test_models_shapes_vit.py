"""The demo's network: any grid, attention by similarity, convolutions that count."""

from __future__ import annotations

import pytest
import timm
import torch

from adcam.models.token_cam import TokenCAM


def make(seed: int = 0) -> TokenCAM:
    torch.manual_seed(seed)
    return TokenCAM("shapes_vit", num_fg_classes=3, img_size=96).eval()


@pytest.mark.parametrize(("hw", "grid_hw"), [((96, 96), (12, 12)), ((64, 120), (8, 15))])
def test_any_grid(hw: tuple[int, int], grid_hw: tuple[int, int]) -> None:
    maps = make().token_maps(torch.randn(2, 3, *hw), layer_sets=[(4, 5)])
    assert maps.grid_hw == grid_hw
    num_patches = grid_hw[0] * grid_hw[1]
    assert maps.attn_patch2patch[4, 5].shape == (2, num_patches, num_patches)


@torch.no_grad()
def test_patches_attend_to_their_own_colour() -> None:
    """Left half red, right half blue: untrained attention hardly crosses."""
    img = torch.zeros(1, 3, 96, 96)
    img[:, 0, :, :48] = 1.0
    img[:, 2, :, 48:] = 1.0
    attn = make().token_maps(img, layer_sets=[(0, 1, 2, 3, 4, 5)]).attn_patch2patch
    across = attn[0, 1, 2, 3, 4, 5].view(12, 12, 12, 12)
    left_to_left = across[:, :6, :, :6].sum(dim=(2, 3)).mean()
    left_to_right = across[:, :6, :, 6:].sum(dim=(2, 3)).mean()
    assert left_to_left > 10 * left_to_right


@torch.no_grad()
def test_convolutions_are_added_to_the_projection() -> None:
    embed = make().backbone.patch_embed
    imgs = torch.randn(1, 3, 96, 96)
    together = embed(imgs)
    embed.proj.weight.zero_()
    embed.proj.bias.zero_()
    fine = embed(imgs)
    for parameter in embed.convs.parameters():
        parameter.zero_()
    assert torch.count_nonzero(embed(imgs)) == 0
    assert fine.abs().mean() > 0.01
    assert not torch.allclose(together, fine)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="no weights at timm"):
        timm.create_model("shapes_vit", pretrained=True)
    with pytest.raises(ValueError, match="patch_size"):
        TokenCAM("shapes_vit", num_fg_classes=3, img_size=96, backbone_kwargs={"patch_size": 16})
