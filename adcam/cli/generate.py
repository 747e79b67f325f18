"""``adcam generate``: masks for images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adcam.cli.arguments import add_cfg_options, add_command, load_config
from adcam.cli.console import EXIT_OK, EXIT_SOME_FAILED, log, log_failures, show
from adcam.cli.labeler import add_labeler_arguments, build_labeler, check_classifier, open_images
from adcam.errors import AdcamError


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "generate",
        run,
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
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    add_labeler_arguments(parser)

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

    work = parser.add_argument_group("run")
    work.add_argument(
        "--config", type=Path, help="a config whose sections `cam` and `mask` give the defaults"
    )
    add_cfg_options(work)
    work.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if any)")
    work.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the network")
    work.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compile the network's MLPs: for long runs on a GPU (docs/performance.md)",
    )
    work.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes to label images in; 0: this one alone (default: by the processors there "
        "are). Changes no result",
    )
    work.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="most images of one size that the network sees at once (default: 1, on a GPU 8)",
    )
    work.add_argument("--save-maps", action="store_true", help="also write OUT/maps/<id>.npz")
    work.add_argument("--maps-dtype", choices=("uint8", "float16"), default="uint8")
    work.add_argument(
        "--overwrite",
        action="store_true",
        help="start anew; removes what OUT/manifest.jsonl lists, nothing else",
    )
    work.add_argument(
        "--json", type=Path, metavar="FILE", help="write counts, seconds and shares of time there"
    )


def run(args: argparse.Namespace) -> int:
    check_classifier(args)
    from adcam.files import write_json
    from adcam.labeling.generate import default_workers, generate

    labeler = build_labeler(args, **_read_options(args))
    images = open_images(args, labeler)
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
        report=log,
    )
    if args.json:
        write_json(args.json, result.to_dict())
    if result.failed:
        log(f"{len(result.failed)} of {len(images)} images have no mask:")
        failed = {failure.img_id: failure.error for failure in result.failed}
        log_failures(failed, rest=f", see {args.out / 'manifest.jsonl'}")
    log(f"{result.ok} masks written, {result.skipped} were there")
    if result.ok + len(result.failed):
        log(result.format_times())
    show(args.out / "masks")
    return EXIT_SOME_FAILED if result.failed else EXIT_OK


def _read_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of a labeler: those of the config, and over them what concerns the mask."""
    from adcam.labeling.labeler import options_from_config

    options: dict[str, Any] = {}
    if args.config is not None:
        options = options_from_config(load_config(args))
    elif args.cfg_options:
        raise AdcamError("--cfg-options changes a config: name one with --config")
    for name in ("crf", "crf_params", "dtype", "compile"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    if args.threshold is not None:
        options["rule"] = args.threshold
        options["two_threshold"] = None
    if args.two_threshold is not None:
        options["two_threshold"] = tuple(args.two_threshold)
    return options
