"""Measure `adcam generate` on this machine: one and two workers, shards, Ray, and their ratios.

    python tools/measure_scale.py --images 500 --rounds 3 --out docs/results/scale_cpu.csv

Tiny images go through an untrained ViT, so that what an engine costs weighs as much as it ever
will. The variants alternate, and rates count from the first moment at which every process of a
variant has delivered, so that starting them is left out; on a machine with other work only ratios
within a round mean something. The prediction is that of tools/simulate_scale.py for the variant
with two workers, from the seconds of the steps with one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from simulate_scale import plan_stages, simulate

from adcam.data.open_images import open_images
from adcam.data.sources import build_classes
from adcam.files import write_csv
from adcam.labeling import run as run_module
from adcam.labeling.generate import generate
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.output_folder import OutputFolder
from adcam.labeling.ray_engine import RayEngine
from adcam.models.classifier_file import save_classifier
from adcam.models.token_cam import TokenCAM
from adcam.settings import TestViews

WARM_UP = 0.3
"""Share of the images that are not counted: by then all processes have started."""

OPTIONS: dict[str, Any] = {"backbone": "vit_tiny_patch16_224", "img_size": 224}


def prepare(root: Path, images: int) -> None:
    """Write the photographs and an untrained classifier."""
    torch.manual_seed(0)
    classes = build_classes(["cat", "dog", "horse"])
    network = TokenCAM(num_fg_classes=classes.num_fg_classes, **OPTIONS)
    save_classifier(root / "classifier.safetensors", network, OPTIONS, classes, {})
    (root / "photos").mkdir()
    for seed in range(images):
        pixels = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        photo = Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC)
        photo.save(root / "photos" / f"{seed:05}.jpg")


def load_labeler(root: Path) -> PseudoLabeler:
    return PseudoLabeler.from_checkpoint(
        root / "classifier.safetensors", device="cpu", views=TestViews((128,)), label_threshold=0.4
    )


class Clock:
    """Notes when each image was delivered."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._append = OutputFolder.append

    def __enter__(self) -> Clock:
        def append(folder: OutputFolder, entry: Mapping[str, Any]) -> None:
            self._append(folder, entry)
            self.times.append(time.perf_counter())

        OutputFolder.append = append  # type: ignore[method-assign,assignment]
        return self

    def __exit__(self, *exc_info: object) -> None:
        OutputFolder.append = self._append  # type: ignore[method-assign]


def compute_rate(times: list[float]) -> float:
    """Images a second behind the warm-up."""
    first = int(WARM_UP * len(times))
    return (len(times) - 1 - first) / (times[-1] - times[first])


def measure(root: Path, name: str, **options: Any) -> tuple[float, dict[str, float]]:
    """Images a second of a variant in this process and its workers, and seconds of the steps."""
    out = root / name
    shutil.rmtree(out, ignore_errors=True)
    labeler = load_labeler(root)
    images = open_images(root / "photos", labeler.class_set, labels=None)
    with Clock() as clock:
        result = generate(images, labeler, out, labels="predicted", progress=False, **options)
    count = result.ok + len(result.failed)
    steps = {step: s / count for step, s in result.seconds.items() if step != "total"}
    return compute_rate(clock.times), steps


def measure_shards(root: Path) -> float:
    """Images a second of two shards with one worker each, the start left out."""
    out = root / "shards"
    shutil.rmtree(out, ignore_errors=True)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import measure_scale as m; "
    code += "m.shard(*sys.argv[2:])"
    words = [sys.executable, "-c", code, str(Path(__file__).parent), str(root)]
    processes = [
        subprocess.Popen([*words, str(index)], stdout=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    return compute_rate(sorted(t for p in processes for t in json.loads(p.communicate()[0])))


def shard(root: str, index: str) -> None:
    """Label one of two shards and print when each image was delivered, by the common clock."""
    from adcam.labeling.shards import Shard

    labeler = load_labeler(Path(root))
    images = open_images(Path(root, "photos"), labeler.class_set, labels=None)
    with Clock() as clock:
        generate(
            images,
            labeler,
            Path(root, "shards"),
            labels="predicted",
            workers=1,
            progress=False,
            shard=Shard(int(index), 2),
        )
    print(json.dumps(clock.times))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="a .csv file")
    args = parser.parse_args()
    run_module.INLINE_LIMIT = 0  # also a small set goes to the workers
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root, args.images)
        for number in range(1, args.rounds + 1):
            rates: dict[str, float] = {}
            rates["1 worker"], steps = measure(root, "one", workers=1)
            rates["2 workers"], _ = measure(root, "two", workers=2)
            rates["2 shards"] = measure_shards(root)
            rates["Ray, 2 processes"], _ = measure(root, "ray", engine=RayEngine(workers=2))
            stages = plan_stages(steps, 2, 0)
            rates["predicted for 2 workers"] = args.images / simulate(stages, args.images)
            for name, rate in rates.items():
                rows.append([number, name, f"{rate:.2f}", f"{rate / rates['2 workers']:.3f}"])
                print(*rows[-1], sep=", ", flush=True)
    names = list(dict.fromkeys(row[1] for row in rows))
    for name in names:
        ratios = [float(row[3]) for row in rows if row[1] == name]
        rows.append(["median", name, "", f"{statistics.median(ratios):.3f}"])
        print(*rows[-1], sep=", ", flush=True)
    write_csv(args.out, ("round", "variant", "images_per_second", "relative_to_2_workers"), rows)


if __name__ == "__main__":
    main()
