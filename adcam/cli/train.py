"""``adcam train``: a classifier from image-level labels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adcam.cli.arguments import (
    add_command,
    add_config_arguments,
    add_launcher,
    load_settings,
    work_dir_of,
)
from adcam.cli.console import EXIT_OK, say_next, show
from adcam.cli.project import (
    add_label_arguments,
    find_project,
    refuse_label_arguments,
    say_next_in,
    set_up,
)
from adcam.errors import AdcamError


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "train",
        run,
        "train a classifier on image-level labels",
        """\
        Train a classifier on image-level labels. The best one on data.val becomes
        WORK_DIR/classifier.safetensors, which `adcam generate` takes.

        In a folder that `adcam init` set up, CONFIG is its adcam.toml. Where CONFIG is a folder of
        photographs, a project is set up first, in WORK_DIR (default: NAME_OF_THE_FOLDER-adcam).""",
        """\
        adcam train
        adcam train photos/ --labels labels.csv
        adcam train voc_animals/adcam_deit-tiny --work-dir work
        adcam train my_config.py --work-dir work --cfg-options train.epochs=3 data.root=photos
        adcam train my_config.py --work-dir work --resume
        torchrun --nproc-per-node 4 -m adcam train my_config.py --launcher pytorch
        """,
    )
    add_config_arguments(
        parser,
        nargs="?",
        also="; a folder that adcam init set up (default: this one); or a folder of photographs",
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    add_launcher(parser)
    add_label_arguments(parser.add_argument_group("a folder of photographs"))
    parser.set_defaults(complete=complete, project=None, photographs=None)


def complete(args: argparse.Namespace) -> None:
    """Find out what CONFIG stands for: a project, photographs, or a config."""
    from adcam.project.project import open_project

    folder = args.config
    if folder is None:
        args.project = find_project(args, "CONFIG")
    elif folder.is_dir():
        args.project = open_project(folder)
        if args.project is None:
            args.photographs, args.config = folder, None
            if args.resume:
                raise AdcamError(f"--resume goes with the project that {folder} was made into")
            return
    elif folder.name == "adcam.toml":
        args.project = open_project(folder.parent)
    elif not folder.suffix and (args.labels or args.classes) and not folder.exists():
        raise AdcamError(f"{folder}: there is no such folder of photographs")
    refuse_label_arguments(args)
    if args.project is not None:
        args.config = args.project.config
        args.work_dir = args.work_dir or args.project.work_dir


def run(args: argparse.Namespace) -> int:
    if args.photographs is not None:
        folder = args.work_dir or Path(f"{args.photographs.resolve().name}-adcam")
        if (folder / "adcam.toml").exists():
            raise AdcamError(
                f"{folder} is a project already; train it with: adcam train {folder}; or set it up "
                f"anew: adcam init {folder} --images {args.photographs} --overwrite"
            )
        args.project = set_up(args, args.photographs, folder)
        args.config, args.work_dir = args.project.config, args.project.work_dir
    settings = load_settings(args)
    work_dir = work_dir_of(args)
    from adcam.settings import NonlocalCamSettings
    from adcam.training.classifier import train_classifier

    path = train_classifier(settings, work_dir, resume=args.resume, launcher=args.launcher)
    show(f"classifier: {path}{_describe(path)}")
    if settings.task == "localization":
        is_cnn = isinstance(settings.model, NonlocalCamSettings)  # it has no attention for AD-CAM
        method = " --method cam" if is_cnn else ""
        say_next(f"adcam boxes IMAGES --checkpoint {path}{method} --threshold T --out boxes.csv")
    elif args.project is not None:
        say_next_in(args.project, "adcam generate")
    else:
        say_next(f"adcam generate IMAGES --checkpoint {path} --out masks")
    return EXIT_OK


def _describe(path: Path) -> str:
    """Which epoch a classifier is of, and what it scored."""
    import json

    from adcam.models.file_header import read_description

    if not path.is_file():  # of several processes, one writes it
        return ""
    info = json.loads(read_description(path))["info"]
    name = "val_map" if "val_map" in info else "val_top1"
    measure = {"val_map": "mAP", "val_top1": "Top-1 accuracy"}[name]
    return f" (epoch {info['epoch']}, {measure} {info[name]:.1f} on {info['val_split']})"
