"""Images with masks as mmsegmentation's transforms and networks want them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, TypeAlias

import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, TRANSFORMS
from torch.utils.data import Dataset

from adcam.errors import AdcamError, reading_config
from adcam.structures import IGNORE_INDEX, ClassSet, Sample

with redirect_stdout(StringIO()):  # it prints which optional packages it has not found
    from mmseg.datasets.transforms import PackSegInputs

Confidence: TypeAlias = Callable[[Sample], np.ndarray]
"""From a sample with a mask to uint8 (H, W): the confidence in each pixel's value, up to 255."""


class _Labelled(Dataset[dict[str, Any]]):
    """Images and the network's outputs that their masks stand for."""

    def __init__(self, images: Sequence[Sample], class_set: ClassSet) -> None:
        self._images = images
        self._index_of_value = index_of_value(class_set)
        colors = [class_set.palette[value] for value in value_of_index(class_set)]
        self.metainfo = {"classes": class_names(class_set), "palette": colors}

    def __len__(self) -> int:
        return len(self._images)

    def _read(self, index: int) -> tuple[Sample, np.ndarray]:
        """A sample, and the output of each of its pixels, uint8 (H, W)."""
        sample = self._images[index]
        if sample.mask is None:
            raise AdcamError(f"image {sample.img_id!r} has no mask")
        return sample, self._index_of_value[sample.mask]


@DATASETS.register_module()
class SegmentationDataset(_Labelled):
    """Training crops of any images with masks.

    One class serves every layout, since ``images`` come from the readers of this project: VOC, COCO
    with 81 values, folders, all with true or with pseudo masks.

    Args:
        images: Samples with masks.
        class_set: Their classes; mask value ``class_set.mask_values[i]`` becomes index i + 1.
        pipeline: Transforms of mmsegmentation between loading and packing, as configs.
        confidence: Adds a ``weight_map`` for :class:`adcam.seg.losses.ConfidenceCrossEntropy`.

    Raises:
        AdcamError: A transform does not exist, or does not take its options.
    """

    def __init__(
        self,
        images: Sequence[Sample],
        class_set: ClassSet,
        pipeline: Sequence[Mapping[str, Any]],
        confidence: Confidence | None = None,
    ) -> None:
        super().__init__(images, class_set)
        # A training before this one may have left another scope to look names up in.
        with DefaultScope.overwrite_default_scope("mmseg"):
            self._transforms = Compose([_build(i, entry) for i, entry in enumerate(pipeline)])
        self._pack = PackSegInputs()
        self._confidence = confidence

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``inputs`` uint8 (3, h, w), BGR as mmsegmentation has it, and ``data_samples``.

        Raises:
            AdcamError: The sample has no mask, or files of it cannot be read.
        """
        sample, indices = self._read(index)
        results: dict[str, Any] = {
            "img": np.ascontiguousarray(sample.img[:, :, ::-1]),
            "img_path": str(sample.img_path),
            "img_shape": sample.ori_hw,
            "ori_shape": sample.ori_hw,
            "gt_seg_map": indices,
            "seg_fields": ["gt_seg_map"],
        }
        if self._confidence is not None:
            results["weight_map"] = self._confidence(sample)
            results["seg_fields"].append("weight_map")
        results = self._transforms(results)
        packed: dict[str, Any] = self._pack.transform(results)
        if self._confidence is not None:
            weight = torch.from_numpy(np.ascontiguousarray(results["weight_map"]))
            packed["data_samples"].weight_map = PixelData(data=weight[None])
        return packed


class WholeImages(_Labelled):
    """Images as they are with their true indices, for validation.

    Args:
        images: Samples with masks.
        class_set: Their classes.
    """

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """``img`` RGB uint8 (H, W, 3) and ``target`` uint8 (H, W).

        Raises:
            AdcamError: The sample has no mask, or files of it cannot be read.
        """
        sample, indices = self._read(index)
        return {"img": sample.img, "target": indices}


def _build(index: int, entry: Mapping[str, Any]) -> Any:
    """One transform of a pipeline; sizes from a command line or a TOML file are lists there."""
    options = {key: tuple(value) if _is_size(key, value) else value for key, value in entry.items()}
    with reading_config(f"train_pipeline.{index}: {dict(entry)}"):
        return TRANSFORMS.build(options)


def _is_size(name: str, value: Any) -> bool:
    """Whether an option is a list where a transform takes a tuple; ``scales`` are a list there."""
    is_named = name.endswith(("scale", "size", "shape"))
    return is_named and isinstance(value, list) and all(type(item) is int for item in value)


def index_of_value(class_set: ClassSet) -> np.ndarray:
    """Network output of each mask value, uint8 (256,): 0 background, i + 1 class i, else 255."""
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    table[[0, *class_set.mask_values]] = np.arange(class_set.num_fg_classes + 1)
    return table


def value_of_index(class_set: ClassSet) -> np.ndarray:
    """Mask value of each network output, uint8 (C + 1,)."""
    return np.array([0, *class_set.mask_values], dtype=np.uint8)


def class_names(class_set: ClassSet) -> tuple[str, ...]:
    """Names of the network's outputs, background first."""
    return ("background", *class_set.classes)
