"""Packed results -> an output folder of files."""

from __future__ import annotations

import os
from pathlib import Path

from adcam.convert.summary import ClassCounts, Converted
from adcam.data.png import voc_palette
from adcam.files import hash_or_none, write_bytes
from adcam.labeling.merge import require_complete
from adcam.labeling.output_folder import OutputFolder, relative_path, result_files
from adcam.labeling.packed_parts import read_config, read_packed
from adcam.progress import track
from adcam.remote_files import is_url
from adcam.structures import ClassSet


def convert_unpack(
    packed: str | Path, out: str | Path, *, overwrite: bool = False, progress: bool = False
) -> Converted:
    """Write the files of packed results into an output folder, as ``adcam generate`` writes them.

    The packed folder may be a URL. Every file is checked against the hash that its manifest states.
    The output folder can be used and resumed like any other.

    Raises:
        AdcamError: The packed folder is damaged or not complete, or ``out`` holds another run.
        OSError: A file cannot be written.
    """
    config = read_config(packed)
    require_complete(packed, "unpacked")
    division = config.pop("packed")
    names, values = config["labeler"]["classes"], config["labeler"]["mask_values"]
    counts = ClassCounts(ClassSet("packed", tuple(names), tuple(values), voc_palette()))
    position = {name: i for i, name in enumerate(names)}
    root = os.path.realpath(out)
    with OutputFolder(out, config, overwrite=overwrite) as folder:
        rows = read_packed(packed)
        if progress:
            rows = track(rows, "unpack", division["images"])
        order = []
        for entry, contents in rows:
            img_id = entry["id"]
            order.append(img_id)
            if entry["status"] != "ok":
                counts.failed[img_id] = entry["error"]
            files = result_files(folder.path, img_id)
            is_kept = bool(contents) and all(
                hash_or_none(files[name]) == entry[name] for name in contents
            )
            for name, content in contents.items() if not is_kept else ():
                write_bytes(files[name], content)
            counts.kept += is_kept
            if contents:
                ids = [position[name] for name in entry["classes"]]
                counts.add_file(img_id, ids, b"".join(contents.values()))
            image = _move(entry["image"], str(packed), root)
            folder.append({**entry, "image": image})
        if division["shards"] > 1:
            order.sort()  # shards do not say in which order the data set has their images
        folder.start(order)
        folder.finish(order)
    return counts.finish("unpack", Path(out))


def _move(image: str, packed: str, root: str) -> str:
    """The path of an image relative to another folder than the packed one."""
    if is_url(image):
        return image
    file, mark, name = image.partition("#")
    base = Path(file) if is_url(packed) else Path(packed, file)
    return f"{relative_path(base, root)}{mark}{name}"
