"""ILSVRC 2012 in the layout of its localisation task (CLS-LOC).

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge" (IJCV 2015). Read are::

    LOC_synset_mapping.txt                   n01440764 tench, Tinca tinca
    ImageSets/CLS-LOC/train_cls.txt          n01440764/n01440764_10026 1
    ImageSets/CLS-LOC/val.txt                ILSVRC2012_val_00000001 1
    Data/CLS-LOC/train/<synset>/<name>.JPEG, Data/CLS-LOC/val/<name>.JPEG
    Annotations/CLS-LOC/val/<name>.xml       synset and boxes, often several
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adcam.data.dataset import ImageDataset, Record, build_class_set
from adcam.data.text_tables import Box, check_box, check_count, read_rows
from adcam.data.xml_text import read_xml
from adcam.errors import AdcamError

EXPECTED_COUNTS = {"train": 1_281_167, "val": 50_000}
"""Images of the two splits with labels."""

SPLITS = {"train": "train", "val": "val", "train-weaksup": "train", "test": "val"}
"""Names of splits, with those of wsolevaluation; its train-fullsup, ImageNetV2, is another data
set."""


def load_ilsvrc(
    root: str | Path,
    split: str,
    *,
    expected_counts: Mapping[str, int] | None = None,
) -> ImageDataset:
    """Load a split: ``train`` with labels, ``val`` with labels and boxes.

    Classes are WordNet ids in the order of ``LOC_synset_mapping.txt``, which is the order of the
    outputs of ImageNet classifiers; names in words are not unique (two are "crane").

    Args:
        root: The folder that holds ``Data``, ``Annotations`` and ``ImageSets``, often ``ILSVRC``;
            ``LOC_synset_mapping.txt`` lies in it or beside it.
        split: The split, one of :data:`SPLITS`.
        expected_counts: The number of images that a split must have; ``None`` takes
            :data:`EXPECTED_COUNTS`, ``{}`` checks nothing.

    Returns:
        The images in the order of the list; ids as in it.

    Raises:
        AdcamError: Unknown split, a file is missing or malformed, an annotation without an object
            or with several classes, or the count is another one.
    """
    root = Path(root)
    if split not in SPLITS:
        raise AdcamError(f"ILSVRC has the splits {', '.join(SPLITS)}, got {split!r}")
    mapping = root / "LOC_synset_mapping.txt"
    if not mapping.is_file() and (root.parent / mapping.name).is_file():
        mapping = root.parent / mapping.name
    classes = [row.cells[0] for row in read_rows(mapping, ("synset", "names"), None)]
    id_of = {synset: class_id for class_id, synset in enumerate(classes)}

    folder = SPLITS[split]
    list_path = (
        root / "ImageSets" / "CLS-LOC" / ("train_cls.txt" if folder == "train" else "val.txt")
    )
    rows = read_rows(list_path, ("image", "number"), None)
    counts = EXPECTED_COUNTS if expected_counts is None else expected_counts
    check_count(list_path, folder, len(rows), counts)
    records = []
    for row in rows:
        name = row.cells[0]
        img_path = root / "Data" / "CLS-LOC" / folder / f"{name}.JPEG"
        if folder == "train":
            class_id, boxes = _class_of(id_of, name.split("/")[0], row.where), None
        else:
            class_id, boxes = _read_annotation(
                root / "Annotations" / "CLS-LOC" / folder / f"{name}.xml", id_of
            )
        records.append(Record(name, img_path, (class_id,), boxes=boxes, as_stored=True))
    return ImageDataset(build_class_set("ilsvrc", classes, masks=False), split, records)


def _class_of(id_of: Mapping[str, int], synset: str, where: str) -> int:
    if synset not in id_of:
        raise AdcamError(
            f"{where}: unknown class {synset!r}; legal are the {len(id_of)} synsets of "
            f"LOC_synset_mapping.txt, such as {next(iter(id_of))!r}"
        )
    return id_of[synset]


def _read_annotation(path: Path, id_of: Mapping[str, int]) -> tuple[int, tuple[Box, ...]]:
    """The class of all objects, and their boxes."""
    objects = list(read_xml(path).iter("object"))
    synsets = sorted({(obj.findtext("name") or "").strip() for obj in objects})
    if len(synsets) != 1:
        raise AdcamError(f"{path}: expected objects of one class, got {synsets}")
    boxes = []
    for number, obj in enumerate(objects, start=1):
        where = f"{path}, object {number}"
        sides = ("xmin", "ymin", "xmax", "ymax")
        cells = tuple(obj.findtext(f"bndbox/{side}") or "" for side in sides)
        try:
            x0, y0, x1, y1 = map(int, cells)
        except ValueError as err:
            raise AdcamError(f"{where}: a box must be four whole numbers, got {cells}") from err
        boxes.append(check_box(where, (x0, y0, x1, y1)))
    return _class_of(id_of, synsets[0], str(path)), tuple(boxes)
