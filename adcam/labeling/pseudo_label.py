"""What becomes of one image: maps, mask and scores, also as a notebook shows them."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from adcam.data.png import write_mask
from adcam.labeling.mask_maker import resize_maps, resize_mask
from adcam.report.figures import overlay_mask, side_by_side
from adcam.structures import ClassMaps, ClassSet, PseudoMask


@dataclass(frozen=True, eq=False, repr=False)
class PseudoLabel:
    """The maps, the mask and the scores of one image.

    Attributes:
        img: The image as it was labelled, RGB uint8 (h, w, 3): at its own size, or smaller if it
            has more than ``max_pixels`` pixels.
        class_set: The classes of the labeler.
        class_maps: The maps of the present classes, (K, h, w).
        pseudo_mask: The mask at the image's own size (H, W), with the rule that made it.
        probabilities: The probability of every class, float32 (C,).
    """

    img: np.ndarray
    class_set: ClassSet
    class_maps: ClassMaps
    pseudo_mask: PseudoMask
    probabilities: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """uint8 (H, W) of mask values: 0 = background, 255 = uncertain."""
        return self.pseudo_mask.mask

    @cached_property
    def maps(self) -> dict[str, np.ndarray]:
        """The score map of each present class by name, float32 (H, W) in [0, 1]."""
        score_maps = resize_maps(self.class_maps.score_maps, self.mask.shape)
        return dict(zip(self._name_classes(), score_maps, strict=True))

    @property
    def scores(self) -> dict[str, float]:
        """The probability of every class by name, whether it was taken as present or not."""
        return dict(zip(self.class_set.classes, self.probabilities.tolist(), strict=True))

    def save(self, path: str | Path) -> None:
        """Write the mask as an 8-bit palette PNG, atomically.

        Raises:
            OSError: The file cannot be written.
        """
        write_mask(path, self.mask, self.class_set.palette)

    def show(self) -> Image.Image:
        """Return the image beside itself under the mask; a notebook displays the result."""
        mask = resize_mask(self.mask, (self.img.shape[0], self.img.shape[1]))
        overlay = overlay_mask(self.img, mask, self.class_set.palette)
        return Image.fromarray(side_by_side([self.img, overlay]))

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return f"PseudoLabel({height}×{width}, {self._describe()})"

    def _name_classes(self) -> list[str]:
        return [self.class_set.classes[i] for i in self.class_maps.class_ids]

    def _describe(self) -> str:
        return (
            ", ".join(f"{name} {self.scores[name]:.2f}" for name in self._name_classes())
            or "no class"
        )

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.show().save(buffer, format="PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self._repr_png_()).decode("ascii")
        shown, palette = html.escape(self._describe()), self.class_set.palette
        values = {name: self.class_set.value_of[name] for name in self._name_classes()}
        rows = "".join(
            f'<tr><td><span style="color:rgb{palette[value]}">■</span> {html.escape(name)}'
            f"</td><td>{self.scores[name]:.3f}</td><td>{(self.mask == value).mean():.1%}</td></tr>"
            for name, value in values.items()
        )
        return (
            f'<figure style="margin:0"><img alt="{shown}" style="max-width:100%" '
            f'src="data:image/png;base64,{picture}"><figcaption><table><thead><tr><th>class</th>'
            f"<th>score</th><th>of the mask</th></tr></thead><tbody>{rows}</tbody></table>"
            "</figcaption></figure>"
        )


class PseudoLabels(list[PseudoLabel]):
    """The labels of several images, in their order; a notebook displays them as a gallery."""

    def _repr_html_(self) -> str:
        cells = "".join(f'<div style="width:24em">{label._repr_html_()}</div>' for label in self)
        return f'<div style="display:flex;flex-wrap:wrap;gap:1em">{cells}</div>'
