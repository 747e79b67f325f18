"""What crosses the border between two stages, and nothing else.

Every class is a frozen dataclass; its docstring gives shapes, dtypes and ranges. Stages import this
module and :mod:`adcam.ops`, never one another (``tests/test_import_layers.py`` holds this).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from adcam.errors import AdcamError

if TYPE_CHECKING:
    import numpy as np
    import torch

IGNORE_INDEX = 255
"""Mask value of pixels that take no part in training or scoring (VOC's void)."""


def check_class_name(name: str, where: str = "classes") -> None:
    """Refuse names that no file can hold or no terminal show, and that of what is no class.

    Raises:
        AdcamError: The name holds a control character or half a symbol, or is "background"; the
            message begins with ``where``.
    """
    if name.casefold() == "background":
        raise AdcamError(
            f"{where}: {name!r} is what every mask holds as 0, and no class: leave it out. An "
            "image of it alone has no labels (an empty cell in a table); of a network, name the "
            "other outputs by their numbers, as in {'cat': 1, 'dog': 2}"
        )
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in name):
        raise AdcamError(f"{where}: the class name {name!r} holds a control character")


def check_class_order(classes: object) -> None:
    """Refuse names without an order that holds: a set has another one in every process.

    Raises:
        AdcamError: ``classes`` is one text or a set, where the order decides which output and
            which mask value each class has.
    """
    if isinstance(classes, str | set | frozenset):
        raise AdcamError(f"classes must be a list of names, in their order, got {classes!r}")


@dataclass(frozen=True)
class ClassSet:
    """The foreground classes of a data set and how masks and pictures show them.

    Attributes:
        name: Data set name, e.g. ``"voc12"``.
        classes: Foreground class names in classifier order; background is not among them.
        mask_values: Value of each class in a mask, same order, each in 1..254. Background is 0.
            For VOC this is 1..20; for a subset that keeps VOC's values it is not contiguous. Empty
            for classes that no mask can show, such as the 1,000 of ImageNet.
        palette: RGB colour of each *mask value*, 256 entries, so index 255 is the ignore colour.
    """

    name: str
    classes: tuple[str, ...]
    mask_values: tuple[int, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if self.mask_values and len(self.classes) != len(self.mask_values):
            raise AdcamError(f"{len(self.classes)} classes but {len(self.mask_values)} mask values")
        if len(set(self.classes)) != len(self.classes):
            raise AdcamError(f"a class name is given twice: {list(self.classes)}")
        for name in self.classes:
            check_class_name(name)
        if len(set(self.mask_values)) != len(self.mask_values):
            raise AdcamError(f"a mask value is given twice: {list(self.mask_values)}")
        if any(not 1 <= v <= 254 for v in self.mask_values):
            raise AdcamError(f"mask values must lie in 1..254, got {list(self.mask_values)}")
        if len(self.palette) != 256:
            raise AdcamError(f"the palette must have 256 colours, got {len(self.palette)}")

    @property
    def num_classes(self) -> int:
        """Number of values a mask may take below 255: highest mask value + 1."""
        return max(self.mask_values, default=0) + 1

    @property
    def num_fg_classes(self) -> int:
        """Number of foreground classes, the width of the classifier's output."""
        return len(self.classes)

    @property
    def value_of(self) -> dict[str, int]:
        """Mask value of each class by its name; empty where no mask can show the classes."""
        return dict(zip(self.classes, self.mask_values, strict=False))

    def name_of_value(self, value: int) -> str:
        """Class name of a mask value; ``"background"`` for 0, ``"value_7"`` if it has none."""
        if value == 0:
            return "background"
        if value in self.mask_values:
            return self.classes[self.mask_values.index(value)]
        return f"value_{value}"


@dataclass(frozen=True)
class Sample:
    """One image with what is known about it.

    Attributes:
        img_id: Unique within its data set; a relative path without suffix (``"holidays/dog 1"``).
        img: RGB, uint8, (H, W, 3), upright, or of published sets with boxes as the file stores it.
        class_ids: Present foreground classes (0-based, ascending), ``()`` for "none of them",
            ``None`` for "not known".
        mask: uint8 (H, W) of mask values, 255 = ignore; ``None`` where there is none.
        img_path: The file the image came from.
        boxes: int64 (n, 4) ``x0, y0, x1, y1`` in pixels of an image of ``boxes_hw``, n >= 1;
            ``None`` where there are none.
        boxes_hw: Height and width of the image that the boxes were drawn on, of which this one may
            be a smaller copy; ``None`` says that they are those of this image.
    """

    img_id: str
    img: np.ndarray
    class_ids: tuple[int, ...] | None = None
    mask: np.ndarray | None = None
    img_path: Path | None = None
    boxes: np.ndarray | None = None
    boxes_hw: tuple[int, int] | None = None

    @property
    def ori_hw(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return int(self.img.shape[0]), int(self.img.shape[1])


@dataclass(frozen=True)
class TokenMaps:
    """What a classifier says about a batch of images of one size, on its token grid.

    ``N = h * w`` patch tokens in row-major order; C foreground classes; L blocks. A convolutional
    network has logits and class maps, and at most one attention for the whole image.

    Attributes:
        logits: (B, C) float, before the sigmoid.
        cam: (B, C, h, w) float, raw class maps: neither ReLU nor scaling applied.
        grid_hw: ``(h, w)``.
        depth: Number of blocks L.
        attn_cls2patch: (B, L, N), row of the class token in each block's attention, mean over
            heads, prefix columns dropped (so a row sums to less than 1). ``None`` for models
            without a class token. A convolutional network that reads attention has that of its last
            depth here, its largest value 1, and L is 1.
        attn_patch2patch: From a tuple of block indices to (B, N, N): mean over heads and over
            those blocks of the patch-to-patch attention, prefix rows and columns dropped. Always
            empty for convolutional networks.
        model: What errors call the network.
        attn_classes2patch: (B, L, C, N), the same rows for each class, of a network that has a
            class token for each (:mod:`adcam.models.mctformer`); ``None`` for others.
        pixel_logits: (B, C + 1, h, w) float, background first: what a refined classifier says of
            each patch (:mod:`adcam.models.refined_cam`). ``None`` for other networks.
    """

    logits: torch.Tensor
    cam: torch.Tensor
    grid_hw: tuple[int, int]
    depth: int
    attn_cls2patch: torch.Tensor | None = None
    attn_patch2patch: Mapping[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    model: str = "this model"
    pixel_logits: torch.Tensor | None = None
    attn_classes2patch: torch.Tensor | None = None


@dataclass(frozen=True)
class ClassMaps:
    """Score maps of the classes of one image.

    Attributes:
        class_ids: The K classes kept, 0-based foreground ids, ascending.
        score_maps: (K, H, W) float32 in [0, 1].
    """

    class_ids: tuple[int, ...]
    score_maps: np.ndarray


@dataclass(frozen=True)
class PseudoMask:
    """A mask made from class maps.

    Attributes:
        mask: uint8 (H, W) of mask values, 0 = background, 255 = uncertain.
        rule: How background was decided, e.g. ``"constant"`` or ``"otsu"``.
        threshold: The value used (for ``otsu`` the one found on this image).
        chosen_on: The split the threshold was chosen on; ``"given"`` when the user gave it.
    """

    mask: np.ndarray
    rule: str
    threshold: float
    chosen_on: str


@dataclass(frozen=True)
class Boxes:
    """Boxes made from class maps.

    Attributes:
        class_ids: Class of each box, 0-based foreground ids, ascending; one may occur repeatedly.
        boxes: int64 (n, 4), ``x0, y0, x1, y1`` in pixels of the maps, as the rule has them.
        rule: How maps became boxes: ``"wsol"`` or ``"ts_cam"``.
        threshold: Share of a map's maximum above which pixels belong to the object.
        chosen_on: The split the threshold was chosen on; ``"given"`` when the user gave it.
    """

    class_ids: tuple[int, ...]
    boxes: np.ndarray
    rule: str
    threshold: float
    chosen_on: str
