"""``adcam convert``: one format into another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adcam.cli.arguments import CAM_FORMAT, add_command
from adcam.cli.console import (
    EXIT_OK,
    EXIT_SOME_FAILED,
    log,
    log_failures,
    print_table,
    say_next,
    show,
)
from adcam.cli.labeler import path_or_url
from adcam.cli.project import find_project
from adcam.errors import AdcamError

if TYPE_CHECKING:
    from adcam.convert import Converted

# Of each converter: its first argument, what it does, its options.
_CONVERTERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "sbd": (
        "SBD",
        "SBD's .mat files -> SegmentationClassAug and train_aug.txt of VOC",
        ("voc", "--out-root", "--partial"),
    ),
    "coco": (
        "JSON",
        "COCO's instances -> masks of 81 values, lists, image-level labels",
        ("--out", "--split", "--crowd", "--overlap", "--partial"),
    ),
    "voc-labels": ("VOC", "VOC's XML -> labels.csv", ("--out", "--voc-split", "--classes")),
    "label-table": (
        "TABLE",
        "CSV of any dialect, JSON or Excel -> labels.csv",
        ("--out", "--classes"),
    ),
    "mask-labels": ("MASKS", "masks -> labels.csv", ("--out", "--classes", "--values")),
    "recode-masks": (
        "MASKS",
        "colour masks, binary masks, masks of other values -> masks",
        ("--out", "--classes", "--colors", "--values"),
    ),
    "irn-labels": ("NPY", "cls_labels.npy of IRN and others -> labels.csv", ("--out", "--classes")),
    "masks-to-coco": (
        "MASKS",
        "masks -> COCO json, run lengths or polygons",
        (
            *("--out", "--classes", "--objects", "--polygons", "--known-images"),
            *("--image-suffix", "--values"),
        ),
    ),
    "coco-to-masks": (
        "JSON",
        "any COCO json -> masks",
        ("--out", "--classes", "--crowd", "--overlap"),
    ),
    "masks-to-yolo": (
        "MASKS",
        "masks -> a folder that Ultralytics trains on",
        ("--out", "--classes", "--known-images", "--yolo-split", "--values"),
    ),
    "yolo-to-masks": (
        "LABELS",
        "text files of Ultralytics -> masks",
        ("--out", "--classes", "--images"),
    ),
    "masks-to-mmseg": (
        "MASKS",
        "masks -> folders and a data set's config for mmsegmentation, values 0 to K",
        ("--out", "--classes", "--known-images", "--yolo-split", "--values"),
    ),
    "masks-to-hf": (
        "MASKS",
        "masks and images -> Parquet files that Hugging Face's datasets opens",
        ("--out", "--classes", "--known-images", "--yolo-split", "--values"),
    ),
    "hf-to-masks": (
        "DATASET",
        "Parquet files of Hugging Face's datasets -> masks",
        ("--out", "--classes", "--mask-column", "--values"),
    ),
    "masks-to-label-studio": (
        "MASKS",
        "masks -> tasks of Label Studio with pre-annotations",
        (
            *("--out", "--classes", "--known-images", "--image-suffix"),
            *("--url-prefix", "--values"),
        ),
    ),
    "label-studio-to-masks": (
        "JSON",
        "an export of Label Studio, brushes and polygons -> masks",
        ("--out", "--classes"),
    ),
    "masks-to-cvat": (
        "MASKS",
        "masks -> CVAT for images 1.1, to upload as annotations",
        ("--out", "--classes", "--known-images", "--image-suffix", "--values"),
    ),
    "cvat-to-masks": (
        "XML",
        "CVAT for images 1.1, masks and polygons -> masks",
        ("--out", "--classes"),
    ),
    "maps-to-cams": (
        "MAPS",
        "our maps -> .npy files of IRN, PSA, CLIP-ES, PuzzleCAM or wsolevaluation",
        ("--out", "--export-format", "--image-suffix"),
    ),
    "unpack": (
        "PACKED",
        "masks and maps that were packed into Parquet files or tar archives -> an output folder",
        ("--out",),
    ),
    "cams": (
        "CAMS",
        "class maps, of other projects (.npy) or ours -> our maps or masks",
        ("--out", "--classes", "--format", "--threshold", "--crf", "--known-images"),
    ),
}
_ADDED = ("SOURCE", "added by adcam.register_converter", ("--out",))
_OPTIONS: dict[str, dict[str, Any]] = {
    "voc": {"type": Path, "metavar": "VOC", "help": "VOC root, the folder with JPEGImages"},
    "--out": {"type": Path, "required": True, "metavar": "PATH", "help": "file or folder to write"},
    "--out-root": {"type": Path, "dest": "out", "metavar": "DIR", "help": "default: VOC itself"},
    "--split": {"metavar": "NAME", "help": "e.g. train2014 (default: from the file's name)"},
    "--voc-split": {"dest": "split", "required": True, "metavar": "SPLIT", "help": "e.g. train"},
    "--classes": {
        "nargs": "+",
        "metavar": "A,B,…",
        "help": "voc, coco, or names in the order of their numbers, which are 1 to K; voc:A,B,… "
        "keeps VOC's numbers (default: what SOURCE says, else voc)",
    },
    "--objects": {
        "choices": ("class", "component"),
        "default": "class",
        "help": "one annotation a class, or a connected part of it (default: %(default)s)",
    },
    "--polygons": {"action": "store_true", "help": "outlines in place of run lengths"},
    "--values": {"metavar": "OLD=NEW,…", "help": "read mask values as others, e.g. 255=1"},
    "--colors": {
        "metavar": "TABLE",
        "help": "read colours by this table of name,R,G,B a line, or by VOC's: voc",
    },
    "--known-images": {
        "dest": "images",
        "flag": "--images",
        "type": Path,
        "metavar": "DIR",
        "help": "folder of the images (default: those that SOURCE names)",
    },
    "--yolo-split": {
        "dest": "split",
        "flag": "--split",
        "choices": ("train", "val", "test"),
        "default": "train",
        "help": "which part of the data set (default: %(default)s)",
    },
    "--crf": {
        "nargs": "?",
        "const": "toco",
        "default": "none",
        "metavar": "PARAMS",
        "help": "refine masks by a dense CRF with these parameters (--crf alone: toco)",
    },
    "--crowd": {
        "choices": ("ignore", "skip"),
        "default": "ignore",
        "help": "regions of many objects become 255 or background (default: %(default)s)",
    },
    "--overlap": {
        "choices": ("small", "first"),
        "default": "small",
        "help": "which object is on top: the smaller, or the first in the file "
        "(default: %(default)s)",
    },
    "--partial": {"action": "store_true", "help": "a part of the data set: any number of images"},
    "--image-suffix": {"default": ".jpg", "metavar": "SUFFIX", "help": "default: %(default)s"},
    "--images": {"type": Path, "required": True, "metavar": "DIR", "help": "for the images' sizes"},
    "--format": CAM_FORMAT,
    "--export-format": {
        "dest": "cam_format",
        "flag": "--format",
        "choices": ("irn", "psa", "clip_es", "puzzlecam", "wsol"),
        "default": "irn",
        "help": "whose files (default: %(default)s)",
    },
    "--mask-column": {
        "metavar": "NAME",
        "help": "column of the masks (default: mask, label, annotation or labels)",
    },
    "--url-prefix": {
        "default": "/data/local-files/?d=",
        "metavar": "URL",
        "help": "what stands before the path of an image (default: %(default)s)",
    },
    "--threshold": {"metavar": "RULE", "help": "make masks: a background score, power:A or otsu"},
    "--overwrite": {"action": "store_true", "help": "make what is there already again"},
    "--json": {"type": Path, "metavar": "FILE", "help": "write all counts there"},
}


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "convert",
        run,
        "data sets, labels, masks and maps from one format into another",
        """\
        Convert data sets, labels, masks and class maps; `adcam convert WHAT --help` has the
        options. Counts, classes, a hash and the next step are printed.
        In a folder that `adcam init` set up, WHAT may be left out: the project's masks become
        coco.json, one annotation an object part, as outlines.
        Interrupted? The same command resumes where it stopped.""",
        """\
        adcam convert
        adcam convert sbd benchmark_RELEASE VOC2012
        adcam convert coco coco/annotations/instances_train2014.json --out coco
        adcam convert irn-labels cls_labels.npy --out labels.csv
        adcam convert label-table labels.xlsx --out labels.csv
        adcam convert masks-to-coco out --polygons --out masks.json
        adcam convert cams irn/result/cam --out out --threshold 0.15 --crf --images photos
        """,
    )
    parser.set_defaults(complete=complete, project=None)
    converters = parser.add_subparsers(dest="what", metavar="WHAT")
    # A program that added some before it called us has loaded the module.
    known = getattr(sys.modules.get("adcam.convert"), "CONVERTERS", ())
    added = {name: _ADDED for name in known if name not in _CONVERTERS}
    for what, (source, summary, names) in {**_CONVERTERS, **added}.items():
        converter = converters.add_parser(what, help=summary, description=summary)
        kind = path_or_url if what == "unpack" else Path
        converter.add_argument("source", type=kind, metavar=source)
        for name in (*names, "--overwrite", "--json"):
            option = dict(_OPTIONS[name])
            converter.add_argument(option.pop("flag", name), **option)


def complete(args: argparse.Namespace) -> None:
    """Without WHAT, turn the masks of the project in this folder into COCO's json."""
    if args.what is not None:
        return
    args.project = project = find_project(args, "WHAT")
    if not project.out.is_dir():
        raise AdcamError(f"{project.out}: there are no masks yet; first: adcam generate")
    args.what, args.source, args.out = "masks-to-coco", project.out, project.coco
    args.objects, args.polygons, args.overwrite, args.json = "component", True, True, None
    args.images = Path(project.read_data().images or project.folder)


def run(args: argparse.Namespace) -> int:
    from adcam.convert import CONVERTERS
    from adcam.data.sources import parse_classes
    from adcam.files import write_json

    given = {"command", "run", "debug", "limits", "what", "source", "json", "classes"}
    given |= {"complete", "project"}
    options = {name: value for name, value in vars(args).items() if name not in given}
    if "classes" in args:
        options["class_set"] = None if args.classes is None else parse_classes(args.classes)
    result = CONVERTERS[args.what](args.source, **options, progress=True)
    _print_converted(result)
    if args.json:
        write_json(args.json, result.to_dict())
    log_failures(result.failed, rest="; --json lists all")
    log(
        f"{result.num_images} images, {result.kept} of them were there; {len(result.failed)} failed"
    )
    if result.num_images:
        say_next(_NEXT.get(result.what, _NEXT[""]).format(out=result.out))
    return EXIT_SOME_FAILED if result.failed else EXIT_OK


def _print_converted(result: Converted) -> None:
    names = {**result.class_images, **result.class_pixels}
    columns = {"images": result.class_images, "pixels": result.class_pixels}
    filled = {column: counts for column, counts in columns.items() if counts}
    rows = [
        (name, *(str(counts.get(name, "")) for counts in filled.values()))
        for name in ("background", *result.class_images, "ignore")
        if names.get(name)
    ]
    print_table(("class", *filled), rows, f"{result.what}: {result.num_images} images")
    for note in result.notes:
        show(note)
    show(f"sha256 of all results: {result.sha256}")
    show(result.out)


# What one does with a result, by the converter.
_NEXT = {
    "": "adcam convert --help lists the other formats",
    "masks-to-mmseg": "put {out}/dataset.py into the _base_ of a config of mmsegmentation",
    "masks-to-hf": "datasets.load_dataset('parquet', data_dir='{out}/data') in Python",
    "masks-to-label-studio": "import {out}/tasks.json into a project of Label Studio with the "
    "labelling interface {out}/label_config.xml",
    "masks-to-cvat": "CVAT's `Upload annotations`, format CVAT 1.1, takes {out}",
    "maps-to-cams": "the project whose format you named reads {out}",
    "masks-to-coco": "whatever reads COCO's instances takes {out}, pycocotools.coco.COCO for one",
    **dict.fromkeys(
        ("voc-labels", "label-table", "mask-labels", "irn-labels"),
        "adcam init --images IMAGES --labels {out}",
    ),
    **dict.fromkeys(("sbd", "coco"), "adcam configs lists what can be trained on it"),
    **dict.fromkeys(
        (
            *("recode-masks", "coco-to-masks", "yolo-to-masks", "hf-to-masks"),
            *("label-studio-to-masks", "cvat-to-masks"),
        ),
        "adcam evaluate MASKS --gt {out} scores masks against these",
    ),
    "masks-to-yolo": "yolo segment train data={out}/data.yaml model=yolo11n-seg.pt",
    "unpack": "adcam verify {out}",
    "cams": "adcam evaluate {out} --gt TRUTH, of maps with --sweep",
}
