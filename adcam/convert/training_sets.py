"""Masks and their images as data sets that other training code opens: mmsegmentation, datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adcam.convert.mask_source import SPLITS, MaskSource, find_masks
from adcam.convert.per_image import (
    LoopOptions,
    convert_each,
    make_each,
    masks_of,
    refuse_existing,
)
from adcam.convert.summary import ClassCounts, Converted
from adcam.data.dataset import build_class_set
from adcam.data.images import ImageError, open_image
from adcam.data.png import encode_mask, map_values, parse_values, voc_palette
from adcam.data.voc import voc_class_set
from adcam.errors import AdcamError
from adcam.files import (
    check_img_id,
    file_of_id,
    hash_file,
    img_id_of,
    read_json,
    write_bytes,
    write_json,
    write_text,
)
from adcam.options import check_choice
from adcam.parquet import TableInfo, encode_table, read_columns, read_group, read_info
from adcam.structures import IGNORE_INDEX, ClassSet

ROWS_A_FILE = 500
"""Images in one Parquet file, all of which are in memory while it is written."""


def convert_masks_to_mmseg(
    masks: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    images: str | Path | None = None,
    split: str = "train",
    values: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Masks as folders that mmsegmentation trains on, with the config of the data set.

    Written are ``img_dir/<split>/<id>.jpg``, copies of the images; ``ann_dir/<split>/<id>.png``,
    masks with the values 0..K in the order of the classes (0 background, 255 ignored); and
    ``dataset.py``, a config to start from: ``_base_ = ["…/dataset.py", …]``.

    Raises:
        AdcamError: There are no masks, ``split`` is another word, an image has another suffix than
            the others, or ``out`` holds files of other settings.
        OSError: A file cannot be written.
    """
    check_choice("split", split, SPLITS)
    source, root = find_masks(masks, class_set, images=images, values=values), Path(out)
    classes = source.class_set
    numbered = build_class_set(classes.name, classes.classes)
    number_of = dict(zip(classes.mask_values, numbered.mask_values, strict=True))
    suffix = _find_suffix(source)
    settings = {"converter": "masks-to-mmseg", "mask_values": classes.value_of, "values": values}

    def make(img_id: str) -> np.ndarray:
        image = source.find_image(img_id)
        mask = map_values(source.read(img_id), number_of)
        write_bytes(file_of_id(root / "img_dir" / split, img_id, suffix), image.read_bytes())
        return mask

    options = LoopOptions(settings, overwrite, progress)
    folder = root / "ann_dir" / split
    counts = convert_each(source.paths, make, folder, masks_of(numbered), options)
    write_text(root / "dataset.py", _format_mmseg(root, numbered, suffix))
    return counts.finish("masks-to-mmseg", root, source.describe())


def _find_suffix(source: MaskSource) -> str:
    """The suffix that all images have: mmsegmentation knows one a data set."""
    suffixes = {
        path.suffix for img_id, path in source.image_paths.items() if img_id in source.paths
    }
    if len(suffixes) > 1:
        raise AdcamError(
            f"the images have the suffixes {sorted(suffixes)}, and a data set of mmsegmentation "
            "has one"
        )
    return suffixes.pop() if suffixes else ".jpg"


def _format_mmseg(root: Path, class_set: ClassSet, suffix: str) -> str:
    """The config of the data set: its folder, classes, colours, and loaders for what is there."""
    names = ["background", *class_set.classes]
    palette = [list(class_set.palette[value]) for value in (0, *class_set.mask_values)]
    there = [split for split in SPLITS if (root / "ann_dir" / split).is_dir()]
    return _MMSEG.format(
        root=json.dumps(str(root.resolve())),
        names=json.dumps(names, ensure_ascii=False),
        palette=json.dumps(palette),
        suffix=json.dumps(suffix),
        train="train" if "train" in there else there[0],
        val="val" if "val" in there else there[-1],
    )


_MMSEG = """\
# A data set for mmsegmentation: 0 is background, 255 is ignored. Written by `adcam convert`.
dataset_type = "BaseSegDataset"
data_root = {root}
metainfo = dict(classes={names}, palette={palette})
crop_size = (512, 512)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        img_suffix={suffix},
        data_prefix=dict(img_path="img_dir/{train}", seg_map_path="ann_dir/{train}"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        img_suffix={suffix},
        data_prefix=dict(img_path="img_dir/{val}", seg_map_path="ann_dir/{val}"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
"""


def convert_masks_to_hf(
    masks: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    images: str | Path | None = None,
    split: str = "train",
    values: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Masks and images as a data set of Hugging Face: ``datasets.load_dataset(out)`` opens it.

    Written are Parquet files ``data/<split>-00000-of-0000N.parquet`` with the columns ``image``,
    ``mask`` and ``labels`` (names of the classes in the mask), and ``id2label.json`` with the class
    of each mask value, as the hub's segmentation sets have it.

    Raises:
        AdcamError: There are no masks, the split is another word or there already, or pyarrow is
            missing.
        OSError: A file cannot be written.
    """
    check_choice("split", split, SPLITS)
    source, folder = find_masks(masks, class_set, images=images, values=values), Path(out) / "data"
    count = -(-len(source.paths) // ROWS_A_FILE)
    files = [folder / f"{split}-{i:05d}-of-{count:05d}.parquet" for i in range(count)]
    old = sorted(folder.glob(f"{split}-*.parquet"))
    refuse_existing(old[0] if old else files[0], overwrite)
    classes, counts = source.class_set, ClassCounts(source.class_set)
    name_of = {value: name for name, value in classes.value_of.items()}

    def encode(img_id: str) -> tuple[Any, Any, list[str]]:
        image = source.find_image(img_id)
        mask = source.read(img_id)
        counts.add_mask(img_id, mask)
        labels = [name_of[value] for value in np.unique(mask).tolist() if value in name_of]
        return (
            {"bytes": image.read_bytes(), "path": source.name_of(img_id, ".jpg")},
            {"bytes": encode_mask(mask, classes.palette), "path": f"{img_id}.png"},
            labels,
        )

    img_ids = list(source.paths)
    for path in old:
        path.unlink()
    for i, path in enumerate(files):
        part = img_ids[i * ROWS_A_FILE : (i + 1) * ROWS_A_FILE]
        rows = list(make_each(part, encode, counts.failed, progress))
        columns = list(zip(*rows, strict=True)) or [(), (), ()]
        table = {
            name: (kind, list(cells))
            for (name, kind), cells in zip(_HF_COLUMNS.items(), columns, strict=True)
        }
        write_bytes(path, encode_table(table, metadata=_HF_METADATA, compression="none"))
    id2label = {"0": "background", **{str(v): n for v, n in name_of.items()}}
    write_json(Path(out) / "id2label.json", id2label)
    return counts.finish("masks-to-hf", Path(out), source.describe())


_HF_COLUMNS = {"image": "image", "mask": "image", "labels": "texts"}
_HF_METADATA = {
    "huggingface": json.dumps(
        {
            "info": {
                "features": {
                    "image": {"_type": "Image"},
                    "mask": {"_type": "Image"},
                    "labels": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
                }
            }
        }
    )
}


def convert_hf_to_masks(
    dataset: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    mask_column: str | None = None,
    values: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """The mask column of a data set of Hugging Face (Parquet files) as masks.

    Ids are the paths of the images that the rows hold, or else of the masks, or else ``row0`` and
    so on over all files in the order of their names. Without ``class_set``, the classes are those
    of ``id2label.json`` in the folder, else VOC's; without ``mask_column``, the masks are in
    ``mask``, ``label``, ``annotation`` or ``labels``, the first that holds images.

    Raises:
        AdcamError: There are no such files, a file has no column of masks, or two rows have one id.
        OSError: A mask cannot be written.
    """
    found = sorted(Path(dataset).rglob("*.parquet")) if Path(dataset).is_dir() else [Path(dataset)]
    if not found:
        raise AdcamError(f"{dataset}: there are no Parquet files")
    classes = class_set or _read_id2label(Path(dataset)) or voc_class_set()
    rows: dict[str, tuple[Path, str, int, int]] = {}
    for path in found:
        for name, place in _find_rows(path, mask_column, len(rows)):
            if name in rows:
                raise AdcamError(f"{path}: two rows are of the image {name!r}")
            rows[name] = place
    mapping = parse_values(values)

    def make(img_id: str) -> np.ndarray:
        path, column, group, row = rows[img_id]
        cells = read_group(str(path), group, column)
        if row >= len(cells):
            raise AdcamError(
                f"{path}: row group {group} has {len(cells)} rows, row {row} is absent"
            )
        return map_values(_decode(cells[row], column), mapping)

    settings = {
        "converter": "hf-to-masks",
        "files": [hash_file(path) for path in found],
        "mask_values": classes.value_of,
        "values": values,
    }
    options = LoopOptions(settings, overwrite, progress)
    counts = convert_each(sorted(rows), make, Path(out), masks_of(classes), options)
    return counts.finish("hf-to-masks", Path(out))


_MASK_COLUMNS = ("mask", "label", "annotation", "labels")


def _find_rows(
    path: Path, mask_column: str | None, first: int
) -> Iterator[tuple[str, tuple[Path, str, int, int]]]:
    """The id of each row of a file, and where its mask is: file, column, row group, row."""
    info = read_info(path)
    column = _find_mask_column(info, mask_column)
    names: list[Any] = []
    for images in ("image", column):
        if not any(names) and "path:" in info.types.get(images, ""):
            names = read_columns(path, [f"{images}.path"])[f"{images}.path"]
    if names and len(names) != sum(info.group_rows):
        raise AdcamError(f"{path}: it says {sum(info.group_rows)} rows and has {len(names)}")
    number = 0
    for group, count in enumerate(info.group_rows):
        for row in range(count):
            named = names[number] if names else None
            try:
                name = check_img_id(img_id_of(str(named))) if named else ""
            except AdcamError as error:
                raise AdcamError(f"{path}, row {number}: {error}") from error
            img_id = name or f"row{first + number:06d}"
            yield img_id, (path, f"{column}.bytes", group, row)
            number += 1


def _find_mask_column(info: TableInfo, wanted: str | None) -> str:
    images = [name for name, kind in info.types.items() if "bytes:" in kind]
    choices = [wanted] if wanted else [name for name in _MASK_COLUMNS if name in images]
    if not choices or choices[0] not in images:
        raise AdcamError(
            f"{info.path}: there is no column of masks {wanted or _MASK_COLUMNS}; columns of "
            f"images are {images}. --mask-column names one"
        )
    return choices[0]


def _decode(data: bytes | None, column: str) -> np.ndarray:
    """A mask from the bytes of an image of 8-bit values or a palette."""
    if data is None:
        raise AdcamError(f"the column {column!r} holds no image here")
    with open_image(data, "the mask") as img:
        if img.mode not in ("L", "P"):
            raise ImageError(f"a mask must hold 8-bit values or a palette, got mode {img.mode}")
        return np.array(img)


def _read_id2label(folder: Path) -> ClassSet | None:
    """The classes that ``id2label.json`` names, ``None`` where there is no such file."""
    path = folder / "id2label.json"
    if not path.is_file():
        return None
    content: Mapping[str, str] = read_json(path, what="the names of mask values")
    try:
        named = {int(value): str(name) for value, name in content.items() if int(value) != 0}
    except ValueError as error:
        raise AdcamError(f"{path}: its keys must be mask values ({error})") from error
    values = tuple(value for value in sorted(named) if value != IGNORE_INDEX)
    return ClassSet(folder.name, tuple(named[value] for value in values), values, voc_palette())
