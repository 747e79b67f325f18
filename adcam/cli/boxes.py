"""``adcam boxes``: boxes around the classes of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adcam.cli.arguments import add_command
from adcam.cli.console import log, say_next, show
from adcam.cli.labeler import (
    add_labeler_arguments,
    add_run_arguments,
    build_labeler,
    check_classifier,
    open_images,
    open_images_first,
    read_run_options,
    report_run,
    start_early,
)


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "boxes",
        run,
        "find boxes in images",
        """\
        Find boxes around the classes of each image, from the same maps as `generate`. OUT is a
        table (.csv) or COCO's instances (.json); OUT.run/ keeps what is known of each image.
        Interrupted? The same command resumes where it stopped.""",
        """\
        adcam boxes photos/ --checkpoint classifier.safetensors --out boxes.csv --threshold 0.4
        adcam boxes photos/ --checkpoint classifier.safetensors --out boxes.json --threshold 0.1 \\
            --rule ts_cam --method ts_cam --labels predicted
        """,
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="ends in .csv or .json"
    )
    box = parser.add_argument_group("boxes")
    box.add_argument(
        "--threshold",
        dest="box_threshold",
        type=float,
        required=True,
        metavar="T",
        help="share of a map's maximum, in [0, 1), above which pixels belong to the object; "
        "larger gives smaller boxes. `adcam evaluate --metadata` finds the best on known boxes",
    )
    box.add_argument(
        "--chosen-on",
        default="given",
        metavar="NAME",
        help="split that the threshold was chosen on, to be written into the .json",
    )
    box.add_argument(
        "--rule",
        choices=("wsol", "ts_cam"),
        default="wsol",
        help="a box for each contour as wsolevaluation has it (default), or one for each class as "
        "TS-CAM has it",
    )
    box.add_argument(
        "--score-maps",
        type=Path,
        metavar="DIR",
        help="also write the maps in wsolevaluation's format, <path of the image>.npy; needs one "
        "class an image",
    )
    run_group = parser.add_argument_group("run")
    add_run_arguments(run_group)
    run_group.add_argument(
        "--overwrite", action="store_true", help="start over, whatever OUT.run holds"
    )
    add_labeler_arguments(parser)


def run(args: argparse.Namespace) -> int:
    check_classifier(args)
    start_early(args, "adcam.labeling.box_job")
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    images = open_images_first(args)
    from adcam.labeling.box_job import BoxOptions
    from adcam.labeling.boxes import find_boxes
    from adcam.labeling.run import RunOptions

    labeler = build_labeler(args)
    result = find_boxes(
        open_images(args, labeler.class_set) if images is None else images,
        labeler,
        args.out,
        BoxOptions(
            args.box_threshold,
            args.rule,
            args.chosen_on,
            args.images if isinstance(args.images, Path) and args.images.is_dir() else None,
            args.score_maps,
        ),
        run_options=RunOptions(
            labels="predicted" if args.labels == "predicted" else "given",
            **read_run_options(args, labeler),
        ),
        overwrite=args.overwrite,
    )
    log(f"{result.num_boxes} boxes, {len(result.run.failed)} images failed")
    code = report_run(args, result.run, "boxes", Path(f"{args.out}.run/manifest.jsonl"))
    show(args.out)
    if args.score_maps is not None:
        say_next(f"adcam evaluate {args.score_maps} --metadata METADATA")
    elif args.out.suffix.lower() == ".json":
        say_next("COCO's tools read these boxes")
    else:
        say_next("the same command with --out boxes.json writes COCO's json")
    return code
