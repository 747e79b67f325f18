"""Find patches that resemble nothing around them, and fill them in. Derivation: README.md."""

from __future__ import annotations

import torch

from adcam.ops._checks import (
    at_least_float32,
    check_choice,
    check_float,
    check_grid,
    check_non_negative,
    check_share,
    check_square,
    without_autocast,
)
from adcam.ops.artifact_patches import reference
from adcam.ops.common_neighbor.reference import COSINE_SIMILARITIES

__all__ = ["SIMILARITIES", "fill_patches", "find_artifacts", "surroundings_similarity"]

SIMILARITIES = COSINE_SIMILARITIES


def find_artifacts(
    attn: torch.Tensor,
    grid_hw: tuple[int, int],
    *,
    ratio: float = 0.65,
    similarity: str = "resource_allocation",
) -> torch.Tensor:
    """Find the patches whose attention agrees with none of the patches around them.

    With ``s`` from :func:`surroundings_similarity`, patch i is an artefact where
    ``s_i < ratio * median(s)``, the median being that of its own image.

    Vision transformers use a few patches of plain background to store what belongs to the whole
    image (Darcet et al., arXiv 2309.16588). Such patches attend to one another alike and unlike
    everything beside them, so a walk along attention never leaves them. That the neighbours in the
    image tell them apart is this project's observation (docs/methods.md).

    Args:
        attn: Attention of every patch, (..., N, N), finite and >= 0; rows need not sum to 1.
        grid_hw: Height and width of the patch grid; their product is N.
        ratio: Share of the image's median below which a patch is an artefact, in [0, 1]. Larger
            finds more; 0 finds none.
        similarity: How two attentions are compared, one of :data:`SIMILARITIES`.

    Returns:
        bool (..., N), true for artefacts. A patch without attention is one, unless ``ratio`` is 0.

    Raises:
        ValueError: If the sizes do not match, ``attn`` holds a negative, infinite or NaN value, or
            an option is outside its legal set.

    Example:
        >>> blocks = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4))  # two halves of a grid
        >>> find_artifacts(blocks, (2, 4), ratio=0.5).any().item()
        False
    """
    check_share("ratio", ratio)
    agreement = surroundings_similarity(attn, grid_hw, similarity=similarity)
    return agreement < ratio * agreement.median(dim=-1, keepdim=True).values


def surroundings_similarity(
    attn: torch.Tensor, grid_hw: tuple[int, int], *, similarity: str = "resource_allocation"
) -> torch.Tensor:
    """Compute how much a patch's attention agrees with that of the patches around it.

    It is the median of the common-neighbour similarity ``S_ij`` of
    :func:`adcam.ops.common_neighbor.neighbor_similarity` over the (up to) eight patches j that
    touch patch i; of an even number, the lower of the two in the middle.

    Args:
        attn: Attention of every patch, (..., N, N), finite and >= 0; rows need not sum to 1.
        grid_hw: Height and width of the patch grid; their product is N.
        similarity: One of :data:`SIMILARITIES`.

    Returns:
        (..., N) in [0, 1]; 1 everywhere on a grid of one patch.

    Raises:
        ValueError: As in :func:`find_artifacts`.
    """
    check_choice("similarity", similarity, SIMILARITIES)
    check_square("attn", attn)
    check_grid(grid_hw, attn.shape[-1])
    check_non_negative("attn", attn)
    with without_autocast(attn):
        return reference.surroundings_similarity(at_least_float32(attn), grid_hw, similarity)


def fill_patches(
    maps: torch.Tensor, missing: torch.Tensor, grid_hw: tuple[int, int]
) -> torch.Tensor:
    """Give missing patches the mean of the patches around them that are not missing.

    A patch surrounded by missing ones waits until some of those are filled. Where every patch of an
    image is missing, its maps stay as they are.

    Args:
        maps: Maps on the patch grid, (..., K, N).
        missing: bool (..., N), with the leading sizes of ``maps``.
        grid_hw: Height and width of the patch grid; their product is N.

    Returns:
        (..., K, N) in the dtype of ``maps``, at least float32. Patches that are not missing are as
        before, and the others lie between the smallest and the largest value of those.

    Raises:
        ValueError: If the sizes do not match or ``maps`` is not floating point.
    """
    check_float("maps", maps)
    check_grid(grid_hw, maps.shape[-1])
    if missing.dtype != torch.bool or missing.shape != (*maps.shape[:-2], maps.shape[-1]):
        raise ValueError(
            f"missing must be bool of shape {(*maps.shape[:-2], maps.shape[-1])}, got "
            f"{missing.dtype} of shape {tuple(missing.shape)}"
        )
    return reference.fill_patches(at_least_float32(maps), missing, grid_hw)
