"""``adcam generate``: masks for images."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adcam.cli.arguments import add_cfg_options, add_command, load_settings
from adcam.cli.console import log, say_next, show
from adcam.cli.labeler import (
    add_labeler_arguments,
    add_mask_arguments,
    add_run_arguments,
    build_labeler,
    check_classifier,
    open_images,
    open_images_first,
    path_or_url,
    read_mask_options,
    read_run_options,
    report_run,
    start_early,
)
from adcam.cli.project import find_project, say_next_in
from adcam.errors import AdcamError

if TYPE_CHECKING:
    from adcam.labeling.packed_folder import PackedOutput
    from adcam.labeling.ray_engine import RayEngine
    from adcam.labeling.run import RunResult
    from adcam.settings import Settings


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "generate",
        run,
        "make masks for images",
        """\
        Make a mask for every image: OUT/masks/<id>.png, 8-bit, pixel = class value,
        255 = uncertain. OUT/config.json says how they were made, OUT/manifest.jsonl what became
        of each image. In a folder that `adcam init` set up, IMAGES, classifier, labels, config and
        OUT are the project's unless you name others.
        Interrupted? The same command resumes where it stopped.""",
        """\
        adcam generate
        adcam generate photos/ --checkpoint classifier.safetensors --out out --labels labels.csv
        adcam generate photos/ --checkpoint classifier.safetensors --out out --labels predicted
        adcam generate VOC2012 --voc-split train --checkpoint classifier.safetensors --out out \\
            --scales 224 336 448 --flip --crf
        adcam generate cat.jpg --model deit_tiny_patch16_224 --classes "tabby cat" --out out
        on several machines, each with another shard; in the end `adcam merge out`:
        adcam generate photos/ --checkpoint classifier.safetensors --out out --shard 0/8
        """,
    )
    parser.add_argument(
        "--out", type=path_or_url, metavar="DIR", help="output folder; needed outside a project"
    )
    add_labeler_arguments(parser, nargs="?")
    parser.set_defaults(complete=complete, project=None)

    add_mask_arguments(parser.add_argument_group("mask"))
    work = parser.add_argument_group("run")
    work.add_argument(
        "--config", type=Path, help="a config whose sections `cam` and `mask` give the defaults"
    )
    add_cfg_options(work)
    add_run_arguments(work)
    work.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the network")
    work.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compile the network's MLPs: for runs of minutes on a GPU",
    )
    work.add_argument(
        "--shard",
        metavar="I/N",
        help="label only the I-th of N parts of the images, the first is 0/N; any number of them "
        "at once, also on several machines that share OUT. auto: by torchrun or SLURM",
    )
    parser.set_defaults(words=None)  # main() puts all words of the command here, for the report
    _add_engine_arguments(parser.add_argument_group("several machines"))
    _add_output_arguments(work)
    work.add_argument(
        "--overwrite",
        action="store_true",
        help="start over; removes what the manifest in OUT lists, nothing else",
    )


def _add_output_arguments(work: argparse._ArgumentGroup) -> None:
    """Add what is written beside the masks."""
    work.add_argument(
        "--report-images",
        type=int,
        metavar="N",
        help="images that OUT/report/report.html shows, evenly spread (default: 100); 0 writes no "
        "report",
    )
    work.add_argument("--save-maps", action="store_true", help="also write OUT/maps/<id>.npz")
    work.add_argument("--maps-dtype", choices=("uint8", "float16"), default="uint8")


def _add_engine_arguments(engine: argparse._ArgumentGroup) -> None:
    engine.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="what computes: this machine (default), or a Ray cluster (pip install 'adcam[ray]')",
    )
    engine.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="with --engine ray: the cluster, auto for the one that this machine belongs to "
        "(default: RAY_ADDRESS, else one is started here)",
    )
    engine.add_argument(
        "--gpus-per-process",
        type=float,
        metavar="SHARE",
        help="with --engine ray: the share of a GPU that a process of the network gets, e.g. 0.5 "
        "(default: 1 with --device cuda, else 0)",
    )
    engine.add_argument(
        "--output-format",
        choices=("files", "parquet", "tar"),
        default="files",
        help="pack masks and maps into Parquet files or tar archives, and the manifest into "
        "Parquet files; OUT may then be a URL (default: a file each)",
    )
    engine.add_argument(
        "--images-per-file", type=int, metavar="N", help="images in a packed file (default: 1000)"
    )


def complete(args: argparse.Namespace) -> None:
    """Take from the project in this folder what the command does not say."""
    is_named = args.images is not None and args.out is not None
    if is_named and (args.checkpoint or args.model):
        return
    from adcam.project.project import open_project

    if is_named and open_project(Path()) is None:
        return  # `check_classifier` says what is missing: a checkpoint or a model
    args.project = project = find_project(args, "IMAGES" if args.images is None else "--out")
    if args.checkpoint is None and args.model is None:
        if not project.classifier.is_file():
            raise AdcamError(
                f"{project.classifier}: there is no classifier yet; first: adcam train"
            )
        args.checkpoint = project.classifier
        args.config = args.config or project.config
    if args.out is None:
        args.out = project.out
    if args.images is None:
        data = project.read_data()
        args.images = Path(data.images or data.root)
        if args.labels is None and args.ids is None:
            args.labels, args.ids = str(Path(data.root, data.labels)), project.labelled


def run(args: argparse.Namespace) -> int:
    check_classifier(args)
    if args.engine != "local":
        return _run(args)
    start_early(args, "adcam.labeling.mask_job")
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    from adcam.labeling.shards import WHOLE, parse_shard

    shard = WHOLE if args.shard is None else parse_shard(args.shard)
    out = _read_output(args)
    num_shown = _read_num_shown(args)
    config = _read_config(args)
    images = open_images_first(args)
    from adcam.labeling.generate import generate
    from adcam.labeling.output_folder import manifest_path

    engine = _read_engine(args)
    labeler = build_labeler(args, **_read_options(args, config))
    if engine is not None and engine.gpus_per_process:
        labeler.assign_device("cuda")
    result = generate(
        open_images(args, labeler.class_set) if images is None else images,
        labeler,
        out,
        labels="predicted" if args.labels == "predicted" else "given",
        maps_dtype=args.maps_dtype if args.save_maps else None,
        overwrite=args.overwrite,
        num_shown=num_shown,
        shard=shard,
        engine=engine,
        **read_run_options(args, labeler),
    )
    part = "" if shard.is_whole else f"shard {shard}: "
    log(f"{part}{result.ok} masks written, {result.skipped} were there")
    is_packed = args.output_format != "files"
    manifest = f"{args.out}/manifest" if is_packed else manifest_path(args.out, shard)
    code = report_run(args, result, "mask", manifest)
    show(f"{args.out}/data" if is_packed else args.out / "masks")
    if num_shown and shard.is_whole:
        _write_report(args, result, num_shown)
    if not shard.is_whole:
        say_next(f"when all {shard.count} shards are done: adcam merge {args.out}")
    elif is_packed:
        say_next(f"adcam convert unpack {args.out} --out DIR makes a file an image of it")
    elif args.project is not None and args.out == args.project.out:
        say_next_in(args.project, "adcam convert")
    else:
        look = "look at the report" if num_shown else f"adcam report {args.out}"
        say_next(f"{look}, then adcam convert for other formats")
    return code


def _write_report(args: argparse.Namespace, result: RunResult, num_shown: int) -> None:
    from adcam.recipe.generation_report import write_generation_report

    page = write_generation_report(
        args.out,
        command=shlex.join(["adcam", *args.words]) if args.words else "",
        seconds=result.seconds,
        num_shown=num_shown,
    )
    log(f"report: {page}")


def _read_output(args: argparse.Namespace) -> Path | PackedOutput:
    """Read ``--out``, ``--output-format`` and ``--images-per-file``."""
    if args.output_format == "files":
        if not isinstance(args.out, Path):
            raise AdcamError(
                f"--out {args.out}: behind a URL, masks are packed; add --output-format parquet or "
                "tar"
            )
        if args.images_per_file is not None:
            raise AdcamError("--images-per-file goes with --output-format parquet or tar")
        return args.out
    from adcam.labeling.packed_folder import IMAGES_PER_FILE, PackedOutput

    size = IMAGES_PER_FILE if args.images_per_file is None else args.images_per_file
    return PackedOutput(str(args.out), args.output_format, size)


def _read_num_shown(args: argparse.Namespace) -> int:
    """Read ``--report-images``: packed results and shards have no report of their own."""
    if args.report_images is None:
        return 100 if args.output_format == "files" else 0
    if args.report_images < 0:
        raise AdcamError(f"--report-images must be at least 0, got {args.report_images}")
    if args.report_images and args.output_format != "files":
        raise AdcamError("--report-images goes with results in files, not --output-format")
    return int(args.report_images)


def _read_engine(args: argparse.Namespace) -> RayEngine | None:
    """Read ``--engine`` and its options.

    Where the network is to run on GPUs, ``--device`` is left to the cluster: this machine, which
    reads the classifier and hands out the work, need not have one.
    """
    if args.engine == "local":
        if args.address is not None or args.gpus_per_process is not None:
            raise AdcamError("--address and --gpus-per-process go with --engine ray")
        return None
    if args.device not in (None, "cpu", "cuda"):
        raise AdcamError(f"with --engine ray, --device is cpu or cuda, got {args.device!r}")
    from adcam.labeling.ray_engine import RayEngine

    share = args.gpus_per_process
    if share is None:
        share = 1.0 if args.device == "cuda" else 0.0
    if args.device == "cpu" and share:
        raise AdcamError("--gpus-per-process gives GPUs to the network: leave out --device cpu")
    workers, args.workers = args.workers, 0
    import torch

    args.device = "cuda" if share and torch.cuda.is_available() else "cpu"
    return RayEngine(args.address, workers, share)


def _read_config(args: argparse.Namespace) -> Settings | None:
    """Read ``--config`` and ``--cfg-options``; ``None`` where there is none."""
    if args.config is None:
        if args.cfg_options:
            raise AdcamError("--cfg-options changes a config: name one with --config")
        return None
    return load_settings(args)


def _read_options(args: argparse.Namespace, config: Settings | None) -> dict[str, Any]:
    """Read the options of a labeler: those of the config, and over them what concerns the mask."""
    from adcam.labeling.labeler_options import options_from_settings

    options: dict[str, Any] = {}
    if config is not None:
        options = options_from_settings(config.cam, config.mask)
        options["views"] = config.named_views  # None takes the classifier's
    for name in ("dtype", "compile"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    return options | read_mask_options(args, options.get("crf", "none"))
