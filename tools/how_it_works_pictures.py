"""Draw the pictures of docs/how_it_works.md: AD-CAM on a photograph, step by step.

    python tools/how_it_works_pictures.py classifier.safetensors docs/images

The classifier is that of configs/voc_animals: it needs the class cat. The photograph is
scikit-image's (`skimage.data.chelsea`). The steps are computed by the functions that AD-CAM
itself calls.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from adcam import PseudoLabeler
from adcam.cams import ADCAM
from adcam.cams.activation import read_patch_attention
from adcam.cams.ad_cam import clip_at_quantile
from adcam.cams.normalize import min_max
from adcam.labeling.map_maker import MapMaker
from adcam.ops.artifact_patches import find_artifacts
from adcam.ops.common_neighbor import common_neighbor, neighbor_similarity
from adcam.ops.diffusion import diffuse
from adcam.report.figures import overlay_heat, overlay_mask
from adcam.settings import TestViews

HEIGHT, GAP, HEADER = 190, 6, 26
# Attention is shown up to this quantile: a few patches would outshine all others.
SHOWN = 0.97
# A patch on the cat's forehead, and one on the background: shares of height and width.
PATCHES = {"forehead": (0.28, 0.58), "background": (0.12, 0.06)}
ORANGE = tuple((230, 80, 40) for _ in range(256))


def main(checkpoint: str, folder: str) -> None:
    """Write three strips: the start, what common neighbours do, and the way to the mask."""
    img = skimage.data.chelsea()
    labeler = PseudoLabeler.from_checkpoint(checkpoint, crf="toco")
    method = ADCAM()
    maker = MapMaker(labeler.network, [method], views=TestViews((448,), flip=False), device="cpu")
    with torch.inference_mode():
        maps = maker.run([img]).token_maps[0]
        ids = torch.tensor([labeler.find_class_ids(["cat"])])
        cam, token = (
            method.select_cam(maps, ids),
            method.read_class_token(maps, ids, method.cls_layers),
        )
        start, grid = method.start_maps(maps, ids), maps.grid_hw
        attn = read_patch_attention(maps, method.layers)
        walks = [
            diffuse(start.flatten(2), common_neighbor(attn), num_steps=n).unflatten(2, grid)
            for n in (1, 2)
        ]
        refined = method(maps, ids)
    found = find_artifacts(attn, grid, ratio=method.artifact_ratio)
    print(f"{int(found.sum())} of {found.shape[1]} patches are artefacts")
    out = Path(folder)
    heats = {"class map": cam, "class token": token, "start": start}
    write(out / "how_start.jpg", img, {k: heat(img, v[0, 0]) for k, v in heats.items()})
    write(out / "how_neighbours.jpg", img, draw_neighbours(img, attn[0], grid), photograph=False)
    label = labeler(img, labels=["cat"])
    write(
        out / "how_diffusion.jpg",
        img,
        {
            "one step": heat(img, walks[0][0, 0]),
            "two steps": heat(img, walks[1][0, 0]),
            "share": heat(img, refined[0, 0]),
            "colours": overlay_heat(img, label.maps["cat"]),
            "mask": overlay_mask(img, label.mask, ORANGE),
        },
        photograph=False,
    )


def draw_neighbours(
    img: np.ndarray, attn: Tensor, grid_hw: tuple[int, int]
) -> dict[str, np.ndarray]:
    """For two patches: their attention, the share of it that is kept, and what remains."""
    similarity, refined = neighbor_similarity(attn), common_neighbor(attn)
    pictures = {}
    for name, (top, left) in PATCHES.items():
        row, column = int(top * grid_hw[0]), int(left * grid_hw[1])
        index = row * grid_hw[1] + column
        kinds = (("attention", attn), ("share kept", similarity**2), ("refined", refined))
        for kind, matrix in kinds:
            values = matrix[index].clone()
            values[index] = 0  # a patch is always most like itself, and would outshine the rest
            picture = heat(img, values.reshape(grid_hw))
            pictures[f"{kind} ({name})"] = mark(picture, row, column, grid_hw)
    return pictures


def heat(img: np.ndarray, grid: Tensor) -> np.ndarray:
    """A map on the grid of patches, in colour over the photograph."""
    size = (img.shape[0], img.shape[1])
    cut = clip_at_quantile(grid.flatten(), quantile=SHOWN).reshape(1, 1, *grid.shape)
    scores = F.interpolate(min_max(cut), size=size, mode="bilinear")
    return overlay_heat(img, scores[0, 0].numpy())


def mark(picture: np.ndarray, row: int, column: int, grid_hw: tuple[int, int]) -> np.ndarray:
    """Draw a frame around a patch."""
    sheet = Image.fromarray(picture)
    high, wide = picture.shape[0] / grid_hw[0], picture.shape[1] / grid_hw[1]
    box = (column * wide - 2, row * high - 2, (column + 1) * wide + 2, (row + 1) * high + 2)
    ImageDraw.Draw(sheet).rectangle(box, outline=(90, 255, 240), width=3)
    return np.asarray(sheet)


def write(
    path: Path, img: np.ndarray, pictures: dict[str, np.ndarray], *, photograph: bool = True
) -> None:
    """Write pictures side by side with their names above; six in two rows."""
    shown = {"photograph": img, **pictures} if photograph else pictures
    columns = 3 if len(shown) == 6 else len(shown)
    width = round(HEIGHT * img.shape[1] / img.shape[0])
    rows = -(-len(shown) // columns)
    size = (columns * (width + GAP) - GAP, rows * (HEIGHT + HEADER + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 16)
    for number, (name, picture) in enumerate(shown.items()):
        left = number % columns * (width + GAP)
        top = number // columns * (HEIGHT + HEADER + GAP)
        ImageDraw.Draw(sheet).text((left + 4, top + 3), name, "black", font)
        sheet.paste(Image.fromarray(picture).resize((width, HEIGHT)), (left, top + HEADER))
    sheet.save(path, quality=85)


if __name__ == "__main__":
    main(*sys.argv[1:])
