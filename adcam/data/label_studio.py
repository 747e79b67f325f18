"""Label Studio's tasks: masks as pre-annotations for brushes, and annotations as regions.

A brush mask is a run-length code of its RGBA pixels: 32 bits with the number of values, 5 with the
bits of a value less one, four times 4 with the bits of a run's length less one; then runs of one
bit (1: one value, repeated; 0: as many values), two bits that choose among the four, the length
less one, and the values (``label_studio_sdk/converter/brush.py``). Polygons are in percent of width
and height.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from adcam.data.polygons import fill_polygon
from adcam.errors import AdcamError
from adcam.files import img_id_of, read_json
from adcam.limits import check_image_hw

FROM_NAME, TO_NAME = "tag", "image"
"""Names of the labels and of the image in the labelling interface that we write."""

_RUN_BITS = (3, 4, 8, 16)
_VALUE_BITS = 8
_CHANNELS = 4
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""


@dataclass(frozen=True)
class StudioTask:
    """One image of an export.

    Attributes:
        img_id: The image id.
        hw: Height and width of the image; ``None`` where nothing is annotated.
        regions: The class and the pixels of each region, bool (H, W), in the order of the file.
        num_other: Number of regions of other kinds, such as boxes.
    """

    img_id: str
    hw: tuple[int, int] | None
    regions: tuple[tuple[str, np.ndarray], ...]
    num_other: int


def encode_brush(region: np.ndarray) -> list[int]:
    """Encode a region, bool (H, W), as the bytes of a brush mask."""
    flat = np.repeat(np.where(region.ravel(), 255, 0).astype(np.uint8), _CHANNELS)
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    bits = [format(flat.size, "032b"), format(_VALUE_BITS - 1, "05b")]
    bits += [format(size - 1, "04b") for size in _RUN_BITS]
    longest = 1 << _RUN_BITS[-1]
    for start, stop in zip(starts, [*starts[1:], flat.size], strict=True):
        for first in range(start, stop, longest):
            length = min(stop - first, longest) - 1
            kind = next(i for i, size in enumerate(_RUN_BITS) if length < 1 << size)
            bits.append(f"1{kind:02b}{length:0{_RUN_BITS[kind]}b}{int(flat[first]):08b}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode_brush(code: Sequence[int], hw: tuple[int, int]) -> np.ndarray:
    """Decode the bytes of a brush mask of an image (H, W); pixels with any opacity belong to it.

    Returns:
        bool (H, W).

    Raises:
        AdcamError: The code is damaged, or of another size.
    """
    try:
        bits = "".join(format(byte, "08b") for byte in bytes(code))
    except (TypeError, ValueError) as error:
        raise AdcamError(f"a brush mask is a list of bytes ({error})") from error
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        if place > len(bits):
            raise AdcamError("a brush mask ends before its pixels do")
        return int(bits[place - count : place], 2)

    total, value_bits = read(32), read(5) + 1
    run_bits = [read(4) + 1 for _ in range(4)]
    if total != hw[0] * hw[1] * _CHANNELS:
        raise AdcamError(f"a brush mask of {total} values in an image of {hw[0]}×{hw[1]} pixels")
    values = np.zeros(total, dtype=np.uint8)
    done = 0
    while done < total:
        is_run, length = read(1), read(run_bits[read(2)]) + 1
        if is_run:
            values[done : done + length] = min(read(value_bits), 255)
        else:
            for i in range(done, min(done + length, total)):
                values[i] = min(read(value_bits), 255)
        done += length
    return values.reshape(*hw, _CHANNELS)[..., -1] > 0


def encode_task(url: str, mask: np.ndarray, value_of: Mapping[str, int]) -> dict[str, Any]:
    """Make a task with one brush region for each class of a mask, uint8 (H, W); 255 is left out.

    Label Studio finds the image at ``url``.
    """
    height, width = mask.shape
    results = [
        {
            "id": f"class{value}",
            "type": "brushlabels",
            "from_name": FROM_NAME,
            "to_name": TO_NAME,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": encode_brush(mask == value),
                "brushlabels": [name],
            },
        }
        for name, value in value_of.items()
        if (mask == value).any()
    ]
    prediction = {"model_version": "adcam", "result": results}
    return {"data": {"image": url}, "predictions": [prediction]}


def read_tasks(path: str | Path) -> list[StudioTask]:
    """Read an export of Label Studio (JSON), or the tasks that :func:`encode_task` makes.

    Of a task the first annotation that was not cancelled counts, else its first prediction.

    Raises:
        AdcamError: The file is no such export, a region is damaged or of another kind than brushes
            and polygons, or two tasks are of one image.
    """
    tasks: dict[str, StudioTask] = {}
    contents = read_json(path, kind=list, what="an export of Label Studio")
    refuse_json_min(path, contents)
    for content in contents:
        try:
            task = _read_task(content)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise AdcamError(
                f"{path}: no export of Label Studio in its JSON format: {error!r}"
            ) from error
        except ValueError as error:
            raise AdcamError(f"{path}: {error}") from error
        if task.img_id in tasks:
            raise AdcamError(f"{path}: two tasks are of the image {task.img_id!r}")
        tasks[task.img_id] = task
    return [tasks[img_id] for img_id in sorted(tasks)]


def refuse_json_min(path: str | Path, content: Any) -> None:
    """Refuse the export JSON-MIN, whose keys are whatever the labelling interface calls its parts.

    Source: ``convert_to_json_min`` in ``label_studio_sdk/converter/converter.py`` of
    HumanSignal/label-studio-sdk.

    Raises:
        AdcamError: The content of the file is such an export.
    """
    entries = content if isinstance(content, list) else []
    if any(isinstance(e, dict) and {"annotator", "annotation_id"} <= e.keys() for e in entries):
        raise AdcamError(f"{path}: the export JSON-MIN of Label Studio; export as JSON instead")


def _read_task(content: Mapping[str, Any]) -> StudioTask:
    data = content["data"]
    url = data["image"] if "image" in data else next(iter(data.values()))
    img_id = img_id_of(find_image_name(str(url)))
    done = [a for a in content.get("annotations", ()) if not a.get("was_cancelled")]
    found = (done or content.get("predictions") or [{"result": []}])[0]
    hw: tuple[int, int] | None = None
    regions = []
    num_other = 0
    for result in found["result"]:
        kind = str(result.get("type"))
        if kind not in ("brushlabels", "polygonlabels"):
            num_other += kind.endswith("labels")  # rectanglelabels; but choices are no region
            continue
        hw = (int(result["original_height"]), int(result["original_width"]))
        check_image_hw(hw, f"image {img_id!r}")
        (name,) = result["value"][result["type"]]
        regions.append((str(name), _read_region(result, hw)))
    return StudioTask(img_id, hw, tuple(regions), num_other)


def _read_region(result: Mapping[str, Any], hw: tuple[int, int]) -> np.ndarray:
    value = result["value"]
    if result["type"] == "brushlabels":
        return decode_brush(value["rle"], hw)
    points = np.array(value["points"], dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise AdcamError("a polygon is a list of points x, y in percent")
    return fill_polygon(points.clip(0, 100) / 100 * (hw[1], hw[0]), hw)


def find_image_name(url: str) -> str:
    """The path of an image below its folder, as far as its URL says it."""
    parts = urlsplit(url)
    if local := parse_qs(parts.query).get("d"):
        return local[0].lstrip("/")
    path = unquote(parts.path).lstrip("/")
    if path.startswith("data/upload/"):
        return _UPLOAD.sub("", path.rpartition("/")[2])
    return path.rpartition("/")[2] if parts.scheme else path
