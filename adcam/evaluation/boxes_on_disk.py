"""Score maps on disk against true boxes or masks: the protocols of wsolevaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from adcam.boxes import wsol
from adcam.data.score_maps import find_score_maps, read_score_map
from adcam.data.wsol import WsolMetadata, read_wsol_mask, read_wsol_metadata
from adcam.errors import AdcamError
from adcam.metrics.localization import MaxBoxAccuracy, PixelAveragePrecision
from adcam.progress import track


def evaluate_boxes(
    maps_dir: str | Path,
    metadata_dir: str | Path,
    *,
    choose_maps_dir: str | Path | None = None,
    choose_metadata_dir: str | Path | None = None,
    multi_contour: bool = True,
    step: float = 0.001,
    progress: bool = False,
) -> dict[str, Any]:
    """Score maps in wsolevaluation's format against true boxes, by the protocol's metric.

    Args:
        maps_dir: The folder of the maps ``<image id>.npy`` (:mod:`adcam.data.score_maps`).
        metadata_dir: The metadata folder of the split (:mod:`adcam.data.wsol`).
        choose_maps_dir: The maps of another split, on which thresholds are chosen. ``None`` chooses
            them on the images scored, which the result calls ``"oracle"``.
        choose_metadata_dir: The metadata folder of that other split; it is given exactly with
            ``choose_maps_dir``.
        multi_contour: Whether boxes of all contours count, rather than of the largest alone.
        step: The step between two score thresholds.
        progress: Whether to show progress on standard error.

    Returns:
        The values of :meth:`adcam.metrics.localization.BoxAccuracyResult.to_dict`, and ``split``.
        JSON-serialisable.

    Raises:
        AdcamError: A map is missing or no map, the metadata are malformed or have no boxes, or one
            of the two ``choose`` folders is given alone.
    """
    if (choose_maps_dir is None) != (choose_metadata_dir is None):
        raise AdcamError("to choose thresholds on another split, give both its maps and metadata")
    scored = _count_boxes(maps_dir, metadata_dir, multi_contour, step, progress)
    if choose_maps_dir is None or choose_metadata_dir is None:
        result = scored.compute()
    else:
        chosen = _count_boxes(choose_maps_dir, choose_metadata_dir, multi_contour, step, progress)
        result = scored.compute(
            chosen.compute().best_thresholds, chosen_on=_split_name(choose_metadata_dir)
        )
    return {"split": _split_name(metadata_dir), **result.to_dict()}


def evaluate_pixels(
    maps_dir: str | Path,
    metadata_dir: str | Path,
    mask_root: str | Path,
    *,
    step: float = 0.001,
    progress: bool = False,
) -> dict[str, Any]:
    """Score maps in wsolevaluation's format against true masks by PxAP, without a threshold.

    Args:
        maps_dir: The folder of the maps ``<image id>.npy`` (:mod:`adcam.data.score_maps`).
        metadata_dir: The metadata folder of the split, which names masks (OpenImages).
        mask_root: The folder that the paths of the masks begin in.
        step: The step between two score thresholds.
        progress: Whether to show progress on standard error.

    Returns:
        ``split``, ``px_ap`` in percent, ``num_images``, ``policy``. JSON-serialisable.

    Raises:
        AdcamError: A map or mask is missing or of no use, or the metadata name no masks.
    """
    metadata = read_wsol_metadata(metadata_dir)
    if not metadata.masks:
        raise AdcamError(f"{metadata.folder}: localization.txt names no masks; leave out mask_root")
    metric = PixelAveragePrecision(step)
    for image_id, score_map in _read_maps(maps_dir, metadata, progress):
        masks, ignore = metadata.masks[image_id]
        hw = (score_map.shape[0], score_map.shape[1])
        metric.update(score_map, read_wsol_mask(mask_root, masks, ignore, hw=hw))
    return {
        "split": _split_name(metadata_dir),
        "px_ap": metric.compute(),
        "num_images": len(metadata.image_ids),
        "policy": {"step": step},
    }


def _count_boxes(
    maps_dir: str | Path, metadata_dir: str | Path, multi_contour: bool, step: float, progress: bool
) -> MaxBoxAccuracy:
    metadata = read_wsol_metadata(metadata_dir)
    if not metadata.boxes or not metadata.image_sizes:
        raise AdcamError(
            f"{metadata.folder}: boxes need localization.txt with five columns and "
            "image_sizes.txt; masks are scored with mask_root"
        )
    metric = MaxBoxAccuracy(multi_contour=multi_contour, step=step)
    for image_id, score_map in _read_maps(maps_dir, metadata, progress):
        boxes = wsol.scale_boxes(
            np.array(metadata.boxes[image_id]),
            metadata.image_sizes[image_id],
            (score_map.shape[0], score_map.shape[1]),
        )
        metric.update(score_map, boxes, class_id=metadata.class_labels[image_id])
    return metric


def _read_maps(
    maps_dir: str | Path, metadata: WsolMetadata, progress: bool
) -> Iterator[tuple[str, np.ndarray]]:
    items = find_score_maps(maps_dir, metadata.image_ids).items()
    for image_id, path in track(items, "evaluate", len(items)) if progress else items:
        yield image_id, read_score_map(path)


def _split_name(metadata_dir: str | Path) -> str:
    """``"CUB/val"`` of ``metadata/CUB/val``."""
    folder = Path(metadata_dir).resolve()
    return f"{folder.parent.name}/{folder.name}"
