"""The config of a project as text: short, commented, and enough to train from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adcam.method_options import DEFAULT_RULES

_TEMPLATE = """\
# A project of adcam, written by `adcam init`: {num_classes}, {num_train} photographs to learn from.
# Run in this folder, without options: adcam train, generate, report, convert.
# Every key with its meaning: adcam config show. Paths begin at the folder of this file.

[data]
source = "folder"
images = {images}
root = "lists"  # train.txt and val.txt, an image a line, and the labels of all
labels = "labels.csv"
train = ["train"]
val = "val"
# In this order the classes are 1, 2, … in masks; 0 is background. Keep it once there are masks.
classes = [
{classes}
]

[model]
backbone = {backbone}  # a plain ViT of timm; larger ones are better and slower
img_size = {img_size}
weights = {weights}  # "timm" fetches them once; or a file
drop_path_rate = {drop_path_rate}

[train]
epochs = {epochs}  # more for few photographs
img_size = {img_size}
batch_size = {batch_size}
num_workers = 2  # processes that read photographs
min_area = {min_area}  # the smallest part of a photograph that a crop may show
amp = "bfloat16"
cls_token_loss = 1.0
seed = {seed}

# What follows goes to mmengine: AdamW, a rate that rises for an epoch and falls like a cosine.
[optim_wrapper]
type = "OptimWrapper"
clip_grad = {{ max_norm = 1.0 }}

[optim_wrapper.optimizer]
type = "AdamW"
lr = 1e-4
weight_decay = 0.05

[optim_wrapper.paramwise_cfg.custom_keys]  # new heads learn faster than the rest
"network.head" = {{ lr_mult = {head_rate} }}
cls_head = {{ lr_mult = {head_rate} }}

[[param_scheduler]]
type = "LinearLR"
start_factor = 0.01
begin = 0
end = 1
convert_to_iter_based = true

[[param_scheduler]]
type = "CosineAnnealingLR"
begin = 1
convert_to_iter_based = true

[cam]
method = "ad_cam"
scales = [{scale}]  # several, such as [448, 560], find objects of more sizes, and take longer
{method_options}
[mask]
rule = {rule}  # where background ends; a larger number gives smaller objects
crf = "none"  # "toco" sharpens borders, and takes longer
"""


@dataclass(frozen=True)
class Start:
    """The network that a project's training starts from.

    Attributes:
        backbone: The name of a ViT in timm, or ``"shapes_vit"``, the small one of the demo.
        weights: The file that it starts with, or ``"timm"``.
    """

    backbone: str = "deit_tiny_patch16_224"
    weights: str = "timm"

    @property
    def setup(self) -> Setup:
        """What goes with the network."""
        if self.backbone == "shapes_vit":
            return _SHAPES
        size = re.search(r"_(\d{3})(?=\.|$)", self.backbone)
        return Setup(img_size=224 if size is None else int(size[1]))


@dataclass(frozen=True)
class Setup:
    """What a config says that depends on the network.

    Attributes:
        img_size: The side in pixels of the images that are learnt from.
        scale: The side in pixels of the images that maps are made of.
        drop_path_rate: The share of residual branches that training skips.
        min_area: The smallest share of a photograph that a crop shows.
        head_rate: How many times faster the heads learn.
        rule: Where background ends.
        method_options: Options of AD-CAM.
        weights: What ``"timm"`` stands for.
    """

    img_size: int = 224
    scale: int = 448
    drop_path_rate: float = 0.1
    min_area: float = 0.35
    head_rate: float = 10.0
    rule: str = DEFAULT_RULES["ad_cam"][0]
    method_options: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "timm"


# As configs/shapes/adcam_shapes-vit_demo.py has it; its comments say why.
_SHAPES = Setup(
    img_size=96,
    scale=96,
    drop_path_rate=0.0,
    min_area=0.6,
    head_rate=30.0,
    rule="constant:0.59",
    method_options={
        "init": "cam",
        "negatives": "relu",
        "num_steps": 4,
        "rival_weight": 0.0,
        "background_weight": 0.0,
        "clip_quantile": 0.985,
        "artifact_ratio": 0.0,
        "color_steps": 0,
    },
    weights="shapes_vit.safetensors",
)


def format_config(
    images: str, counts: Mapping[str, int], start: Start, *, num_train: int, seed: int
) -> str:
    """The config of a project as TOML.

    The folder ``images`` is absolute or relative to that of the config; ``counts`` has the number
    of photographs of each class, in the order of the classes' numbers.
    """
    setup = start.setup
    weights = setup.weights if start.weights == "timm" else start.weights
    classes = [
        f"  {_quote(name)},  # {number}: {count} photographs"
        for number, (name, count) in enumerate(counts.items(), start=1)
    ]
    options = [f"{key} = {_quote(value)}\n" for key, value in setup.method_options.items()]
    epochs, batch_size = choose_length(num_train)
    return _TEMPLATE.format(
        num_classes=f"{len(counts)} class{'es' if len(counts) > 1 else ''}",
        num_train=num_train,
        images=_quote(images),
        classes="\n".join(classes),
        backbone=_quote(start.backbone),
        weights=_quote(weights),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        method_options="".join(["\n[cam.method_options]\n", *options]) if options else "",
        **{
            name: _quote(getattr(setup, name))
            for name in ("img_size", "scale", "drop_path_rate", "min_area", "head_rate", "rule")
        },
    )


def choose_length(num_train: int) -> tuple[int, int]:
    """How many epochs to train, and how many photographs make a step.

    Ten epochs, as voc-animals has (configs/_base_/schedule/classifier_10e.py), and up to forty
    where there are fewer than 240 photographs, so that about 2,400 are seen; steps are smaller
    there, so that an epoch has several.

    Example:
        >>> choose_length(48), choose_length(3000)
        ((40, 8), (10, 32))
    """
    epochs = min(max(10, math.ceil(2400 / num_train)), 40)
    return epochs, min(32, max(8, 2 ** round(math.log2(max(num_train, 1) / 8))))


def _quote(value: Any) -> str:
    """A value as TOML has it: JSON, but for a character that JSON leaves as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
