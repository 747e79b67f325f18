"""Class maps, of other projects or our own -> our maps, or masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from adcam.convert.per_image import (
    EncodedFile,
    FileType,
    LoopOptions,
    convert_each,
    encoded_files,
    masks_of,
)
from adcam.convert.summary import Converted
from adcam.data.formats import CAM_FORMATS, CamFile, read_cam_file
from adcam.data.images import read_image
from adcam.data.voc import voc_class_set
from adcam.errors import AdcamError
from adcam.files import find_files, find_images
from adcam.labeling.maps_file import encode_maps, load_maps
from adcam.labeling.mask_maker import apply_rule
from adcam.labeling.output_folder import MAPS_DIR, MASK_DIR, maps_folder, read_output_folder
from adcam.masks.background import BackgroundRule, parse_rule, present_mask_values
from adcam.masks.crf import CRF_PARAMS, build_refinement
from adcam.options import check_choice
from adcam.structures import ClassMaps, ClassSet

T = TypeVar("T")


def convert_cams(
    cams: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    cam_format: str = "auto",
    threshold: str | None = None,
    crf: str = "none",
    images: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Class maps as ``<out>/maps/<id>.npz``, or as ``<out>/masks/<id>.png``.

    Maps are stored as :mod:`adcam.labeling.maps_file` does, at stride 16; masks are made at image
    size.

    Args:
        cams: Folder of ``<id>.npy`` of another project (:mod:`adcam.data.formats`), all of one
            format; or of our own maps ``<id>.npz``, or the output folder above them.
        out: Folder to write into.
        class_set: The classes, in the order of the files' numbers; ``None`` for VOC's. Our own maps
            bring theirs.
        cam_format: One of :data:`adcam.data.formats.CAM_FORMATS`; ``"auto"`` asks the first file
            that can be read.
        threshold: A background rule such as ``"0.2"`` (:func:`adcam.masks.background.parse_rule`)
            makes masks, ``None`` maps. Probabilities after a CRF (``psa_crf``) take none and always
            become masks, the most probable class of each pixel: background is among them.
        crf: ``"none"``, or a parameter set of :data:`adcam.masks.crf.CRF_PARAMS` that refines
            masks; it needs ``threshold`` and the images.
        images: Folder of the images; ``None`` takes those that an output folder names.
        overwrite: Whether files that are there are made again.
        progress: Whether progress is shown on standard error.

    Raises:
        AdcamError: There are no such files, the format is not known, ``threshold`` is no rule or is
            given for probabilities, the CRF lacks what it needs, or ``out`` holds files of other
            settings.
        OSError: A file cannot be written.
    """
    reader = _open_maps(cams, class_set, cam_format)
    rule = None if threshold is None else parse_rule(threshold)
    _check_options(reader, rule, crf)
    image_of = _find_images(cams, images) if crf != "none" else {}
    options = LoopOptions(reader.describe(rule, crf), overwrite, progress)
    if reader.cam_format == "psa_crf" or rule is not None:
        maker = _MaskMaker(reader, rule, crf, image_of)
        folder = Path(out) / MASK_DIR
        counts = convert_each(reader.paths, maker, folder, masks_of(reader.class_set), options)
    else:
        folder = Path(out) / MAPS_DIR
        counts = convert_each(reader.paths, reader.encode, folder, reader.file_type, options)
    return counts.finish("cams", folder, [f"format {reader.cam_format}"])


@dataclass(frozen=True)
class _MapReader:
    """Reads the maps of a folder at image size."""

    paths: Mapping[str, Path]
    class_set: ClassSet
    cam_format: str
    read: Callable[[Path], CamFile]

    def describe(self, rule: BackgroundRule | None, crf: str) -> dict[str, Any]:
        """Everything that decides what becomes of the maps."""
        return {
            "converter": "cams",
            "format": self.cam_format,
            "rule": None if rule is None else str(rule),
            "mask_values": self.class_set.value_of,
            **({} if crf == "none" else {"crf": crf}),
        }

    @property
    def file_type(self) -> FileType[EncodedFile]:
        """Our own files of maps."""
        return encoded_files(
            self.class_set, ".npz", lambda path: load_maps(path).class_maps.class_ids
        )

    def encode(self, img_id: str) -> EncodedFile:
        """The maps of an image as a file of ours."""
        maps = self.read(self.paths[img_id]).maps
        height, width = maps.score_maps.shape[1:]
        return EncodedFile(maps.class_ids, encode_maps(maps, self.class_set, (height, width)))


@dataclass(frozen=True)
class _MaskMaker:
    """Makes the mask of an image from its maps."""

    reader: _MapReader
    rule: BackgroundRule | None
    crf: str
    image_of: Mapping[str, Path]

    def __call__(self, img_id: str) -> np.ndarray:
        path = self.reader.paths[img_id]
        file, values = self.reader.read(path), self.reader.class_set.mask_values
        if self.rule is None:
            if file.background is None:
                raise AdcamError(f"{path}: background is not among the maps")
            prob = np.stack([file.background, *file.maps.score_maps])
            return present_mask_values(file.maps, values)[prob.argmax(axis=0)]
        has_crf = self.crf != "none" and file.maps.class_ids
        crf = self._build_crf(img_id, file.maps) if has_crf else None
        return apply_rule(file.maps, self.rule, values, crf=crf).mask

    def _build_crf(self, img_id: str, maps: ClassMaps) -> Callable[[np.ndarray], np.ndarray]:
        if (path := self.image_of.get(img_id)) is None:
            raise AdcamError("the CRF needs the image, which is not there")
        img = read_image(path)
        if img.shape[:2] != maps.score_maps.shape[1:]:
            raise AdcamError(
                f"{path} is of {img.shape[0]}×{img.shape[1]} pixels (height × width), but its maps "
                f"are of {maps.score_maps.shape[1]}×{maps.score_maps.shape[2]}"
            )
        return build_refinement(img, crf=self.crf)


def _open_maps(cams: str | Path, class_set: ClassSet | None, cam_format: str) -> _MapReader:
    folder = maps_folder(cams)
    paths = find_files(folder, ".npy", ".npz")
    suffixes = {path.suffix.lower() for path in paths.values()}
    if len(suffixes) > 1:
        raise AdcamError(f"{folder} holds maps of adcam (.npz) beside others (.npy)")
    if suffixes == {".npz"}:
        return _open_own_maps(paths)
    check_choice("the format", cam_format, ("auto", *CAM_FORMATS))
    classes = class_set or voc_class_set()
    num = classes.num_fg_classes
    if cam_format == "auto":
        cam_format = _read_first(paths, lambda p: read_cam_file(p, num_fg_classes=num)).cam_format

    def read(path: Path) -> CamFile:
        return read_cam_file(path, num_fg_classes=num, cam_format=cam_format)

    return _MapReader(paths, classes, cam_format, read)


def _open_own_maps(paths: Mapping[str, Path]) -> _MapReader:
    class_set = _read_first(paths, load_maps).class_set

    def read(path: Path) -> CamFile:
        stored = load_maps(path)
        if stored.class_set != class_set:
            raise AdcamError(
                f"{path} has the classes {list(stored.classes)}, other maps have "
                f"{list(class_set.classes)}"
            )
        return CamFile("adcam", stored.upsample())

    return _MapReader(paths, class_set, "adcam", read)


def _check_options(reader: _MapReader, rule: BackgroundRule | None, crf: str) -> None:
    check_choice("crf", crf, ("none", *CRF_PARAMS))
    if reader.cam_format == "psa_crf" and (rule is not None or crf != "none"):
        raise AdcamError("probabilities after a CRF take no threshold: background is among them")
    if reader.cam_format == "adcam" and rule is None:
        raise AdcamError("these are maps of adcam already; --threshold makes masks of them")
    if crf != "none" and rule is None:
        raise AdcamError("--crf refines masks; --threshold says how they are made of the maps")


def _find_images(cams: str | Path, images: str | Path | None) -> Mapping[str, Path]:
    if images is not None:
        return find_images(images)
    own = read_output_folder(cams)
    if own is None:
        raise AdcamError("--crf needs the images of the maps; name their folder with --images")
    return own.image_paths


def _read_first(paths: Mapping[str, Path], read: Callable[[Path], T]) -> T:
    """What the first file that can be read holds; if none can, the last one's error is raised."""
    error = AdcamError("there are no files of class maps")
    for path in paths.values():
        try:
            return read(path)
        except AdcamError as err:
            error = err
    raise error
