"""``adcam refine``: a classifier learns from the pixels that its own maps are sure of."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adcam.cli.arguments import add_cfg_options, add_command, parse_pairs
from adcam.cli.console import log, say_next, show
from adcam.cli.labeler import (
    add_mask_arguments,
    add_run_arguments,
    read_mask_options,
    read_run_options,
    report_run,
)

if TYPE_CHECKING:
    from adcam.settings import Settings


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "refine",
        run,
        "learn from the sure pixels of maps, make better masks",
        """\
        Train a small head on the patch tokens of a classifier, with the pixels that its class
        maps are sure of, and label the same images with it. MAPS is a folder of
        `adcam generate --save-maps`; the classifier itself does not change.
        OUT/train/refined.safetensors is the refined classifier, which `adcam generate` takes
        with --method refined, for other images too. OUT/masks and the rest are as `generate`
        writes them.
        Interrupted? The same command resumes where it stopped.""",
        """\
        adcam generate photos/ --checkpoint classifier.safetensors --out out --save-maps
        adcam refine out --checkpoint classifier.safetensors --out refined
        adcam refine out --checkpoint classifier.safetensors --out refined --crf \\
            --cfg-options refine.epochs=10
        adcam generate more/ --checkpoint refined/train/refined.safetensors \\
            --method refined --out more_masks
        """,
    )
    parser.add_argument("maps", type=Path, metavar="MAPS", help="folder with images' maps")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="the classifier that made the maps"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    add_mask_arguments(parser.add_argument_group("mask"))
    work = parser.add_argument_group("run")
    work.add_argument(
        "--config", type=Path, help="a config whose sections `refine`, `cam` and `mask` are used"
    )
    add_cfg_options(work)
    add_run_arguments(work)
    work.add_argument("--save-maps", action="store_true", help="also write OUT/maps/<id>.npz")
    work.add_argument("--maps-dtype", choices=("uint8", "float16"), default="uint8")
    work.add_argument("--overwrite", action="store_true", help="start over")


def run(args: argparse.Namespace) -> int:
    from adcam.labeling.generate import generate
    from adcam.labeling.labeler import PseudoLabeler
    from adcam.labeling.labeler_options import refined_options
    from adcam.masks.background import default_rule
    from adcam.training.refiner import open_maps_folder, train_refiner

    settings = _load_settings(args)
    path = train_refiner(
        settings.refine,
        args.checkpoint,
        args.maps,
        args.out / "train",
        resume=not args.overwrite,
    )
    options = refined_options(settings)
    options |= read_mask_options(args, options["crf"])
    labeler = PseudoLabeler.from_checkpoint(path, device=args.device, **options)
    result = generate(
        open_maps_folder(args.maps, labeler.class_set),
        labeler,
        args.out,
        maps_dtype=args.maps_dtype if args.save_maps else None,
        overwrite=args.overwrite,
        **read_run_options(args, labeler),
    )
    log(f"{result.ok} masks written, {result.skipped} were there")
    code = report_run(args, result, "mask", args.out / "manifest.jsonl")
    show(args.out / "masks")
    rule = labeler.options.rule
    bg = "" if str(rule) == str(default_rule("refined")) else f" --bg {rule}"
    generate_more = f"adcam generate IMAGES --checkpoint {path} --method refined{bg} --out DIR"
    say_next(f"adcam report {args.out}; {generate_more}")
    return code


def _load_settings(args: argparse.Namespace) -> Settings:
    """Read the config, or the defaults of this project, and change what ``--cfg-options`` say.

    Where they name no views, those that the classifier names take their place.
    """
    from adcam.labeling.classifier_views import fill_views
    from adcam.settings import Settings, load_settings

    changes = parse_pairs("--cfg-options", args.cfg_options)
    settings: Settings = (
        Settings({}).with_changes(changes)
        if args.config is None
        else load_settings(args.config, changes)
    )
    return fill_views(settings, args.checkpoint)
