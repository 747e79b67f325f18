"""Compare the dense CRF with pydensecrf on photographs: agreement, and time in the same run.

    python tools/measure_crf.py VOC/JPEGImages --num-images 100

The probabilities are random and smooth, like the class maps of a vision transformer. They have 2, 3
and 4 labels alternately. pydensecrf uses one thread, ours as many as ``--threads`` says.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from adcam.masks.crf import CRF_PARAMS
from adcam.ops.dense_crf import DenseCRF, dense_crf

GRID = 28


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of .jpg files")
    parser.add_argument("--num-images", type=int, default=100, help="evenly spread over the folder")
    parser.add_argument("--params", choices=sorted(CRF_PARAMS), default="toco")
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = CRF_PARAMS[args.params]
    kernels: dict[str, Any] = {"gaussian": chosen.gaussian, "bilateral": chosen.bilateral}

    paths = sorted(args.folder.glob("*.jpg"))
    rows = []
    for number, path in enumerate(
        paths[:: max(len(paths) // args.num_images, 1)][: args.num_images]
    ):
        with Image.open(path) as picture:
            img = np.asarray(picture.convert("RGB"))
        num_labels = 2 + number % 3
        prob = make_prob(num_labels, img.shape[:2], seed=number)
        if number < 3:  # compiled code is loaded, or made, at the first call for these labels
            dense_crf(prob, img, **kernels, backend=args.backend)
        theirs, theirs_s, theirs_cpu = timed(dense_crf, prob, img, **kernels, backend="pydensecrf")
        crf, build_s, build_cpu = timed(DenseCRF, img, **kernels, backend=args.backend)
        ours, infer_s, infer_cpu = timed(crf.infer, prob)
        rows.append(
            (
                (ours.argmax(0) == theirs.argmax(0)).mean(),
                np.abs(ours - theirs).mean(),
                np.abs(ours - theirs).max(),
                *(theirs_s, build_s + infer_s, infer_s),
                *(theirs_cpu, build_cpu + infer_cpu, infer_cpu),
                theirs_s / (build_s + infer_s),
                theirs_s / infer_s,
                theirs_cpu / (build_cpu + infer_cpu),
                theirs_cpu / infer_cpu,
            )
        )
    table = np.array(rows)
    print(f"{len(table)} images, {args.params}, {args.backend}, {args.threads} threads")
    print(f"labels agree: mean {table[:, 0].mean():.6f}, worst image {table[:, 0].min():.6f}")
    print(
        f"|difference|: mean {table[:, 1].mean():.1e}, worst mean {table[:, 1].max():.1e}, "
        f"largest {table[:, 2].max():.1e}"
    )
    for title, first in (("wall", 3), ("processor", 6)):
        ms = 1e3 * np.median(table[:, first : first + 3], axis=0)
        print(
            f"median {title} ms: pydensecrf {ms[0]:.0f}, ours {ms[1]:.0f}, second pass {ms[2]:.0f}"
        )
    for title, first in (("wall", 9), ("processor", 11)):
        full, second = np.percentile(table[:, first : first + 2], [10, 50, 90], axis=0).T
        print(
            f"{title} time, pydensecrf / ours (10th, 50th, 90th percentile): "
            f"{format_ratios(full)}; second pass {format_ratios(second)}"
        )


def make_prob(num_labels: int, hw: tuple[int, ...], *, seed: int) -> np.ndarray:
    """Probabilities (C, H, W) that vary smoothly, float32."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, num_labels, GRID, GRID), generator=generator) ** 2
    fine = torch.nn.functional.interpolate(coarse, hw, mode="bilinear")[0]
    return (fine / fine.sum(dim=0)).numpy()


def timed(call: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, float, float]:
    """What a call returns, its seconds, and its seconds of processor time in all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    result = call(*args, **options)
    return result, time.perf_counter() - wall, time.process_time() - processor


def format_ratios(ratios: Sequence[float]) -> str:
    return " ".join(f"{ratio:.1f}" for ratio in ratios)


if __name__ == "__main__":
    main()
