"""AD-CAM: activations diffuse along attention refined by common neighbours.

After "Attention-based Class Activation Diffusion for Weakly-Supervised Semantic Segmentation"
(Huang et al., arXiv 2211.10931). Only its abstract is known here: attention is refined
conservatively (pixels whose neighbourhoods differ attend less) and activation is diffused in
proportion to it. The formulas are this project's own; docs/methods.md derives and measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adcam.cams.activation import check_start_options, patch_attention, start_maps
from adcam.errors import AdcamError
from adcam.ops import artifact_patches
from adcam.ops.common_neighbor import SIMILARITIES, common_neighbor
from adcam.ops.diffusion import NORMALIZATIONS, diffuse
from adcam.ops.token_attention import resolve_layers
from adcam.options import check_choice, check_range
from adcam.structures import TokenMaps


@dataclass(frozen=True)
class ADCAM:
    """Refine the attention, then diffuse the activation along it.

    Attributes:
        similarity: How two patches' attentions are compared: ``"resource_allocation"``,
            ``"cosine"``, ``"bhattacharyya"``, ``"overlap"`` or ``"none"``.
        power: Exponent of the similarity; larger cuts links between unlike patches harder.
        normalize: ``"sinkhorn"``, ``"row"`` or ``"column"``.
        num_steps: Diffusion steps; more spreads further. ``None`` with ``alpha`` is the limit of
            infinitely many.
        alpha: Restart: share of the diffused map in each step, in [0, 1]; ``None`` for none.
        layers: Blocks whose patch-to-patch attention is averaged.
        init: ``"coupled"`` (class maps times the class token's attention) or ``"cam"``.
        negatives: What happens to negative class evidence: ``"shift"`` keeps its order, ``"relu"``
            cuts it off, ``"keep"`` leaves it.
        rival_weight: Share of the strongest other class of the image that is subtracted from a
            class map, in [0, 1); a larger share separates classes harder.
        cls_layers: Blocks whose class-token attention is averaged for the coupled start.
        clip_quantile: Quantile of each refined map at which its largest values are cut off, in
            (0, 1]. 1 cuts nothing; a smaller one gives more patches the top score.
        artifact_ratio: Share of the image's median agreement with the patches around it below which
            a patch is taken out of the diffusion and filled in afterwards
            (:mod:`adcam.ops.artifact_patches`), in [0, 1]. A larger share takes out more; 0 keeps
            every patch.
        color_steps: Number of steps in which the maps spread along the colours of the image, on a
            grid four times finer than the patches (:mod:`adcam.ops.color_diffusion`). More steps
            smooth more; 0 leaves the maps as they are.
    """

    similarity: str = "resource_allocation"
    power: float = 2.0
    normalize: str = "sinkhorn"
    num_steps: int | None = 2
    alpha: float | None = None
    layers: str | tuple[int, ...] = "last:1/2"
    init: str = "coupled"
    negatives: str = "shift"
    rival_weight: float = 0.5
    cls_layers: str | tuple[int, ...] = "last:1/3"
    clip_quantile: float = 0.985
    artifact_ratio: float = 0.0
    color_steps: int = 0

    def __post_init__(self) -> None:
        check_start_options(
            init=self.init,
            negatives=self.negatives,
            rival_weight=self.rival_weight,
            layers=self.layers,
            cls_layers=self.cls_layers,
        )
        check_choice("similarity", self.similarity, SIMILARITIES)
        check_choice("normalize", self.normalize, NORMALIZATIONS)
        check_range("power", self.power, "[0, inf)")
        check_range("clip_quantile", self.clip_quantile, "(0, 1]")
        check_range("artifact_ratio", self.artifact_ratio, "[0, 1]")
        check_range("color_steps", self.color_steps, "[0, inf)")
        if self.num_steps is not None:
            check_range("num_steps", self.num_steps, "[0, inf)")
        elif self.alpha is None:
            raise AdcamError("num_steps=None is the limit of a walk with restart: give alpha too")
        if self.alpha is not None:
            check_range("alpha", self.alpha, "[0, 1]" if self.num_steps is not None else "[0, 1)")

    def layer_sets(self, depth: int) -> tuple[tuple[int, ...], ...]:
        """The sets of blocks whose patch-to-patch attention is needed."""
        return (resolve_layers(self.layers, depth),)

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return (B, K, h, w) non-negative maps for class ids (B, K)."""
        start = start_maps(
            maps,
            class_ids,
            init=self.init,
            method="ad_cam",
            negatives=self.negatives,
            rival_weight=self.rival_weight,
            cls_layers=self.cls_layers,
        )
        attn = patch_attention(maps, resolve_layers(self.layers, maps.depth))
        if not self.artifact_ratio:
            refined = self._diffuse(start.flatten(2), attn)
        else:
            stray = artifact_patches.find_artifacts(attn, maps.grid_hw, ratio=self.artifact_ratio)
            kept = (~stray).to(attn.dtype)  # (B, N)
            clean = attn * kept[:, :, None] * kept[:, None, :]
            refined = self._diffuse(start.flatten(2) * kept[:, None], clean)
            refined = artifact_patches.fill_patches(refined, stray, maps.grid_hw)
        return clip_at_quantile(refined, quantile=self.clip_quantile).reshape(start.shape)

    def _diffuse(self, start: Tensor, attn: Tensor) -> Tensor:
        """Refine attention (B, N, N) and spread the start (B, K, N) along it."""
        affinity = common_neighbor(attn, similarity=self.similarity, power=self.power)
        return diffuse(
            start,
            affinity,
            normalize=self.normalize,
            num_steps=self.num_steps,
            alpha=self.alpha,
        )


def clip_at_quantile(maps: Tensor, *, quantile: float) -> Tensor:
    """Cut each map off at a quantile of its own values.

    A few patches that attend to each other alone (the artefacts of Darcet et al., "Vision
    Transformers Need Registers", arXiv 2309.16588) keep what they start with, however far the rest
    spreads; scaled to their maximum, the object would be faint.

    Args:
        maps: (..., N) float maps.
        quantile: The quantile in (0, 1], linear between the two nearest values.

    Raises:
        AdcamError: If the quantile lies outside (0, 1].
    """
    check_range("clip_quantile", quantile, "(0, 1]")
    if quantile == 1 or not maps.numel():
        return maps
    return maps.minimum(maps.quantile(quantile, dim=-1, keepdim=True))
