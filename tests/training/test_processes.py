"""Two processes of gloo on this machine: validation gathers every image once, however many."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What mmengine's loop does: its sampler deals the images out, and pads; each process scores its
# part in batches; the metric gathers. Scores are those of the whole set in one process.
SCRIPT = """
    import sys

    import numpy as np
    import torch
    from mmengine.dataset import DefaultSampler
    from mmengine.dist import get_rank

    from adcam.data.sources import build_classes
    from adcam.training.classifier import MeanAveragePrecision, Top1Accuracy
    from adcam.training.segmenter import SegmentationScore

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    classes = build_classes(["cat", "dog"])
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.random((9, 2), dtype=np.float32))
    targets = torch.from_numpy(rng.integers(0, 2, (9, 2)).astype(np.float32))
    targets[3] = torch.nan  # an unreadable image
    single = torch.eye(2)[rng.integers(0, 2, 9)]
    masks = rng.integers(0, 3, (2, 9, 5, 4)).astype(np.uint8)
    kinds = {
        "map": (MeanAveragePrecision(classes), list(zip(scores, targets, strict=True))),
        "top1": (Top1Accuracy(), list(zip(scores, single, strict=True))),
        "miou": (SegmentationScore(classes), list(zip(*masks, strict=True))),
    }
    for name, (metric, samples) in kinds.items():
        for size in range(1, 10):
            mine = list(DefaultSampler(samples[:size], shuffle=False))
            for start in range(0, len(mine), 3):
                metric.process(None, [samples[i] for i in mine[start : start + 3]])
            found = metric.evaluate(size)
            metric.process(None, samples[:size])
            expected = metric.compute_metrics(metric.results)
            metric.results.clear()
            np.testing.assert_equal(found, expected, err_msg=f"{name} of {size} images")
    print("agreed", get_rank(), flush=True)
    torch.distributed.destroy_process_group()
"""


def test_validation_gathers_every_image_once(tmp_path: Path) -> None:
    script = tmp_path / "gather.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
            *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(script)),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("agreed") == 2
