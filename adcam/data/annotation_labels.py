"""Image-level labels out of annotations: an image shows the classes of the objects in it.

Read are a folder of VOC's XML files, a folder of YOLO's text files, "CVAT for images" and the JSON
of Label Studio. Boxes and outlines are not looked at, only what they are called.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adcam.data.cvat import list_labels
from adcam.data.label_studio import find_image_name
from adcam.data.xml_text import read_xml
from adcam.errors import AdcamError, join_some
from adcam.files import check_characters, find_files, img_id_of, read_text
from adcam.plain_config import read_plain_config

logger = logging.getLogger(__name__)

CLASS_LISTS = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names", "names.txt")
"""Files that say what the numbers in YOLO's text files mean, beside these or above them."""


class LabelRow(NamedTuple):
    """What a file says about one image.

    Attributes:
        where: The file and the line or image, for messages.
        img_id: The image id.
        labels: The class names; or a single text that is still to be split.
        form: How ``labels`` are to be read. ``"names"``: they are names. ``"cell"``: a text of
            several names. ``"label"``: a text that is one name unless it holds separators.
    """

    where: str
    img_id: str
    labels: tuple[str, ...]
    form: str = "names"


class LabelRows(NamedTuple):
    """What a file, or a folder of annotations, says image by image.

    Attributes:
        rows: One row an image, in the order of the file.
        understood: How the labels were read, in words; empty for a plain table ``image_id,labels``.
        classes: The classes that the file itself lists, in its order, also those that no image
            shows: columns of a table, COCO's categories. Empty where it lists none.
    """

    rows: list[LabelRow]
    understood: str
    classes: tuple[str, ...] = ()


def read_annotation_folder(folder: Path) -> LabelRows:
    """Read a folder of annotations with a file an image: VOC's XML, or YOLO's text.

    An image's id is the path of its file below the folder, without suffix.

    Raises:
        AdcamError: There is neither kind, or no file of it can be read.
    """
    kinds = {path.suffix.lower() for path in folder.rglob("*") if path.is_file()}
    if ".xml" in kinds:
        return _read_voc_folder(folder)
    if ".txt" in kinds:
        return _read_yolo_folder(folder)
    raise AdcamError(
        f"{folder}: there are no annotations in this folder; .xml files as VOC's or .txt files as "
        "YOLO's are read, one for each image"
    )


def _read_voc_folder(folder: Path) -> LabelRows:
    rows: list[LabelRow] = []
    errors: list[str] = []
    for img_id, path in find_files(folder, ".xml").items():
        try:
            rows.append(_make_row(path, img_id, read_object_names(path)))
        except AdcamError as error:
            errors.append(str(error))
    if not rows:
        raise AdcamError(f"{folder}: no annotation can be read: {errors[0]}")
    if errors:
        shown = join_some(errors, 3, "; ")
        logger.warning("%d annotations in %s cannot be read: %s", len(errors), folder, shown)
    return LabelRows(rows, "VOC's XML: an image shows the classes of its objects")


def read_object_names(path: str | Path) -> list[str]:
    """Class names of the objects of VOC's XML, difficult ones included, in the file's order.

    Parts (head, hand, foot) are no objects.

    Raises:
        AdcamError: There is no such file, or it is no XML (:func:`adcam.data.xml_text.read_xml`).
    """
    names = (o.findtext("name") or "" for o in read_xml(path).iter("object"))
    return [name.strip() for name in names]


def _read_yolo_folder(folder: Path) -> LabelRows:
    files = find_yolo_files(folder)
    source = find_class_list(folder)
    if source is None:
        raise AdcamError(
            f"{folder}: what the numbers in YOLO's text files mean is not said; put data.yaml or "
            "classes.txt (a class a line) into this folder"
        )
    classes = read_class_list(source)
    rows = [
        _make_row(path, img_id, (classes[i] for i in _read_numbers(path, len(classes), source)))
        for img_id, path in files.items()
    ]
    return LabelRows(rows, f"YOLO's text files, classes as in {source}", clean_names(classes))


def find_yolo_files(folder: Path) -> dict[str, Path]:
    """YOLO's text files by image id, without a list of classes among them."""
    listed = {folder / name for name in CLASS_LISTS}
    files = find_files(folder, ".txt")
    return {img_id: path for img_id, path in files.items() if path not in listed}


def find_class_list(folder: Path) -> Path | None:
    """The list of classes in a folder of YOLO's text files or up to two folders above."""
    for place in (folder, *folder.resolve().parents[:2]):
        for name in CLASS_LISTS:
            if (place / name).is_file():
                return place / name
    return None


def read_class_list(path: Path) -> tuple[str, ...]:
    """Read the classes of YOLO's text files in the order of their numbers.

    Args:
        path: A ``data.yaml`` with ``names``, or a text with a class a line.

    Raises:
        AdcamError: It is neither, or a class is named twice.
    """
    if path.suffix.lower() not in (".yaml", ".yml"):
        lines = [line.strip() for line in read_text(path, "a list of classes").splitlines()]
        names: Any = lines[: len(lines) - next((i for i, n in enumerate(lines[::-1]) if n), 0)]
    else:
        names = read_plain_config(path).get("names")
        if isinstance(names, dict) and set(names) == set(range(len(names))):
            names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise AdcamError(f"{path}: expected the names of the classes, numbered from 0 without gaps")
    if len(set(names)) < len(names):
        raise AdcamError(f"{path}: a class is named twice")
    return tuple(names)


def _read_numbers(path: Path, count: int, source: Path) -> Iterator[int]:
    """The class of every line; what follows it, a box or an outline, is not looked at."""
    for number, line in enumerate(read_text(path, "YOLO's text").splitlines(), start=1):
        if not (cells := line.split()):
            continue
        is_number = cells[0].isdecimal() and len(cells[0]) < 10  # Python refuses 5,000 digits
        if not is_number or int(cells[0]) >= count:
            raise AdcamError(
                f"{path}, line {number}: a line begins with the number of a class, 0 to "
                f"{count - 1} by {source}, got {cells[0][:40]!r}"
            )
        yield int(cells[0])


def read_cvat_labels(path: Path) -> LabelRows:
    """Read an export of CVAT, "CVAT for images 1.1": one XML file of all images.

    Source: "CVAT for image" in CVAT's manual, XML annotation format.

    Raises:
        AdcamError: It is another XML file, or one of videos.
    """
    root = read_xml(path)
    if root.tag != "annotations":
        raise AdcamError(
            f"{path}: not an export of CVAT (its outermost element is <{root.tag}>); of VOC's XML, "
            "name the folder"
        )
    if root.find("track") is not None:
        raise AdcamError(f"{path}: annotations of a video; export as 'CVAT for images 1.1'")
    rows: dict[str, LabelRow] = {}
    for image in root.iter("image"):
        img_id = _check_new(path, image.get("name"), rows)
        rows[img_id] = _make_row(path, img_id, (item.get("label") or "" for item in image))
    if not rows:
        raise AdcamError(f"{path}: there are no images in it; export as 'CVAT for images 1.1'")
    return LabelRows([*rows.values()], "CVAT for images", clean_names(list_labels(root)))


def is_label_studio(content: Any) -> bool:
    """Tell whether the content of a JSON file is an export of Label Studio, with all its keys."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(
            isinstance(task, dict)
            and isinstance(task.get("data"), dict)
            and isinstance(task.get("annotations", task.get("completions")), list)
            for task in content
        )
    )


def read_label_studio_labels(path: Path, tasks: Sequence[Mapping[str, Any]]) -> LabelRows:
    """Read the tasks of Label Studio's JSON.

    Choices, boxes, outlines and brushes count alike. A task that nobody annotated says nothing of
    its image; one that was annotated without a result shows none of the classes. Of a file that
    was uploaded, the prefix that Label Studio gives it is left out.

    Source: "Label Studio JSON format" in Label Studio's documentation.

    Raises:
        AdcamError: A task names no image.
    """
    rows: dict[str, LabelRow] = {}
    for number, task in enumerate(tasks, start=1):
        where = f"{path}, task {task.get('id', number)}"
        given = task.get("annotations", task.get("completions"))
        done = [a for a in given or () if isinstance(a, dict) and not a.get("was_cancelled")]
        if not done:
            continue
        img_id = _check_new(Path(where), _find_image(where, task["data"]), rows)
        results = (result for annotation in done for result in annotation.get("result") or ())
        rows[img_id] = _make_row(path, img_id, _list_results(results))
    if not rows:
        raise AdcamError(f"{path}: none of its {len(tasks)} tasks is annotated")
    return LabelRows([*rows.values()], "Label Studio's JSON")


def _find_image(where: str, data: Mapping[str, Any]) -> str:
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value}
    usual = [texts[key] for key in ("image", "img", "url", "photo") if key in texts]
    if not usual and len(texts) != 1:
        raise AdcamError(f"{where}: which value of `data` is the image? got {sorted(data)}")
    try:
        return find_image_name((usual or list(texts.values()))[0])
    except ValueError as error:  # urllib's, of brackets without a partner
        raise AdcamError(f"{where}: the image is no address ({error})") from error


def _list_results(results: Iterable[Any]) -> Iterator[str]:
    """The names in regions and choices; a taxonomy's last word is the name."""
    for result in results:
        value = result.get("value") if isinstance(result, dict) else None
        found = value.get(result.get("type")) if isinstance(value, dict) else None
        for item in found if isinstance(found, list) else ():
            name = item[-1] if isinstance(item, list) and item else item
            if isinstance(name, str):
                yield name


def _check_new(path: Path, name: str | None, rows: Mapping[str, LabelRow]) -> str:
    if not name or not name.strip():
        raise AdcamError(f"{path}: an image has no name")
    img_id = check_characters(img_id_of(name))
    if img_id in rows:
        raise AdcamError(f"{path}: image id {img_id!r} is given twice")
    return img_id


def _make_row(path: Path, img_id: str, names: Iterable[str]) -> LabelRow:
    return LabelRow(f"{path}, image {img_id!r}", img_id, clean_names(names))


def clean_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names in NFC and without white space around them, each once; empty ones are left out."""
    stripped = (unicodedata.normalize("NFC", name.strip()) for name in names)
    return tuple(dict.fromkeys(name for name in stripped if name))
