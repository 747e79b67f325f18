"""AD-CAM: activations diffuse along attention refined by common neighbours.

After "Attention-based Class Activation Diffusion for Weakly-Supervised Semantic Segmentation"
(Huang et al., arXiv 2211.10931). Only its abstract is known here: attention is refined
conservatively (pixels whose neighbourhoods differ attend less) and activation is diffused in
proportion to it. The formulas are this project's own; docs/methods.md derives and measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adcam.cams.activation import DiffusionMethod
from adcam.errors import AdcamError
from adcam.ops.common_neighbor import SIMILARITIES
from adcam.ops.diffusion import NORMALIZATIONS
from adcam.ops.refinement import RefineOptions, refine_maps
from adcam.ops.two_hop_walk import two_hop_walk
from adcam.options import setting
from adcam.structures import TokenMaps


@dataclass(frozen=True)
class ADCAM(DiffusionMethod):
    """Refine the attention, then diffuse the activation along it.

    Attributes:
        similarity: How two patches' attentions are compared: ``"resource_allocation"``,
            ``"cosine"``, ``"bhattacharyya"``, ``"overlap"`` or ``"none"``.
        power: Exponent of the similarity; larger cuts links between unlike patches harder.
        normalize: ``"sinkhorn"``, ``"row"`` or ``"column"``.
        num_steps: Diffusion steps; more spreads further. ``None`` with ``alpha`` is the limit of
            infinitely many.
        alpha: Restart: share of the diffused map in each step, in [0, 1]; ``None`` for none.
        clip_quantile: Quantile of each refined map at which its largest values are cut off, in
            (0, 1]. 1 cuts nothing; a smaller one gives more patches the top score.
        artifact_ratio: Share of the image's median agreement with the patches around it below which
            a patch is taken out of the diffusion and filled in afterwards
            (:mod:`adcam.ops.artifact_patches`), in [0, 1]. A larger share takes out more; 0 keeps
            every patch.
        walk: ``"refined"`` diffuses along the attention refined by common neighbours;
            ``"two_hop"`` is the quick form, in which maps walk to a neighbour and on to one of
            those who attend to it (:mod:`adcam.ops.two_hop_walk`). ``similarity``, ``power``,
            ``normalize``, ``num_steps``, ``alpha`` and ``artifact_ratio`` play no part in it.
        two_hop_steps: Number of steps of the quick form; more spreads further.
        exact: Whether a GPU refines in the precision of float32; otherwise it multiplies float16
            with sums in float32. A CPU is always exact.
        color_steps: Number of steps in which the maps spread along the colours of the image, on a
            grid four times finer than the patches (:mod:`adcam.ops.color_diffusion`). More steps
            smooth more; 0 leaves the maps as they are.
    """

    similarity: str = setting("resource_allocation", choices=SIMILARITIES)
    power: float = setting(2.0, at_least=0)
    normalize: str = setting("sinkhorn", choices=NORMALIZATIONS)
    num_steps: int | None = setting(2, at_least=0)
    alpha: float | None = setting(None, at_least=0, at_most=1)
    layers: str | tuple[int, ...] = "last:1/2"
    cls_layers: str | tuple[int, ...] = "last:1/3"
    clip_quantile: float = setting(0.985, above=0, at_most=1)
    artifact_ratio: float = setting(0.65, at_least=0, at_most=1)
    walk: str = setting("refined", choices=("refined", "two_hop"))
    two_hop_steps: int = setting(1, at_least=0)
    exact: bool = False
    color_steps: int = setting(10, at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps is None and self.alpha is None:
            raise AdcamError("num_steps=None is the limit of a walk with restart: give alpha too")
        if self.num_steps is None and self.alpha == 1:
            raise AdcamError("alpha must be below 1 where num_steps=None, got 1")

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return (B, K, h, w) non-negative maps for class ids (B, K)."""
        start = self.start_maps(maps, class_ids)
        attn = self.patch_attention(maps)
        if self.walk == "two_hop":
            spread = two_hop_walk(start.flatten(2), attn, num_steps=self.two_hop_steps)
        else:
            spread = self._refine(start.flatten(2), attn, maps.grid_hw)
        return clip_at_quantile(spread, quantile=self.clip_quantile).reshape(start.shape)

    def _refine(self, start: Tensor, attn: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        options = RefineOptions(
            artifact_ratio=self.artifact_ratio,
            similarity=self.similarity,
            power=self.power,
            normalize=self.normalize,
            num_steps=self.num_steps,
            alpha=self.alpha,
            exact=self.exact,
        )
        return refine_maps(start, attn, grid_hw, options)


def clip_at_quantile(maps: Tensor, *, quantile: float) -> Tensor:
    """Cut each map off at a quantile of its own values.

    A few patches that attend to each other alone (the artefacts of Darcet et al., "Vision
    Transformers Need Registers", arXiv 2309.16588) keep what they start with, however far the rest
    spreads; scaled to their maximum, the object would be faint.

    Args:
        maps: (..., N) float maps.
        quantile: The quantile in (0, 1], linear between the two nearest values.
    """
    if quantile == 1 or not maps.numel():
        return maps
    return maps.minimum(maps.quantile(quantile, dim=-1, keepdim=True))
