"""``adcam segment``: a segmentation network that learns from the masks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adcam.cli.arguments import (
    add_cfg_options,
    add_command,
    add_config_arguments,
    add_launcher,
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
    say_next,
    show,
)


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "segment",
        None,
        "train a segmentation network on the masks, test and use it",
        """\
        Train a network of mmsegmentation on masks, score it, and write masks of new images with it.
        `adcam segment ACTION --help` explains each action.
        Needs mmsegmentation: pip install 'adcam[seg]'.""",
        """\
        adcam segment check configs/seg/voc_animals/deit-tiny_fcn_voc-animals.py \\
            --cfg-options data.masks=out
        adcam segment train configs/seg/voc_animals/deit-tiny_fcn_voc-animals.py --work-dir work \\
            --cfg-options data.masks=out
        adcam segment test configs/seg/voc_animals/deit-tiny_fcn_voc-animals.py --work-dir work \\
            --cfg-options test.flip=true test.crf=toco
        adcam segment predict photos/ --checkpoint work/segmenter.safetensors --out predicted
        """,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_check(actions)
    _add_train(actions)
    _add_test(actions)
    _add_predict(actions)


def _add_check(actions: Any) -> None:
    parser = add_command(
        actions,
        "check",
        _run_check,
        "look at all images and masks, and say what would stop a training",
        """\
        Read every image and mask that a training would use, and count the pixels of each class.
        Nothing is written.""",
        """\
        adcam segment check configs/seg/voc12/deeplabv2_r101_20k_voc12.py \\
            --cfg-options data.masks=out
        """,
        of="segment",
    )
    parser.add_argument(
        "config",
        type=Path,
        metavar="CONFIG",
        help="a file, or one that `adcam configs seg` lists",
    )
    add_cfg_options(parser)


def _add_train(actions: Any) -> None:
    parser = add_command(
        actions,
        "train",
        _run_train,
        "train a network on the masks",
        """\
        Train a network. WORK_DIR/segmenter.safetensors is the result; an interrupted training
        resumes by itself.""",
        """\
        adcam segment train configs/seg/voc12/deeplabv2_r101_20k_voc12.py --work-dir work \\
            --cfg-options data.masks=out
        torchrun --nproc-per-node 4 -m adcam segment train my_config.py --launcher pytorch
        """,
        of="segment",
    )
    add_config_arguments(parser)
    parser.add_argument("--restart", action="store_true", help="train from the first step again")
    add_launcher(parser)


def _add_test(actions: Any) -> None:
    parser = add_command(
        actions,
        "test",
        _run_test,
        "score a network on images with masks",
        """\
        Score a network on the list test.split of its config. WORK_DIR/test_<split>.json is the
        result.""",
        """\
        adcam segment test configs/seg/voc12/deeplabv2_r101_20k_voc12.py --work-dir work \\
            --cfg-options test.scales=[0.75,1.0,1.25] test.flip=true test.crf=toco
        """,
        of="segment",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="the network (default: WORK_DIR/segmenter.safetensors)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the predicted masks there")
    parser.add_argument("--overwrite", action="store_true", help="start over in --out")


def _add_predict(actions: Any) -> None:
    parser = add_command(
        actions,
        "predict",
        _run_predict,
        "write masks of new images",
        """\
        Write a mask for every image. The network's file holds all that this needs; an interrupted
        run resumes by itself.""",
        """\
        adcam segment predict photos/ --checkpoint work/segmenter.safetensors --out predicted
        adcam segment predict photos/ --checkpoint work/segmenter.safetensors --out predicted \\
            --cfg-options test.flip=true test.crf=toco
        """,
        of="segment",
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="a folder, a list or an image")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        required=True,
        help="the network, segmenter.safetensors of `adcam segment train`",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="the masks go there")
    parser.add_argument("--overwrite", action="store_true", help="start over, whatever OUT holds")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="CONFIG",
        help="the network's config, for a file of another program, which does not hold it",
    )
    add_cfg_options(parser)


def _run_check(args: argparse.Namespace) -> int:
    from adcam.training import segmenter

    _print_check(segmenter.check_segmentation(_load_settings(args)))
    say_next(f"adcam segment train {args.config}")
    return EXIT_OK


def _run_train(args: argparse.Namespace) -> int:
    from adcam.training import segmenter

    path = segmenter.train_segmenter(
        _load_settings(args),
        work_dir=work_dir_of(args),
        resume=not args.restart,
        launcher=args.launcher,
    )
    show(f"network: {path}")
    say_next(f"adcam segment predict IMAGES --checkpoint {path} --out DIR")
    return EXIT_OK


def _run_test(args: argparse.Namespace) -> int:
    from adcam.training import prediction, segmenter_file

    work_dir = work_dir_of(args)
    checkpoint = args.checkpoint or work_dir / segmenter_file.SEGMENTER_NAME
    scores = prediction.test_segmenter(
        _load_settings(args),
        checkpoint,
        work_dir=work_dir,
        masks_out=args.out,
        overwrite=args.overwrite,
    )
    print_scores(scores, f"Scores of {scores['split']} in percent")
    show(work_dir / f"test_{scores['split']}.json")
    say_next(f"adcam segment predict IMAGES --checkpoint {checkpoint} --out DIR")
    return EXIT_OK


def _run_predict(args: argparse.Namespace) -> int:
    from adcam.training import prediction

    result = prediction.predict_segmenter(
        args.checkpoint,
        args.images,
        args.out,
        settings=None if args.config is None else _load_settings(args),
        changes=None if args.config else parse_pairs("--cfg-options", args.cfg_options),
        overwrite=args.overwrite,
    )
    log_failures(result["failed"])
    log(f"{result['ok']} masks written, {len(result['failed'])} images failed")
    show(result["masks"])
    say_next(f"adcam evaluate {result['masks']} --gt TRUTH, or adcam convert for other formats")
    return EXIT_SOME_FAILED if result["failed"] else EXIT_OK


def _load_settings(args: argparse.Namespace) -> Any:
    from adcam.training.segmenter import load_segmentation_settings

    return load_segmentation_settings(args.config, parse_pairs("--cfg-options", args.cfg_options))


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
