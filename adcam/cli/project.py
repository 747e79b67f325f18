"""A project on the command line: set up from photographs, and what commands take from it."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from adcam.cli.console import log, print_table, say_next
from adcam.errors import AdcamError, naming

if TYPE_CHECKING:
    from adcam.project.config_text import Start
    from adcam.project.project import Project


_KEYS = {
    "labels": "data.labels",
    "classes": "data.classes",
    "val_share": "",
    "seed": "train.seed",
    "backbone": "model.backbone",
    "weights": "model.weights",
}
"""The options of photographs, and where a config says the same."""


def add_label_arguments(parser: argparse._ActionsContainer) -> None:
    """Add labels, classes, the share of validation, the seed and the network to start from."""
    parser.add_argument(
        "--labels",
        metavar="FILE|FOLDER|folders",
        help="which image shows what (default: looked for beside the photographs)",
    )
    parser.add_argument(
        "--classes",
        metavar="A,B,...",
        help="the classes in the order of their numbers, 1 to K (default: as the labels list them, "
        "or by the alphabet)",
    )
    parser.add_argument(
        "--val-share",
        type=float,
        metavar="P",
        help="the share of photographs that training is checked on (default: 0.2)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of the lists and of training (default: 0)"
    )
    parser.add_argument(
        "--backbone",
        metavar="NAME",
        help="the network to start from: a plain ViT of timm (default: deit_tiny_patch16_224), or "
        "shapes_vit, the small one of the demo, which needs no download",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="its weights (default: ADCAM_WEIGHTS, or timm downloads them)",
    )


def refuse_label_arguments(args: argparse.Namespace) -> None:
    """Refuse options of photographs where there is a config, which says the same."""
    for name, key in _KEYS.items():
        if getattr(args, name) is not None:
            says = (
                f"has {key}: --cfg-options {key}=…"
                if key
                else "names its lists, which adcam init draws"
            )
            raise AdcamError(
                f"--{name.replace('_', '-')} goes with a folder of photographs; a config {says}"
            )


def say_next_in(project: Project, command: str) -> None:
    """Say which command comes next in a project, and where to call it."""
    is_here = project.folder.resolve() == Path.cwd()
    say_next(command if is_here else f"cd {shlex.quote(str(project.folder))} && {command}")


def find_project(args: argparse.Namespace, purpose: str) -> Project:
    """The project in this folder.

    Raises:
        AdcamError: There is none; ``purpose`` names what the command line lacks, e.g. ``"IMAGES"``.
    """
    from adcam.project.project import CONFIG_NAME, open_project

    project = open_project(Path())
    if project is None:
        raise AdcamError(
            f"{purpose} is missing, and this folder is no project that says it (it has no "
            f"{CONFIG_NAME}). Name it, or set up a project: adcam init --images photos/; see adcam "
            f"{args.command} --help for the rest"
        )
    return project


def set_up(
    args: argparse.Namespace, images: Path, folder: Path, *, overwrite: bool = False
) -> Project:
    """Look at photographs and labels, say what they hold, and write a project into ``folder``.

    ``overwrite`` lets it replace the files of another project.
    """
    share = 0.2 if args.val_share is None else args.val_share
    if not 0 < share < 1:
        raise AdcamError(f"--val-share must lie between 0 and 1, got {share}")
    start = _read_start(args)
    from adcam.data.labels import read_any_labels
    from adcam.files import find_images
    from adcam.project.create import create_project, describe_table
    from adcam.project.find_labels import find_labels, find_photographs
    from adcam.project.project import LISTS, Project, refuse_existing
    from adcam.project.survey import look_at_images, put_together

    project = Project(folder)
    if not overwrite:
        refuse_existing(project)
    own = [project.work_dir, project.out, project.folder / LISTS]
    images = find_photographs(images)
    found = find_images(images, leave_out=own)
    labels = args.labels or find_labels(images, found.keys())
    classes = None if args.classes is None else [n.strip() for n in args.classes.split(",")]
    # Labels first: mistakes in them are reported before every photograph is decoded.
    table = read_any_labels(labels, found, classes)
    survey = put_together(look_at_images(images, found), table, labels)
    parts = create_project(project, survey, start=start, val_share=share, seed=args.seed or 0)
    read_as = f", read as {survey.understood}" if survey.understood else ""
    log(f"labels: {labels}{read_as}")
    header, rows = describe_table(survey, parts)
    print_table(header, rows, f"{images}: {len(survey.photographs.paths)} photographs")
    for sentence in survey.describe():
        log(f"note: {sentence}")
    log(
        f"{project.config}: the config; {LISTS}/: labels, {len(parts['train'])} "
        f"photographs to learn from, {len(parts['val'])} to check on"
    )
    return project


def _read_start(args: argparse.Namespace) -> Start:
    """The network to start from: `--backbone` and `--weights`."""
    import os

    from adcam.models.known_names import check_vit_name
    from adcam.project.config_text import Start

    weights = args.weights or os.environ.get("ADCAM_WEIGHTS") or "timm"
    if weights != "timm":
        if not Path(weights).is_file():
            raise AdcamError(f"--weights {weights}: there is no such file")
        weights = str(Path(weights).resolve())
    start = Start(args.backbone or Start().backbone, weights)
    with naming("--backbone"):
        check_vit_name(start.backbone)
    return start
