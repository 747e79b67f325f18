"""The command line: reads arguments, calls :mod:`adcam.pipeline`, prints what comes back.

Exit codes: 0 all is done, 1 some images failed, 2 the command cannot be carried out, 130
interrupted. Everything heavy is imported by the command that needs it, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adcam.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from adcam.pipeline.compare_boxes import BoxRowResult
    from adcam.pipeline.converters import Converted
    from adcam.pipeline.labeler import PseudoLabeler

EXIT_OK, EXIT_SOME_FAILED, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130

_SHOWN_FAILURES = 20

_EXIT_CODES = """\
exit codes: 0 all is done; 1 some images have no mask or failed (they are listed);
2 the command cannot be carried out; 130 interrupted (the same command goes on)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return EXIT_ERROR
    try:
        code: int = args.run(args)
    except (ValueError, OSError) as error:
        # What a caller can mend: wrong values, and files that are missing or cannot be written.
        if args.debug:
            raise
        print(f"adcam {args.command}: error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(f"adcam {args.command}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="adcam",
        description="Pixel masks from image-level labels.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=textwrap.dedent(
            """\
            the usual way:
              adcam train configs/voc_animals/adcam_deit-tiny_10e_voc-animals.py --work-dir work
              adcam generate photos/ --checkpoint work/classifier.safetensors --out masks
              adcam evaluate masks --gt photos/truth
            or all of it, and a network that learns from the masks:
              adcam run configs/voc_animals/adcam_deit-tiny_fcn.py --work-dir work

            new here? `adcam demo` shows everything on made-up pictures.

            """
        )
        + _EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"adcam {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    _add_generate(commands)
    _add_evaluate(commands)
    _add_boxes(commands)
    _add_compare(commands)
    _add_convert(commands)
    _add_segment(commands)
    _add_run(commands)
    _add_report(commands)
    _add_info(commands)
    return parser


def _add_command(
    commands: Any, name: str, run: Any, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.dedent(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        + textwrap.indent(textwrap.dedent(examples), "  ")
        + "\n"
        + _EXIT_CODES,
    )
    parser.add_argument("--debug", action="store_true", help="show where an error was raised")
    parser.set_defaults(run=run, command=name)
    return parser


def _add_demo(commands: Any) -> None:
    parser = _add_command(
        commands,
        "demo",
        _run_demo,
        "make pictures, train, compare the methods, write a report",
        """\
        Show the whole job on generated pictures: make the set, train a classifier, compare the
        methods, generate masks, score them, and write report.html.""",
        """\
        adcam demo
        adcam demo --quick --work-dir /tmp/demo
        adcam demo --task localization
        """,
    )
    parser.add_argument(
        "--work-dir", type=Path, default=Path("work_dirs/demo"), help="default: %(default)s"
    )
    parser.add_argument(
        "--task",
        choices=("segmentation", "localization"),
        default="segmentation",
        help="masks, or boxes of single animals (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer pictures, shorter training")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="ImageNet weights of a ViT: adds real photographs to the report",
    )
    parser.add_argument(
        "--from-scratch", action="store_true", help="do not start from the weights shipped here"
    )


def _add_train(commands: Any) -> None:
    parser = _add_command(
        commands,
        "train",
        _run_train,
        "train a classifier on image-level labels",
        """\
        Train a classifier on image-level labels. The best one on data.val becomes
        WORK_DIR/classifier.safetensors, which `adcam generate` takes.""",
        """\
        adcam train configs/voc_animals/adcam_deit-tiny_10e_voc-animals.py
        adcam train my_config.py --work-dir work --cfg-options train.epochs=3 data.root=photos
        adcam train my_config.py --work-dir work --resume
        torchrun --nproc-per-node 4 -m adcam.cli train my_config.py --launcher pytorch
        """,
    )
    _add_config_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="who started the processes of distributed training (default: %(default)s)",
    )


def _add_compare(commands: Any) -> None:
    parser = _add_command(
        commands,
        "compare",
        _run_compare,
        "score all methods of a config in one table",
        """\
        Score the methods that a config lists under `compare`, each at the threshold chosen on one
        split and reported on another. Trains first if WORK_DIR has no classifier. The last row
        makes the masks. Writes compare.csv, masks_<split>/ and report.html into WORK_DIR.""",
        """\
        adcam compare configs/voc_animals/adcam_deit-tiny_10e_voc-animals.py --work-dir work
        """,
    )
    _add_config_arguments(parser)
    parser.add_argument(
        "--table-only", action="store_true", help="write compare.csv, no masks and no report"
    )


def _add_run(commands: Any) -> None:
    parser = _add_command(
        commands,
        "run",
        _run_run,
        "train, make masks, train a network on them, report",
        """\
        The whole recipe of a config: train the classifier, make pseudo masks, score them, train a
        segmentation network on them, test it, and write WORK_DIR/report/report.html. The stages are
        train, generate, evaluate, segment, test, report; each records what it was made from, so
        that the same command again does what is missing or no longer true, and nothing else.""",
        """\
        adcam run configs/voc_animals/adcam_deit-tiny_fcn.py --work-dir work
        adcam run configs/voc_animals/adcam_deit-tiny_fcn.py --work-dir work --skip segment test
        adcam run my_recipe.py --work-dir work --only evaluate report
        adcam run my_recipe.py --work-dir work --redo segment --cfg-options mask.crf=lattice
        """,
    )
    _add_config_arguments(parser)
    names = ("train", "generate", "evaluate", "segment", "test", "report")
    parser.add_argument("--only", nargs="+", choices=names, default=[], help="look at no other")
    parser.add_argument(
        "--skip", nargs="+", choices=names, default=[], help="take what is there, true or not"
    )
    parser.add_argument(
        "--redo", nargs="+", choices=names, default=[], help="run again from nothing"
    )


def _add_report(commands: Any) -> None:
    parser = _add_command(
        commands,
        "report",
        _run_report,
        "write the report of a finished run again",
        """\
        Write WORK_DIR/report/report.html again from the files that `adcam run` left, or
        WORK_DIR/report.html of an `adcam compare` by boxes, whose maps are made again.""",
        "adcam report work\n",
    )
    parser.add_argument(
        "work_dir",
        type=Path,
        metavar="WORK_DIR",
        help="of `adcam run`, or of `adcam compare` by boxes",
    )


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a Python config, see configs/")
    parser.add_argument(
        "--work-dir", type=Path, help="where results go (default: work_dirs/<name of the config>)"
    )
    _add_cfg_options(parser)


def _add_cfg_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change values of the config, e.g. train.epochs=3 data.train=[train]",
    )


def _add_generate(commands: Any) -> None:
    parser = _add_command(
        commands,
        "generate",
        _run_generate,
        "make masks for images",
        """\
        Make a mask for every image: OUT/masks/<id>.png, 8-bit, pixel = class value,
        255 = uncertain. OUT/config.json says how they were made, OUT/manifest.jsonl what became
        of each image.
        Interrupted? The same command goes on where it stopped.""",
        """\
        adcam generate photos/ --checkpoint classifier.safetensors --out out --labels labels.csv
        adcam generate photos/ --checkpoint classifier.safetensors --out out --labels predicted
        adcam generate VOC2012 --voc-split train --checkpoint classifier.safetensors --out out \\
            --scales 224 336 448 --flip --crf lattice
        adcam generate cat.jpg --model deit_tiny_patch16_224 --classes "tabby cat" --out out
        """,
    )
    parser.add_argument(
        "images",
        type=Path,
        metavar="IMAGES",
        help="a folder, a VOC root, a .txt list of image paths, or one image",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    _add_source_arguments(parser)
    _add_mask_arguments(parser)


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group(
        "classifier", "one of your own, or an ImageNet model as it is"
    )
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="of `adcam train`")
    source.add_argument("--model", metavar="NAME", help="timm name of an ImageNet ViT")
    source.add_argument(
        "--classes",
        metavar="A,B,...",
        help="with --model: ImageNet classes to look for; without --labels every image is taken "
        "to show all of them",
    )
    source.add_argument(
        "--weights",
        metavar="FILE",
        help="with --model: its weights (default: timm downloads them)",
    )

    which = parser.add_argument_group("images and labels")
    which.add_argument(
        "--labels",
        metavar="FILE|predicted",
        help="a CSV 'image_id,labels' (separated by spaces or ';'); for a VOC root also .npy, xml "
        "or mask; 'predicted': the classifier decides. Default: VOC's annotations, or labels.csv "
        "beside the images",
    )
    which.add_argument(
        "--label-threshold",
        type=float,
        metavar="P",
        help="a class is predicted from this probability on (default: 0.5)",
    )
    which.add_argument("--ids", type=Path, metavar="LIST", help="only these ids, one a line")
    which.add_argument("--voc-split", metavar="SPLIT", help="list of a VOC root, e.g. train")

    maps = parser.add_argument_group("class maps")
    maps.add_argument(
        "--method",
        metavar="NAME",
        help="ad_cam (default), cam, ts_cam, coupled, transcam or clip_es",
    )
    maps.add_argument(
        "--method-options", nargs="+", metavar="KEY=VALUE", help="e.g. power=3 num_steps=1"
    )
    maps.add_argument(
        "--scales", type=int, nargs="+", metavar="PX", help="input sides in pixels (default: 448)"
    )
    maps.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also look at the mirrored image",
    )
    maps.add_argument(
        "--keep-ratio",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="keep the aspect ratio (default), or squash to squares",
    )


def _add_mask_arguments(parser: argparse.ArgumentParser) -> None:
    mask = parser.add_argument_group("mask")
    rules = mask.add_mutually_exclusive_group()
    rules.add_argument(
        "--threshold",
        "--bg",
        metavar="RULE",
        help="where background ends: a score in [0, 1] (larger: more background), power:A or otsu",
    )
    rules.add_argument(
        "--two-threshold",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="pixels that two background scores disagree on become 255, e.g. 0.2 0.5",
    )
    mask.add_argument(
        "--crf",
        choices=("none", "lattice", "lattice-gpu", "pydensecrf"),
        help="sharpen edges with a dense CRF: ours, on CPU or GPU, or the C++ package "
        "(default: none)",
    )
    mask.add_argument(
        "--crf-params", metavar="NAME", help="toco (default), irn, psa, clip_es or weaktr"
    )

    run = parser.add_argument_group("run")
    run.add_argument(
        "--config", type=Path, help="a config whose sections `cam` and `mask` give the defaults"
    )
    _add_cfg_options(run)
    run.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if any)")
    run.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the network")
    run.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compile the network's MLPs: for long runs on a GPU (docs/performance.md)",
    )
    run.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes to label images in; 0: this one alone (default: by the processors there "
        "are). Changes no result",
    )
    run.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="most images of one size that the network sees at once (default: 1, on a GPU 8)",
    )
    run.add_argument("--save-maps", action="store_true", help="also write OUT/maps/<id>.npz")
    run.add_argument("--maps-dtype", choices=("uint8", "float16"), default="uint8")
    run.add_argument(
        "--overwrite",
        action="store_true",
        help="start anew; removes what OUT/manifest.jsonl lists, nothing else",
    )
    run.add_argument(
        "--json", type=Path, metavar="FILE", help="write counts, seconds and shares of time there"
    )


def _add_evaluate(commands: Any) -> None:
    parser = _add_command(
        commands,
        "evaluate",
        _run_evaluate,
        "score masks against the truth",
        """\
        Score masks (<id>.png) against true masks of the same names: mean IoU and per class IoU,
        precision and recall. With --sweep, score maps of `generate --save-maps` at every
        background score; maps of other projects (<id>.npy) too, see --classes and --format. With
        --metadata, score maps in wsolevaluation's format (<id>.npy) by its
        MaxBoxAccV2, or with --mask-root by its PxAP.""",
        """\
        adcam evaluate out --gt VOC2012/SegmentationClass --ids train.txt --json out.json
        adcam evaluate out --gt VOC2012/SegmentationClass --ids train.txt --sweep
        adcam evaluate test_maps --metadata metadata/CUB/test \\
            --choose-maps val_maps --choose-metadata metadata/CUB/val
        """,
    )
    parser.add_argument(
        "pred_dir", type=Path, metavar="PRED_DIR", help="masks, or with --sweep maps"
    )
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--gt", type=Path, metavar="GT_DIR", help="true masks")
    truth.add_argument(
        "--metadata",
        type=Path,
        metavar="DIR",
        help="true boxes or masks: a split's metadata folder of wsolevaluation",
    )
    parser.add_argument("--ids", type=Path, metavar="LIST", help="only these ids, one a line")
    parser.add_argument("--sweep", action="store_true", help="threshold curve of stored maps")
    for name in ("--classes", "--format"):  # of another project's maps
        parser.add_argument(name, **_CONVERT_OPTIONS[name])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument(
        "--num-classes",
        type=int,
        metavar="N",
        help="mask values, background included (default: from config.json, or the highest found)",
    )
    parser.add_argument(
        "--average",
        choices=("union", "gt_present", "per_image"),
        default="union",
        help="classes that enter the mean, see docs/metrics.md (default: %(default)s)",
    )
    parser.add_argument(
        "--pred-ignore",
        choices=("miss", "drop"),
        default="miss",
        help="a predicted 255 is wrong, or is not scored (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="score what is there, list what is not"
    )
    localization = parser.add_argument_group("localisation", "with --metadata")
    localization.add_argument(
        "--choose-maps",
        type=Path,
        metavar="DIR",
        help="score maps of another split, to choose the thresholds on; default: the best for the "
        'images scored, called "oracle" in the output',
    )
    localization.add_argument(
        "--choose-metadata", type=Path, metavar="DIR", help="metadata folder of that split"
    )
    localization.add_argument(
        "--largest-contour",
        action="store_true",
        help="one box, of the largest contour (MaxBoxAcc), not one a contour (MaxBoxAccV2)",
    )
    localization.add_argument(
        "--mask-root", type=Path, metavar="DIR", help="masks of the metadata: score PxAP"
    )


def _add_boxes(commands: Any) -> None:
    parser = _add_command(
        commands,
        "boxes",
        _run_boxes,
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
        "images",
        type=Path,
        metavar="IMAGES",
        help="a folder, a VOC root, a .txt list of image paths, or one image",
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
    _add_source_arguments(parser)
    # What a labeler takes for masks, and boxes do not need.
    parser.set_defaults(
        config=None,
        cfg_options=[],
        threshold=None,
        two_threshold=None,
        crf=None,
        crf_params=None,
        dtype=None,
        compile=None,
    )


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
    "mask-labels": ("MASKS", "masks -> labels.csv", ("--out", "--classes")),
    "irn-labels": ("NPY", "cls_labels.npy of IRN and others -> labels.csv", ("--out", "--classes")),
    "masks-to-coco": (
        "MASKS",
        "masks -> COCO json, run lengths",
        ("--out", "--classes", "--image-suffix"),
    ),
    "coco-to-masks": (
        "JSON",
        "any COCO json -> masks",
        ("--out", "--classes", "--crowd", "--overlap"),
    ),
    "masks-to-yolo": ("MASKS", "masks -> text files of Ultralytics", ("--out", "--classes")),
    "yolo-to-masks": (
        "LABELS",
        "text files of Ultralytics -> masks",
        ("--out", "--classes", "--images"),
    ),
    "cams": (
        "CAMS",
        "class maps of other projects (.npy) -> our maps or masks",
        ("--out", "--classes", "--format", "--threshold"),
    ),
}
_CONVERT_OPTIONS: dict[str, dict[str, Any]] = {
    "voc": {"type": Path, "metavar": "VOC", "help": "VOC root, the folder with JPEGImages"},
    "--out": {"type": Path, "required": True, "metavar": "PATH", "help": "file or folder to write"},
    "--out-root": {"type": Path, "dest": "out", "metavar": "DIR", "help": "default: VOC itself"},
    "--split": {"metavar": "NAME", "help": "e.g. train2014 (default: from the file's name)"},
    "--voc-split": {"dest": "split", "required": True, "metavar": "SPLIT", "help": "e.g. train"},
    "--classes": {
        "default": "voc",
        "metavar": "voc|coco|A,B,...",
        "help": "classes in the order of their numbers (default: %(default)s)",
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
    "--format": {
        "dest": "cam_format",
        "choices": ("auto", "irn", "psa", "psa_crf", "clip_es", "puzzlecam"),
        "default": "auto",
        "help": "see docs/datasets.md (default: %(default)s)",
    },
    "--threshold": {"metavar": "RULE", "help": "make masks: a background score, power:A or otsu"},
}


def _add_convert(commands: Any) -> None:
    parser = _add_command(
        commands,
        "convert",
        _run_convert,
        "data sets, labels, masks and maps from one format into another",
        """\
        Convert data sets, labels, masks and class maps; `adcam convert WHAT --help` has the options
        and docs/datasets.md the steps for each data set. Counts, classes and a hash are printed.
        Interrupted? The same command goes on where it stopped.""",
        """\
        adcam convert sbd benchmark_RELEASE VOC2012
        adcam convert coco coco/annotations/instances_train2014.json --out coco
        adcam convert irn-labels cls_labels.npy --out labels.csv
        adcam convert masks-to-coco masks --classes cat,dog --out masks.json
        adcam convert cams irn/result/cam --out out --threshold 0.15
        """,
    )
    converters = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for what, (source, summary, names) in _CONVERTERS.items():
        converter = converters.add_parser(what, help=summary, description=summary)
        converter.add_argument("source", type=Path, metavar=source)
        for name in names:
            converter.add_argument(name, **_CONVERT_OPTIONS[name])
        converter.add_argument(
            "--overwrite", action="store_true", help="make anew what is there already"
        )
        converter.add_argument("--json", type=Path, metavar="FILE", help="write all counts there")


def _add_segment(commands: Any) -> None:
    parser = _add_command(
        commands,
        "segment",
        _run_segment,
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
    parser.add_argument(
        "--work-dir", type=Path, help="where results go (default: work_dirs/<name of the config>)"
    )
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
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="who started the processes of distributed training (default: %(default)s)",
    )
    _add_cfg_options(parser)


def _add_info(commands: Any) -> None:
    parser = _add_command(
        commands,
        "info",
        _run_info,
        "show versions, devices and backends",
        "Show versions, devices and backends, and why a backend cannot run.",
        "adcam info\nadcam info --json\n",
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")


def _run_demo(args: argparse.Namespace) -> int:
    from adcam.pipeline.demo import run_demo

    run_demo(
        args.work_dir,
        task=args.task,
        quick=args.quick,
        weights=args.weights,
        from_scratch=args.from_scratch,
    )
    return EXIT_OK


def _run_train(args: argparse.Namespace) -> int:
    from adcam.pipeline.train import train_classifier

    path = train_classifier(
        _load_config(args.config, args.cfg_options),
        _work_dir(args),
        resume=args.resume,
        launcher=args.launcher,
    )
    print(f"classifier: {path}")
    return EXIT_OK


def _run_compare(args: argparse.Namespace) -> int:
    from adcam.pipeline.compare import run_compare
    from adcam.pipeline.experiment import print_results, run_experiment
    from adcam.pipeline.progress import track

    cfg, work_dir = _load_config(args.config, args.cfg_options), _work_dir(args)
    if cfg.get("task") == "localization":
        return _run_compare_boxes(args, cfg, work_dir)
    if args.table_only:
        results = run_compare(cfg, work_dir, progress=track)
        print_results(results, cfg.compare.choose_on, cfg.compare.report_on)
        print(f"table: {work_dir / 'compare.csv'}")
        return EXIT_OK
    experiment = run_experiment(
        cfg,
        work_dir,
        title=f"{args.config.stem}: methods side by side",
        command=_compare_command(args),
    )
    print_results(experiment.results, cfg.compare.choose_on, cfg.compare.report_on)
    print(f"table: {work_dir / 'compare.csv'}")
    print(f"report: {experiment.report}")
    return EXIT_OK


def _run_run(args: argparse.Namespace) -> int:
    from adcam.pipeline.recipe import open_recipe, run_recipe

    work_dir = _work_dir(args)
    words = ["adcam", "run", str(args.config), "--work-dir", str(work_dir)]
    if args.cfg_options:
        words += ["--cfg-options", *args.cfg_options]
    recipe = open_recipe(
        _load_config(args.config, args.cfg_options),
        work_dir,
        title=f"{args.config.stem}: masks from labels, a network from masks",
        command=shlex.join(words),
    )
    run_recipe(recipe, only=args.only, skip=args.skip, redo=args.redo)
    if (page := recipe.folder("report") / "report.html").is_file():
        print(f"report: {page}")
    return EXIT_OK


def _run_report(args: argparse.Namespace) -> int:
    from adcam.pipeline.box_report import is_box_comparison, remake_box_report
    from adcam.pipeline.recipe import load_recipe, make_report

    if is_box_comparison(args.work_dir):
        print(f"report: {remake_box_report(args.work_dir)}")
        return EXIT_OK
    print(f"report: {make_report(load_recipe(args.work_dir))}")
    return EXIT_OK


def _run_compare_boxes(args: argparse.Namespace, cfg: Any, work_dir: Path) -> int:
    from adcam.pipeline.box_report import run_box_experiment
    from adcam.pipeline.compare_boxes import run_compare_boxes
    from adcam.pipeline.progress import track

    report = None
    if args.table_only:
        comparison = run_compare_boxes(cfg, work_dir, progress=track)
    else:
        title = f"{args.config.stem}: boxes side by side"
        comparison, report = run_box_experiment(
            cfg, work_dir, title=title, command=_compare_command(args)
        )
    _print_box_comparison(comparison.results, comparison.images.split)
    print(f"table: {work_dir / 'compare.csv'}")
    if report is not None:
        print(f"report: {report}")
    return EXIT_OK


def _compare_command(args: argparse.Namespace) -> list[str]:
    options = ["--cfg-options", *args.cfg_options] if args.cfg_options else []
    return ["adcam", "compare", str(args.config), *options]


def _run_generate(args: argparse.Namespace) -> int:
    _check_generate(args)
    from adcam.pipeline.generate import default_workers, generate
    from adcam.pipeline.json_file import write_json

    labeler = _build_labeler(args)
    images = _open_images(args, labeler)
    result = generate(
        images,
        labeler,
        args.out,
        labels="predicted" if args.labels == "predicted" else "given",
        save_maps=args.save_maps,
        maps_dtype=args.maps_dtype,
        overwrite=args.overwrite,
        workers=default_workers(labeler) if args.workers is None else args.workers,
        batch_size=args.batch_size,
        report=_say,
    )
    if args.json:
        write_json(args.json, result.to_dict())
    if result.failed:
        _say(f"{len(result.failed)} of {len(images)} images have no mask:")
        for failure in result.failed[:_SHOWN_FAILURES]:
            _say(f"  {failure.img_id}: {failure.error}")
        if (more := len(result.failed) - _SHOWN_FAILURES) > 0:
            _say(f"  … and {more} more, see {args.out / 'manifest.jsonl'}")
    _say(f"{result.ok} masks written, {result.skipped} were there")
    if result.ok + len(result.failed):
        _say(result.format_times())
    print(args.out / "masks")
    return EXIT_SOME_FAILED if result.failed else EXIT_OK


def _check_generate(args: argparse.Namespace) -> None:
    """Refuse what contradicts itself before anything heavy is imported."""
    if (args.checkpoint is None) == (args.model is None):
        raise ValueError("give either --checkpoint FILE or --model NAME --classes A,B,…")
    if args.model is not None and not args.classes:
        raise ValueError('--model needs --classes, e.g. --classes "tabby cat,golden retriever"')
    if args.model is None and (args.classes or args.weights):
        raise ValueError("--classes and --weights go with --model; a checkpoint has its own")


def _build_labeler(args: argparse.Namespace) -> PseudoLabeler:
    from dataclasses import replace

    from adcam.pipeline.infer import Views
    from adcam.pipeline.labeler import PseudoLabeler, options_from_config

    options: dict[str, Any] = {}
    if args.config is not None:
        options = options_from_config(_load_config(args.config, args.cfg_options))
    elif args.cfg_options:
        raise ValueError("--cfg-options changes a config: name one with --config")
    for name in ("method", "crf", "crf_params", "dtype", "compile", "label_threshold"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    if args.method is not None:
        # Options of the config's method do not fit another one.
        options["method_options"] = {}
    if args.method_options is not None:
        options["method_options"] = _parse_pairs("--method-options", args.method_options)
    views = options.get("views", Views())
    if args.scales is not None:
        views = replace(views, scales=tuple(args.scales))
    if args.flip is not None:
        views = replace(views, flip=args.flip)
    if args.keep_ratio is not None:
        views = replace(views, keep_ratio=args.keep_ratio)
    options["views"] = views
    if args.threshold is not None:
        options["rule"] = args.threshold
        options["two_threshold"] = None
    if args.two_threshold is not None:
        options["two_threshold"] = tuple(args.two_threshold)
    if args.checkpoint is not None:
        return PseudoLabeler.from_checkpoint(args.checkpoint, device=args.device, **options)
    return PseudoLabeler.from_imagenet(
        args.model,
        _split_names(args.classes),
        weights=args.weights or "timm",
        device=args.device,
        **options,
    )


def _open_images(args: argparse.Namespace, labeler: PseudoLabeler) -> Any:
    from adcam.pipeline.sources import open_images, read_id_list

    labels = args.labels or "auto"
    everything = args.labels is None and args.model is not None
    images = open_images(
        args.images,
        labeler.class_set,
        labels=None if everything or labels == "predicted" else labels,
        ids=None if args.ids is None else read_id_list(args.ids),
        voc_split=args.voc_split,
    )
    if everything:
        all_ids = range(labeler.class_set.num_fg_classes)
        images = images.with_labels({record.img_id: all_ids for record in images.records})
    return images


def _run_evaluate(args: argparse.Namespace) -> int:
    from adcam.pipeline.config import parse_classes
    from adcam.pipeline.evaluate import evaluate_maps, evaluate_masks
    from adcam.pipeline.json_file import write_json
    from adcam.pipeline.sources import read_id_list

    if args.metadata is not None:
        return _run_evaluate_localization(args)
    common: dict[str, Any] = {
        "ids": None if args.ids is None else read_id_list(args.ids),
        "average": args.average,
        "allow_missing": args.allow_missing,
        "progress": True,
    }
    if args.sweep:
        result = evaluate_maps(
            args.pred_dir,
            args.gt,
            class_set=parse_classes(args.classes),
            cam_format=args.cam_format,
            **common,
        )
        _print_curve(result)
    else:
        result = evaluate_masks(
            args.pred_dir,
            args.gt,
            num_classes=args.num_classes,
            pred_ignore=args.pred_ignore,
            **common,
        )
        _print_scores(result)
    if missing := result["missing_predictions"]:
        _say(f"{len(missing)} images without a prediction were left out, such as {missing[0]}")
    if args.json:
        write_json(args.json, result)
    return EXIT_OK


def _run_evaluate_localization(args: argparse.Namespace) -> int:
    from adcam.pipeline.json_file import write_json
    from adcam.pipeline.localization import evaluate_boxes, evaluate_pixels

    if args.mask_root is not None:
        if args.choose_maps or args.choose_metadata or args.largest_contour:
            raise ValueError("PxAP (--mask-root) has no threshold to choose and no contours")
        result = evaluate_pixels(args.pred_dir, args.metadata, args.mask_root, progress=True)
        print(f"PxAP of {result['split']}: {result['px_ap']:.2f} ({result['num_images']} images)")
    else:
        result = evaluate_boxes(
            args.pred_dir,
            args.metadata,
            choose_maps_dir=args.choose_maps,
            choose_metadata_dir=args.choose_metadata,
            multi_contour=not args.largest_contour,
            progress=True,
        )
        _print_box_scores(result)
    if args.json:
        write_json(args.json, result)
    return EXIT_OK


def _run_boxes(args: argparse.Namespace) -> int:
    _check_generate(args)
    from adcam.pipeline.localization import find_boxes, write_boxes
    from adcam.pipeline.progress import track

    labeler = _build_labeler(args)
    images = _open_images(args, labeler)
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
    failed = [image for image in found if image.error is not None]
    for image in failed[:_SHOWN_FAILURES]:
        _say(f"  {image.img_id}: {image.error}")
    _say(f"{sum(len(image.boxes.boxes) for image in found)} boxes, {len(failed)} images failed")
    print(args.out)
    return EXIT_SOME_FAILED if failed else EXIT_OK


def _run_convert(args: argparse.Namespace) -> int:
    from adcam.pipeline.config import parse_classes
    from adcam.pipeline.converters import CONVERTERS
    from adcam.pipeline.json_file import write_json

    given = {"command", "run", "debug", "what", "source", "json", "classes"}
    options = {name: value for name, value in vars(args).items() if name not in given}
    if "classes" in args:
        options["class_set"] = parse_classes(args.classes)
    result = CONVERTERS[args.what](args.source, **options, progress=True)
    _print_converted(result)
    if args.json:
        write_json(args.json, result.to_dict())
    for img_id in list(result.failed)[:_SHOWN_FAILURES]:
        _say(f"  {img_id}: {result.failed[img_id]}")
    if (more := len(result.failed) - _SHOWN_FAILURES) > 0:
        _say(f"  … and {more} more; --json lists all")
    _say(
        f"{result.num_images} images, {result.kept} of them were there; {len(result.failed)} failed"
    )
    return EXIT_SOME_FAILED if result.failed else EXIT_OK


def _run_segment(args: argparse.Namespace) -> int:
    _check_segment(args)
    from adcam.pipeline import segment

    config = segment.read_segmentation_config(
        args.config, _parse_pairs("--cfg-options", args.cfg_options)
    )
    work_dir = _work_dir(args)
    checkpoint = args.checkpoint or work_dir / segment.SEGMENTER_NAME
    if args.check:
        _print_check(segment.check_segmentation(config))
    if args.action == "train":
        path = segment.train_segmenter(
            config, work_dir=work_dir, resume=not args.restart, launcher=args.launcher
        )
        print(f"network: {path}")
    elif args.action == "test":
        scores = segment.test_segmenter(config, checkpoint, work_dir=work_dir, masks_out=args.out)
        _print_scores(scores, f"Scores of {scores['split']} in percent")
        print(work_dir / f"test_{scores['split']}.json")
    elif args.action == "predict":
        result = segment.predict_segmenter(config, checkpoint, args.images, args.out)
        for img_id, error in list(result["failed"].items())[:_SHOWN_FAILURES]:
            _say(f"  {img_id}: {error}")
        _say(f"{result['ok']} masks written, {len(result['failed'])} images failed")
        print(result["masks"])
        return EXIT_SOME_FAILED if result["failed"] else EXIT_OK
    return EXIT_OK


def _check_segment(args: argparse.Namespace) -> None:
    """Refuse what contradicts itself before anything heavy is imported."""
    if args.check == (args.action is not None):
        raise ValueError("give either --check or one of train, test and predict")
    if args.action == "predict" and (args.images is None or args.out is None):
        raise ValueError("predict needs IMAGES and --out DIR")
    if args.action != "predict" and args.images is not None:
        raise ValueError(f"{args.images}: only predict takes images")


def _print_check(splits: Mapping[str, Any]) -> None:
    for split, found in splits.items():
        pixels = found["pixels"]
        total = sum(pixels.values()) + found["ignored"]
        rows = [
            (name, str(count), f"{100 * count / total:.2f} %") for name, count in pixels.items()
        ]
        rows.append(("ignored", str(found["ignored"]), f"{100 * found['ignored'] / total:.2f} %"))
        _print_table(("class", "pixels", "share"), rows, f"{split}: {found['images']} images")
    print("nothing is wrong")


def _run_info(args: argparse.Namespace) -> int:
    from adcam.pipeline.info import collect_info

    info = collect_info()
    if args.json:
        print(json.dumps(info, indent=2))
        return EXIT_OK
    for title, values in info.items():
        rows = [(name, _state(title, value)) for name, value in values.items()]
        _print_table(("", ""), rows, title.replace("_", " "))
    print("--crf lattice takes numba, or reference where that cannot run; lattice-gpu torch.")
    return EXIT_OK


def _state(title: str, value: Any) -> str:
    if title in ("op_backends", "crf_backends", "features"):
        return "ready" if value is None else f"cannot run: {value}"
    return (
        {"versions": "not installed", "threads": "not set"}[title] if value is None else str(value)
    )


def _print_scores(result: Mapping[str, Any], title: str = "Scores in percent") -> None:
    rows = [
        (
            name,
            *(
                _percent(result[key][name])
                for key in ("iou_per_class", "precision_per_class", "recall_per_class")
            ),
        )
        for name in result["iou_per_class"]
    ]
    rows.append(("mean", _percent(result["miou"]), "", ""))
    _print_table(("class", "IoU", "precision", "recall"), rows, title)
    policy = ", ".join(f"{key} {value}" for key, value in result["policy"].items())
    ignored = 100 * (result["ignored_share"] or 0)
    print(f"{result['num_images']} images; {ignored:.1f} % of the pixels left uncertain; {policy}")


def _print_converted(result: Converted) -> None:
    names = {**result.class_images, **result.class_pixels}
    rows = [
        (name, str(result.class_images.get(name, "")), str(result.class_pixels.get(name, "")))
        for name in ("background", *result.class_images, "ignore")
        if names.get(name)
    ]
    _print_table(("class", "images", "pixels"), rows, f"{result.what}: {result.num_images} images")
    for note in result.notes:
        print(note)
    print(f"sha256 of all results: {result.sha256}")
    print(result.out)


def _print_box_scores(result: Mapping[str, Any]) -> None:
    rows = [
        (f"IoU {delta}", f"{accuracy:.2f}", f"{result['best_thresholds'][delta]:.3f}")
        for delta, accuracy in result["box_acc"].items()
    ]
    rows.append(("mean", f"{result['max_box_acc_v2']:.2f}", ""))
    title = f"Box accuracy of {result['split']} in percent"
    _print_table(("", "box accuracy", "threshold"), rows, title)
    contours = "all contours" if result["policy"]["multi_contour"] else "the largest contour"
    print(
        f"{result['num_images']} images; boxes of {contours}; "
        f"thresholds chosen on: {result['chosen_on']}"
    )


def _print_box_comparison(results: Sequence[BoxRowResult], split: str) -> None:
    deltas = list(results[0].boxes.box_acc)
    header = ("method", "MaxBoxAccV2", *(f"IoU {delta:g}" for delta in deltas))
    rows = []
    for item in results:
        values = [item.boxes.max_box_acc_v2, *item.boxes.box_acc.values()]
        values += [item.localization.gt_known, item.localization.top_loc[1]]
        values.append(item.boxes_oracle.max_box_acc_v2)
        rows.append((item.row.name, *(f"{value:.1f}" for value in values)))
    title = f"Boxes on {split}, percent; thresholds chosen on: {results[0].chosen_on}"
    _print_table((*header, "GT-known", "Top-1 Loc", "V2, oracle"), rows, title)


def _print_curve(result: Mapping[str, Any]) -> None:
    points = list(zip(result["thresholds"], result["miou"], strict=True))
    best = result["best_threshold"]
    shown = [point for point in points if point[0] == best or round(point[0] * 100) % 5 == 0]
    rows = [(f"{t:.2f}", f"{miou:.2f}", "best" if t == best else "") for t, miou in shown]
    _print_table(("threshold", "mIoU", ""), rows, "Threshold curve")
    _print_scores(result["best"], f"Scores in percent at {best:.2f}")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=any(header))
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number and any(header) else "left")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _console() -> Console:
    from rich.console import Console

    # A file or a pipe has no width: do not wrap to a terminal's default there.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(width=width, highlight=False, markup=False)


def _load_config(path: Path, cfg_options: Sequence[str]) -> Any:
    from adcam.pipeline.config import load_config

    return load_config(path, _parse_pairs("--cfg-options", cfg_options))


def _parse_pairs(option: str, texts: Sequence[str]) -> dict[str, Any]:
    from adcam.pipeline.config import parse_overrides

    for text in texts:
        if "=" not in text:
            raise ValueError(f"{option} takes key=value, got {text!r}")
    return parse_overrides(texts)


def _work_dir(args: argparse.Namespace) -> Path:
    return args.work_dir or Path("work_dirs") / args.config.stem


def _split_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
