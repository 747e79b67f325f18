"""Checkpoints of TS-CAM and MCTformer -> ``classifier.safetensors``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from timm.data import ImageNetInfo
from torch import Tensor

from adcam.data.coco import coco_class_set
from adcam.data.dataset import build_class_set
from adcam.data.text_tables import read_rows
from adcam.data.voc import voc_class_set
from adcam.errors import AdcamError
from adcam.models.checkpoints import load_state_dict
from adcam.models.classifier_file import save_classifier
from adcam.models.mctformer import convert_state
from adcam.models.networks import build_network
from adcam.models.weights import fit_weights, load_ts_cam_weights
from adcam.structures import ClassSet

BACKBONES = {
    192: "deit_tiny_patch16_224",
    384: "deit_small_patch16_224",
    768: "deit_base_patch16_224",
}
"""The backbones that both projects train, by their width."""


class Imported(NamedTuple):
    """What was found in a checkpoint.

    Attributes:
        project: ``"TS-CAM"``, ``"MCTformer"`` or ``"MCTformer+"``.
        backbone: timm name of the network.
        img_size: Side in pixels that its position embedding is for.
        class_set: The classes.
    """

    project: str
    backbone: str
    img_size: int
    class_set: ClassSet


def import_checkpoint(
    checkpoint: str | Path, out: str | Path, class_set: ClassSet | None = None
) -> Imported:
    """Turn a checkpoint of another project's own code into a classifier file.

    What it is, its width, depth, size and number of classes are read off its tensors; no code of
    the file runs.

    Args:
        checkpoint: Of vasgaowei/TS-CAM (``model_best.pth``) or xulianuwa/MCTformer (V2, plus).
        out: The classifier to write. It says that its epoch was chosen on the test, "oracle": these
            projects keep the one that is best there.
        class_set: The classes in the order of the outputs; ``None`` knows those of 20 (VOC), 80
            (COCO) and 1,000 outputs (the WordNet ids of ImageNet).

    Raises:
        AdcamError: It is a checkpoint of neither, of another number of classes, or its backbone is
            none of :data:`BACKBONES`.
    """
    state = load_state_dict(checkpoint)
    head, token = state.get("head.weight"), state.get("cls_token")
    if head is None or head.ndim != 4 or token is None or token.ndim != 3:
        raise AdcamError(
            f"{checkpoint}: no checkpoint of TS-CAM, nor of MCTformer V2 or +: these have class "
            "tokens, cls_token (1, n, D), and a 3×3 convolution, head.weight (C, D, 3, 3)"
        )
    num_classes, width = int(head.shape[0]), int(head.shape[1])
    if token.shape[1] not in (1, num_classes) or width not in BACKBONES:
        raise AdcamError(
            f"{checkpoint}: {token.shape[1]} class tokens of width {width} for {num_classes} "
            f"classes; the width must be one of {sorted(BACKBONES)}, and tokens 1 or one a class"
        )
    classes = class_set or _find_classes(num_classes)
    if classes.num_fg_classes != num_classes:
        raise AdcamError(
            f"{checkpoint} has {num_classes} classes, but {classes.num_fg_classes} are named"
        )
    is_mctformer = token.shape[1] > 1 or "pos_embed_cls" in state
    options: dict[str, Any] = {
        "backbone": BACKBONES[width],
        "img_size": _find_size(state, int(token.shape[1])),
        "backbone_kwargs": {"depth": _count_blocks(state)},
    }
    if is_mctformer:
        moved, is_plus = convert_state(state)
        options |= {"kind": "mctformer", "decay": 0.996 if is_plus else 1.0}
        network = build_network(num_fg_classes=num_classes, **options)
        fit_weights(network, moved, checkpoint)
    else:
        network = build_network(num_fg_classes=num_classes, **options)
        load_ts_cam_weights(network, checkpoint)
    info = {"imported_from": Path(checkpoint).name, "chosen_on": "oracle"}
    save_classifier(out, network, options, classes, info)
    project = "TS-CAM" if not is_mctformer else "MCTformer+" if is_plus else "MCTformer"
    return Imported(project, options["backbone"], options["img_size"], classes)


def read_class_names(path: str | Path) -> ClassSet:
    """Read the classes of a file, one name a line, or number and name as CUB's ``classes.txt``.

    Raises:
        AdcamError: The file is missing, empty, or gives a name twice.
    """
    rows = [row.cells[0] for row in read_rows(Path(path), ("name",), None)]
    parts = [name.split(maxsplit=1) for name in rows]
    if all(len(part) == 2 and part[0] == str(i) for i, part in enumerate(parts, start=1)):
        rows = [part[1] for part in parts]
    return build_class_set(Path(path).resolve().parent.name, rows, masks=len(rows) < 255)


def _find_classes(number: int) -> ClassSet:
    if number == 20:
        return voc_class_set()
    if number == 80:
        return coco_class_set()
    if number == 1000:
        return build_class_set("ilsvrc", ImageNetInfo().label_names(), masks=False)
    raise AdcamError(
        f"name the {number} classes in the order of the outputs: --classes A,B,… or a file with "
        "one a line, such as classes.txt of CUB-200-2011"
    )


def _find_size(state: dict[str, Tensor], num_tokens: int) -> int:
    """Side in pixels of the images that the position embedding is for."""
    if "pos_embed_pat" in state:
        patches = int(state["pos_embed_pat"].shape[1])
    else:
        patches = int(state["pos_embed"].shape[1]) - num_tokens
    side = math.isqrt(patches)
    if side**2 != patches or "patch_embed.proj.weight" not in state:
        raise AdcamError(f"its position embedding is of {patches} patches, which are no square")
    return side * int(state["patch_embed.proj.weight"].shape[-1])


def _count_blocks(state: dict[str, Tensor]) -> int:
    numbers = [int(name.split(".")[1]) for name in state if name.startswith("blocks.")]
    return max(numbers, default=-1) + 1
