"""``adcam boxes``: boxes around the classes of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adcam.cli.arguments import add_command
from adcam.cli.console import EXIT_OK, EXIT_SOME_FAILED, log, log_failures, show
from adcam.cli.labeler import add_labeler_arguments, build_labeler, check_classifier, open_images


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "boxes",
        run,
        "find boxes in images",
        """\
        Find boxes around the classes of each image, from the same maps as `generate`. OUT is a
        table (.csv) or COCO's instances (.json).""",
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
        "TS-CAM has it; see docs/localization.md",
    )
    box.add_argument(
        "--score-maps",
        type=Path,
        metavar="DIR",
        help="also write the maps in wsolevaluation's format, <path of the image>.npy; needs one "
        "class an image",
    )
    box.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if any)")
    add_labeler_arguments(parser)


def run(args: argparse.Namespace) -> int:
    check_classifier(args)
    from adcam.labeling.boxes import find_boxes, write_boxes
    from adcam.progress import track

    labeler = build_labeler(args)
    images = open_images(args, labeler)
    boxes = find_boxes(
        images,
        labeler,
        rule=args.rule,
        threshold=args.box_threshold,
        chosen_on=args.chosen_on,
        labels="predicted" if args.labels == "predicted" else "given",
        image_root=args.images if args.images.is_dir() else None,
        score_map_dir=args.score_maps,
    )
    found = list(track(boxes, "boxes", len(images)))
    write_boxes(args.out, found, labeler.class_set)
    failed = {image.img_id: image.error for image in found if image.error is not None}
    log_failures(failed)
    log(f"{sum(len(image.boxes.boxes) for image in found)} boxes, {len(failed)} images failed")
    show(args.out)
    return EXIT_SOME_FAILED if failed else EXIT_OK
