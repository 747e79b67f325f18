"""Draw docs/images/overview.jpg: scikit-image's own photographs through three methods.

    python tools/overview_picture.py work/classifier.safetensors docs/images/overview.jpg

The checkpoint is that of configs/voc_animals (it needs the classes cat and person).
"""

from __future__ import annotations

import sys

import matplotlib
import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from adcam import PseudoLabeler
from adcam.report.figures import overlay_heat, overlay_mask

HEIGHT, GAP, HEADER = 200, 6, 30
METHODS = (("CAM", "cam"), ("TS-CAM", "ts_cam"), ("AD-CAM", "ad_cam"))
BRIGHT = tuple((230, 80, 40) for _ in range(256))


def main(checkpoint: str, out: str) -> None:
    """Two rows: image, the three maps, the mask."""
    rows = [
        draw_row(checkpoint, skimage.data.chelsea(), "cat"),
        draw_row(checkpoint, skimage.data.astronaut(), "person"),
    ]
    width = max(row.width for row in rows)
    rows = [row.resize((width, round(row.height * width / row.width))) for row in rows]
    height = HEADER + sum(row.height + GAP for row in rows)
    sheet = Image.new("RGB", (width, height), "white")
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 17)
    names = ["image + label", *(name for name, _ in METHODS), "mask (AD-CAM + CRF)"]
    for column, name in enumerate(names):
        ImageDraw.Draw(sheet).text((column * width / len(names) + 8, 5), name, "black", font)
    top = HEADER
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    sheet.save(out, quality=88)


def draw_row(checkpoint: str, img: np.ndarray, label: str) -> Image.Image:
    """One image through all methods, side by side."""
    pictures = [img]
    for _, method in METHODS:
        crf = "toco" if method == "ad_cam" else "none"
        labeler = PseudoLabeler.from_checkpoint(checkpoint, method=method, rule="0.6", crf=crf)
        result = labeler(img, labels=[label])
        pictures.append(overlay_heat(img, result.maps[label]))
    pictures.append(overlay_mask(img, result.mask, BRIGHT))
    scaled = [
        Image.fromarray(p).resize((round(p.shape[1] * HEIGHT / p.shape[0]), HEIGHT))
        for p in pictures
    ]
    row = Image.new("RGB", (sum(p.width + GAP for p in scaled) - GAP, HEIGHT), "white")
    left = 0
    for picture in scaled:
        row.paste(picture, (left, 0))
        left += picture.width + GAP
    return row


if __name__ == "__main__":
    main(*sys.argv[1:])
