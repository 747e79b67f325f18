"""What becomes of class maps in `adcam generate`: a mask, and its file.

Apart from :mod:`adcam.labeling.generate` so that a process which only writes loads no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adcam.data.png import encode_mask
from adcam.files import check_img_id, write_bytes
from adcam.labeling.maps_file import STRIDES, encode_maps
from adcam.labeling.mask_maker import resize_mask
from adcam.labeling.output_folder import (
    MAPS,
    MASK,
    describe_contents,
    require_folder,
    result_files,
)
from adcam.labeling.shown import keep_shown
from adcam.labeling.steps import Mapped, MaskMaking, Task, describe_classes
from adcam.structures import ClassSet, PseudoMask


@dataclass(frozen=True)
class MaskJob(MaskMaking):
    """Class maps become a mask and, if asked for, a file of maps.

    Attributes:
        mask_maker: Turns maps into a mask.
        folder: The output folder.
        class_set: Names, mask values and colours of the classes.
        maps_dtype: As for :func:`adcam.labeling.generate.generate`.
        label_thresholds: The probability from which each class counts as found.
        maps_stride: As for :func:`adcam.labeling.maps_file.encode_maps`.
        shown_every: Every n-th image is kept for the report (:mod:`adcam.labeling.shown`); 0 keeps
            none.
    """

    folder: Path
    class_set: ClassSet
    maps_dtype: str | None
    label_thresholds: tuple[float, ...]
    maps_stride: int = STRIDES[0]
    shown_every: int = 0

    def needs_maps(self, task: Task) -> bool:
        """Tell whether an image's maps are written, so that they must leave the device."""
        return self.maps_dtype is not None or self.is_shown(task)

    def is_shown(self, task: Task) -> bool:
        """Tell whether an image is kept for the report."""
        return self.shown_every > 0 and task.index % self.shown_every == 0

    def find_files(self, task: Task) -> Mapping[str, Path]:
        """Find where the mask and the maps of an image belong."""
        return result_files(self.folder, task.img_id)

    def write(self, image: Mapped, result: PseudoMask) -> dict[str, Any]:
        """Write mask and maps, and return the entry of the manifest."""
        files = self.find_files(image.task)
        require_folder(self.folder)
        contents, entry = self.encode(image, result)
        for name, content in contents.items():
            # On the disk before the manifest says so.
            write_bytes(files[name], content, durable=True)
        if self.is_shown(image.task):
            keep_shown(self.folder, image, self.class_set, stride=self.maps_stride)
        return entry

    def encode(self, image: Mapped, result: PseudoMask) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Encode mask and maps: the one place where the bytes of a result are made.

        Returns:
            The contents of the files by the manifest keys that hold their hashes, and the entry.
        """
        mask = resize_mask(result.mask, image.ori_hw)
        contents = {MASK: encode_mask(mask, self.class_set.palette, image.task.img_id)}
        if self.maps_dtype is not None:
            contents[MAPS] = encode_maps(
                image.maps,
                self.class_set,
                image.ori_hw,
                dtype=self.maps_dtype,
                stride=self.maps_stride,
            )
        described = describe_classes(image, self.class_set.classes, self.label_thresholds)
        return contents, {
            "status": "ok",
            **described,
            "rule": result.rule,
            "threshold": result.threshold,
            "chosen_on": result.chosen_on,
            "ori_hw": list(image.ori_hw),
            **describe_contents(contents),
        }


@dataclass(frozen=True)
class PackedMaskJob(MaskJob):
    """As :class:`MaskJob`, but mask and maps go with the entry: they become a part of larger files.

    The entry holds them under ``files``, for :class:`adcam.labeling.packed_folder.PackedFolder`.
    """

    def find_files(self, task: Task) -> Mapping[str, Path]:
        """Check the id; the image has no files of its own."""
        check_img_id(task.img_id)
        return {}

    def write(self, image: Mapped, result: PseudoMask) -> dict[str, Any]:
        """Return the entry of the manifest, with the contents of the files."""
        contents, entry = self.encode(image, result)
        return {**entry, "files": contents}
