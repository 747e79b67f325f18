"""What `adcam compare` reads and computes on a small set: everything once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from adcam.cli import main
from adcam.data import dataset, sources
from adcam.data.sources import build_dataset
from adcam.models.classifier_file import save_classifier
from adcam.models.token_cam import TokenCAM
from adcam.recipe import compare

SCALES = ([32], [32, 48])


@pytest.fixture
def config(mini_cfg: Config, tmp_path: Path) -> Path:
    """Four methods, one of them with a CRF, on two sets of views and a classifier that is there."""
    torch.manual_seed(0)
    class_set = build_dataset(mini_cfg.data, "val").class_set
    options = {
        "backbone": "vit_tiny_patch16_224",
        "img_size": 32,
        "backbone_kwargs": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    }
    network = TokenCAM(num_fg_classes=class_set.num_fg_classes, **options)
    checkpoint = tmp_path / "given.safetensors"
    info = {"val_map": 50.0, "val_split": "val", "epoch": 1}
    save_classifier(checkpoint, network, options, class_set, info)
    methods = ("cam", "ts_cam", "ad_cam")
    rows = [
        {"name": f"{method} at {scales}", "method": method, "views": {"scales": scales}}
        for method in methods
        for scales in SCALES
    ]
    crf = {"crf": "toco", "crf_thresholds": [0.4, 0.6]}
    rows.append({"name": "last", "method": "ad_cam", "views": {"scales": SCALES[1]}, **crf})
    mini_cfg.compare = {
        "choose_on": "train",
        "report_on": "val",
        "choose_stride": 8,
        "checkpoint": str(checkpoint),
        "rows": rows,
    }
    path = tmp_path / "compare.py"
    mini_cfg.dump(str(path))
    return path


def test_images_masks_and_networks_are_read_once(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[Any] = Counter()

    def count(owner: Any, name: str, key: Any = None) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            calls[args[0] if key is None else key] += 1
            return real(*args, **options)

        monkeypatch.setattr(owner, name, counted)

    count(dataset, "read_image")
    count(dataset, "read_mask")
    count(TokenCAM, "token_maps", "pass")
    assert main(["compare", str(config), "--work-dir", str(tmp_path / "work")]) == 0
    passes = calls.pop("pass")
    files = [path for path in calls if isinstance(path, Path)]
    images = [path for path in files if path.parent.name == "JPEGImages"]
    # 5 of the 40 images to choose on, and 15 to report on; each image and mask is read once, also
    # for the masks that are written and the pictures of the report.
    assert len(images) == 5 + 15
    assert len(files) == 2 * len(images)
    # Which few images the explorer shows the attention of is known when all are scored: these are
    # read and seen by the network once more.
    again = [path for path in files if calls[path] == 2]
    assert {calls[path] for path in files} == {1, 2}
    assert len(again) <= 9 and set(again) <= set(images)
    # The network sees each image once for each set of views: one scale, and two scales.
    assert passes == len(images) * sum(map(len, SCALES)) + len(again)
    assert len(list((tmp_path / "work").rglob("masks/*.png"))) == 15


def test_the_network_and_the_lists_are_read_once_to_compare(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage before looks at what the classifier's file says; the comparison loads it once."""
    calls: Counter[Any] = Counter()

    def count(owner: Any, name: str, key: Any) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            calls[key(*args)] += 1
            return real(*args, **options)

        monkeypatch.setattr(owner, name, counted)

    count(compare, "load_classifier", lambda path: Path(path).name)
    count(sources, "load_voc", lambda root, split, *rest: split)
    command = ["compare", str(config), "--work-dir", str(tmp_path / "work"), "--table-only"]
    assert main(command) == 0
    assert calls == {"given.safetensors": 1, "train": 1, "val": 1}
