"""``adcam calibrate``: when a classifier calls a class present."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adcam.cli.arguments import add_command
from adcam.cli.console import EXIT_OK, log, print_table, say_next, show
from adcam.cli.labeler import add_images_argument, add_view_arguments, open_images, read_views
from adcam.errors import join_some

if TYPE_CHECKING:
    from adcam.labeling.calibrate import Calibration


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "calibrate",
        run,
        "choose a classifier's label thresholds",
        """\
        Choose the probability from which each class counts as present where labels are predicted,
        on images whose labels are known: the one with the best F1, drawn to that of all classes
        where a class has few images. No mask is read. The thresholds go into the classifier file,
        and `generate --labels predicted`, `boxes` and PseudoLabeler take them from there.
        `adcam train` does the same on data.val.""",
        """\
        adcam calibrate photos/ --labels labels.csv --checkpoint classifier.safetensors
        adcam calibrate data/voc-animals --voc-split train --labels data/voc-animals/labels.csv \\
            --checkpoint classifier.safetensors --out calibrated.safetensors
        """,
    )
    add_images_argument(parser)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE", help="of `adcam train`"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the classifier file to write (default: the checkpoint itself)",
    )
    which = parser.add_argument_group("images and labels")
    which.add_argument(
        "--labels",
        metavar="FILE",
        help="a table of images and their labels, or 'folders', 'xml', … as for `adcam generate`. "
        "Default: VOC's annotations, or labels.csv beside the images",
    )
    which.add_argument("--ids", type=Path, metavar="LIST", help="only these ids, one a line")
    which.add_argument("--voc-split", metavar="SPLIT", help="list of a VOC root, e.g. train")
    add_view_arguments(
        parser.add_argument_group("views", "those that the classifier will be used at")
    )
    work = parser.add_argument_group("run")
    work.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if any)")
    work.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the network")
    work.add_argument("--batch-size", type=int, metavar="N", help="images of one size seen at once")


def run(args: argparse.Namespace) -> int:
    from adcam.models.file_header import read_class_set

    images = open_images(args, read_class_set(args.checkpoint))
    from adcam.labeling.calibrate import calibrate
    from adcam.labeling.labeler import PseudoLabeler
    from adcam.models.classifier_file import save_label_thresholds

    labeler = PseudoLabeler.from_checkpoint(
        args.checkpoint,
        device=args.device,
        method="cam",
        views=read_views(args),
        dtype=args.dtype or "float32",
    )
    found = calibrate(images, labeler, batch_size=args.batch_size)
    _print(found, labeler.class_set.classes)
    out = args.out or args.checkpoint
    views = asdict(labeler.options.views)
    save_label_thresholds(args.checkpoint, found.thresholds, out, views=views)
    counts = zip(labeler.class_set.classes, found.num_shown, strict=True)
    if absent := [name for name, count in counts if not count]:
        log(f"no image shows {join_some(absent)}: the threshold is what suits the other classes")
    log("F1 is that of the images the thresholds were chosen on; on others it is lower")
    show(out)
    say_next(f"adcam generate IMAGES --checkpoint {out} --labels predicted --out DIR")
    return EXIT_OK


def _print(found: Calibration, classes: Sequence[str]) -> None:
    before, after = found.before.f1_per_class, found.after.f1_per_class
    lines = zip(classes, found.num_shown, found.thresholds.values, before, after, strict=True)
    rows: list[tuple[str, ...]] = [
        (name, str(shown), f"{threshold:.3f}", _format(old), _format(new))
        for name, shown, threshold, old, new in lines
    ]
    total, means = str(found.thresholds.num_images), (_mean(before), _mean(after))
    rows.append(("mean of classes", total, "", *map(_format, means)))
    columns = ("class", "images", "threshold", "F1 at 0.5", "F1")
    print_table(columns, rows, "Label thresholds, F1 in percent")


def _format(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the classes that have an F1."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
