"""Class maps, of other projects or our own -> our maps, or masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from adcam.convert.per_image import (
    EncodedFile,
    LoopOptions,
    convert_each,
    encoded_files,
    masks_of,
)
from adcam.convert.summary import Converted
from adcam.data.formats import CAM_FORMATS, CamFile, read_cam_file
from adcam.data.images import check_same_hw, read_image
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
    threshold: str | float | BackgroundRule | None = None,
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
        threshold: A background rule such as ``0.2`` or ``"otsu"``
            (:func:`adcam.masks.background.parse_rule`) makes masks, ``None`` maps. Probabilities
            after a CRF (``psa_crf``) take none and always become masks, the most probable class of
            each pixel: background is among them.
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
    source = _open_maps(cams, class_set, cam_format)
    rule = None if threshold is None else parse_rule(threshold)
    _check_options(source.cam_format, rule, crf)
    image_of = _find_images(cams, images) if crf != "none" else {}
    classes = source.class_set
    settings = {
        "converter": "cams",
        "format": source.cam_format,
        "rule": None if rule is None else str(rule),
        "mask_values": classes.value_of,
        **({} if crf == "none" else {"crf": crf}),
    }
    options = LoopOptions(settings, overwrite, progress)

    def make_mask(img_id: str) -> np.ndarray:
        file = source.read(source.paths[img_id])
        if rule is None:
            return _take_likeliest(file, classes.mask_values)
        has_crf = crf != "none" and file.maps.class_ids
        refine = _build_crf(image_of.get(img_id), file.maps, crf) if has_crf else None
        return apply_rule(file.maps, rule, classes.mask_values, crf=refine).mask

    def encode(img_id: str) -> EncodedFile:
        maps = source.read(source.paths[img_id]).maps
        height, width = maps.score_maps.shape[1:]
        return EncodedFile(maps.class_ids, encode_maps(maps, classes, (height, width)))

    if source.cam_format == "psa_crf" or rule is not None:
        folder = Path(out) / MASK_DIR
        counts = convert_each(source.paths, make_mask, folder, masks_of(classes), options)
    else:
        folder = Path(out) / MAPS_DIR
        own = encoded_files(classes, ".npz", lambda path: load_maps(path).class_maps.class_ids)
        counts = convert_each(source.paths, encode, folder, own, options)
    return counts.finish("cams", folder, [f"format {source.cam_format}"])


class _MapSource(NamedTuple):
    """The maps of a folder; ``read`` gives those of a file at image size."""

    paths: Mapping[str, Path]
    class_set: ClassSet
    cam_format: str
    read: Callable[[Path], CamFile]


def _take_likeliest(file: CamFile, mask_values: Sequence[int]) -> np.ndarray:
    """The mask of the most probable class of each pixel, background among them."""
    if file.background is None:
        raise AdcamError("background is not among the maps")
    prob = np.stack([file.background, *file.maps.score_maps])
    return present_mask_values(file.maps, mask_values)[prob.argmax(axis=0)]


def _build_crf(
    img_path: Path | None, maps: ClassMaps, crf: str
) -> Callable[[np.ndarray], np.ndarray]:
    """The CRF of an image, from probabilities of background and classes to refined ones."""
    if img_path is None:
        raise AdcamError("the CRF needs the image, which is not there")
    img = read_image(img_path)
    check_same_hw("the map", maps.score_maps.shape[1:], f"its image {img_path}", img.shape[:2])
    return build_refinement(img, crf=crf)


def _open_maps(cams: str | Path, class_set: ClassSet | None, cam_format: str) -> _MapSource:
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

    return _MapSource(paths, classes, cam_format, read)


def _open_own_maps(paths: Mapping[str, Path]) -> _MapSource:
    class_set = _read_first(paths, load_maps).class_set

    def read(path: Path) -> CamFile:
        stored = load_maps(path)
        if stored.class_set != class_set:
            raise AdcamError(
                f"{path} has the classes {list(stored.classes)}, other maps have "
                f"{list(class_set.classes)}"
            )
        return CamFile("adcam", stored.upsample())

    return _MapSource(paths, class_set, "adcam", read)


def _check_options(cam_format: str, rule: BackgroundRule | None, crf: str) -> None:
    check_choice("crf", crf, ("none", *CRF_PARAMS))
    if cam_format == "psa_crf" and (rule is not None or crf != "none"):
        raise AdcamError("probabilities after a CRF take no threshold: background is among them")
    if cam_format == "adcam" and rule is None:
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
