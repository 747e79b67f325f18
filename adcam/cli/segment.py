"""``adcam segment``: a segmentation network that learns from the masks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adcam.cli.arguments import (
    add_cfg_options,
    add_command,
    add_launcher,
    add_work_dir,
    parse_pairs,
    work_dir_of,
)
from adcam.cli.console import (
    EXIT_OK,
    EXIT_SOME_FAILED,
    log,
    log_failures,
    print_scores,
    print_table,
    show,
)
from adcam.errors import AdcamError


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "segment",
        run,
        "train a segmentation network on the masks, test and use it",
        """\
        Train a network of mmsegmentation on masks, score it, and write masks of new images with it.
        WORK_DIR/segmenter.safetensors is the result; an interrupted training goes on by itself.
        Needs mmsegmentation: pip install 'adcam[seg]'.""",
        """\
        adcam segment configs/seg/voc_animals/deit-tiny_fcn_voc-animals.py --check \\
            --cfg-options data.masks=out
        adcam segment configs/seg/voc_animals/deit-tiny_fcn_voc-animals.py train --work-dir work \\
            --cfg-options data.masks=out
        adcam segment configs/seg/voc_animals/deit-tiny_fcn_voc-animals.py test --work-dir work \\
            --cfg-options test.flip=True test.crf=toco
        adcam segment configs/seg/voc_animals/deit-tiny_fcn_voc-animals.py predict photos/ \\
            --work-dir work --out predicted
        """,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="see configs/seg")
    parser.add_argument("action", nargs="?", choices=("train", "test", "predict"))
    parser.add_argument("images", nargs="?", type=Path, metavar="IMAGES", help="for `predict`")
    parser.add_argument(
        "--check", action="store_true", help="look at all images and masks, and stop"
    )
    add_work_dir(parser)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="for `test` and `predict` (default: WORK_DIR/segmenter.safetensors)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="for `predict` and, if wanted, `test`: masks"
    )
    parser.add_argument("--restart", action="store_true", help="train from the first step again")
    add_launcher(parser)
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    _check(args)

    from adcam.training import segmenter

    config = segmenter.read_segmentation_config(
        args.config, parse_pairs("--cfg-options", args.cfg_options)
    )
    work_dir = work_dir_of(args)
    checkpoint = args.checkpoint or work_dir / segmenter.SEGMENTER_NAME
    if args.check:
        _print_check(segmenter.check_segmentation(config))
    if args.action == "train":
        path = segmenter.train_segmenter(
            config, work_dir=work_dir, resume=not args.restart, launcher=args.launcher
        )
        show(f"network: {path}")
    elif args.action == "test":
        scores = segmenter.test_segmenter(config, checkpoint, work_dir=work_dir, masks_out=args.out)
        print_scores(scores, f"Scores of {scores['split']} in percent")
        show(work_dir / f"test_{scores['split']}.json")
    elif args.action == "predict":
        result = segmenter.predict_segmenter(config, checkpoint, args.images, args.out)
        log_failures(result["failed"])
        log(f"{result['ok']} masks written, {len(result['failed'])} images failed")
        show(result["masks"])
        return EXIT_SOME_FAILED if result["failed"] else EXIT_OK
    return EXIT_OK


def _check(args: argparse.Namespace) -> None:
    """Refuse what contradicts itself before anything heavy is imported."""
    if args.check == (args.action is not None):
        raise AdcamError("give either --check or one of train, test and predict")
    if args.action == "predict" and (args.images is None or args.out is None):
        raise AdcamError("predict needs IMAGES and --out DIR")
    if args.action != "predict" and args.images is not None:
        raise AdcamError(f"{args.images}: only predict takes images")


def _print_check(splits: Mapping[str, Any]) -> None:
    for split, found in splits.items():
        pixels = found["pixels"]
        total = sum(pixels.values()) + found["ignored"]
        rows = [
            (name, str(count), f"{100 * count / total:.2f} %") for name, count in pixels.items()
        ]
        rows.append(("ignored", str(found["ignored"]), f"{100 * found['ignored'] / total:.2f} %"))
        print_table(("class", "pixels", "share"), rows, f"{split}: {found['images']} images")
    show("nothing is wrong")
