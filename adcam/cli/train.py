"""``adcam train``: a classifier from image-level labels."""

from __future__ import annotations

import argparse
from typing import Any

from adcam.cli.arguments import (
    add_command,
    add_config_arguments,
    add_launcher,
    load_settings,
    work_dir_of,
)
from adcam.cli.console import EXIT_OK, show


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "train",
        run,
        "train a classifier on image-level labels",
        """\
        Train a classifier on image-level labels. The best one on data.val becomes
        WORK_DIR/classifier.safetensors, which `adcam generate` takes.""",
        """\
        adcam train configs/voc_animals/adcam_deit-tiny_10e_voc-animals.py
        adcam train my_config.py --work-dir work --cfg-options train.epochs=3 data.root=photos
        adcam train my_config.py --work-dir work --resume
        torchrun --nproc-per-node 4 -m adcam train my_config.py --launcher pytorch
        """,
    )
    add_config_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    add_launcher(parser)


def run(args: argparse.Namespace) -> int:
    from adcam.training.classifier import train_classifier

    path = train_classifier(
        load_settings(args), work_dir_of(args), resume=args.resume, launcher=args.launcher
    )
    show(f"classifier: {path}")
    return EXIT_OK
