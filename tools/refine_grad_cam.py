"""Grad-CAM of a pretrained ViT before and after `adcam.refine`, scored on photographs.

    python tools/refine_grad_cam.py data/voc-animals deit_tiny_patch16_224.safetensors \\
        docs/results/refine_grad_cam_val.csv

Nothing is trained: pytorch-grad-cam explains DeiT-Tiny's own ImageNet head at 224 pixels. Of each
split, the first images are used whose true mask shows exactly one class that ImageNet knows. The
threshold of each row is the best on train and scored on val: intersection over union of that class
from counts over all images, in percent.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM

import adcam
from adcam.data.png import read_mask
from adcam.data.voc import VOC_CLASSES
from adcam.files import write_csv
from adcam.labeling.mask_maker import resize_maps
from adcam.models.any_vit import read_timm
from adcam.models.imagenet_classes import VOC_TO_IMAGENET
from adcam.models.preprocess import to_inputs

BACKBONE = "deit_tiny_patch16_224"
THRESHOLDS = np.linspace(0.02, 0.98, 49)
ROWS: Mapping[str, Mapping[str, Any] | None] = {
    "Grad-CAM": None,
    "adcam.refine, init=cam": {"init": "cam"},
    "adcam.refine, color_steps=0": {"color_steps": 0},
    "adcam.refine": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="VOC layout with train.txt and val.txt")
    parser.add_argument("weights", type=Path, help=f"of timm's {BACKBONE}, with its head")
    parser.add_argument("out", type=Path, help="the table to write")
    parser.add_argument("--num-images", type=int, default=80, help="of each split")
    args = parser.parse_args()
    vit: Any = read_timm(BACKBONE, args.weights).model.eval()
    counts = {
        split: count_split(vit, args.root, split, args.num_images) for split in ("train", "val")
    }
    rows = []
    for name in ROWS:
        ious = {split: np.divide(*of_rows[name]) for split, of_rows in counts.items()}
        best = int(ious["train"].argmax())
        scores = (ious["train"][best], ious["val"][best], ious["val"].max())
        rows.append((name, f"{THRESHOLDS[best]:.2f}", *(f"{100 * s:.1f}" for s in scores)))
        print(*rows[-1], sep=", ")
    write_csv(args.out, ("name", "threshold", "iou_train", "iou", "best_iou_oracle"), rows)


def count_split(vit: Any, root: Path, split: str, num_images: int) -> dict[str, np.ndarray]:
    """Count intersections and unions of every row at every threshold, int64 (2, thresholds)."""
    counts = {name: np.zeros((2, len(THRESHOLDS)), dtype=np.int64) for name in ROWS}
    for number, (img, gt, class_id) in enumerate(find_images(root, split)):
        if number == num_images:
            break
        for name, heat in make_maps(vit, img, VOC_TO_IMAGENET[VOC_CLASSES[class_id]]).items():
            known = gt != 255
            truth = gt == class_id + 1
            for place, threshold in enumerate(THRESHOLDS):
                found = (heat > threshold) & known
                counts[name][:, place] += (found & truth).sum(), (found | truth).sum()
    return counts


def find_images(root: Path, split: str) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield image, true mask and class id of the images that show one class ImageNet knows."""
    for img_id in (root / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split():
        gt = read_mask(root / "SegmentationClass" / f"{img_id}.png")
        values = sorted(set(np.unique(gt).tolist()) - {0, 255})
        if len(values) == 1 and VOC_CLASSES[values[0] - 1] in VOC_TO_IMAGENET:
            with Image.open(root / "JPEGImages" / f"{img_id}.jpg") as picture:
                yield np.array(picture.convert("RGB")), gt, values[0] - 1


def make_maps(vit: Any, img: np.ndarray, outputs: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Make the map (H, W) of every row, in [0, 1]."""

    def target(logits: torch.Tensor) -> torch.Tensor:
        return logits[list(outputs)].logsumexp(dim=0)

    layers = [vit.blocks[-1].norm1]
    with (
        GradCAM(vit, layers, reshape_transform=adcam.tokens_to_grid) as extractor,
        adcam.record_attention() as attention,
    ):
        cam = extractor(to_inputs(img, (224, 224))[None], [target])  # (1, 224, 224)
    return {
        name: resize_maps(cam, img.shape[:2])[0]
        if options is None
        else adcam.refine(cam, attention, image=img, **options)[0]
        for name, options in ROWS.items()
    }


if __name__ == "__main__":
    main()
