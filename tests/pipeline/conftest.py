"""A small generated set and a config that trains a tiny ViT on it in seconds."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from mmengine.config import Config

from adcam.data.shapes import make_shapes


@pytest.fixture(scope="session")
def mini_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training and 15 validation pictures of 48×64 pixels; read only."""
    root = tmp_path_factory.mktemp("shapes")
    make_shapes(root, num_train=40, num_val=15, size_hw=(48, 64), seed=0)
    return root


@pytest.fixture
def mini_cfg(mini_settings: Config) -> Config:
    """A copy of `mini_settings` to change."""
    return copy.deepcopy(mini_settings)


@pytest.fixture(scope="session")
def mini_settings(mini_shapes: Path) -> Config:
    """Two epochs of four steps on `mini_shapes`; read only."""
    return Config(
        {
            "data": {
                "source": "voc",
                "root": str(mini_shapes),
                "classes": "shapes",
                "labels": "labels.csv",
                "train": "train",
                "val": "val",
            },
            "model": {
                "backbone": "vit_tiny_patch16_224",
                "img_size": 32,
                "weights": None,
                "backbone_kwargs": {
                    "patch_size": 8,
                    "embed_dim": 24,
                    "depth": 2,
                    "num_heads": 3,
                },
            },
            "train": {
                "epochs": 2,
                "img_size": 32,
                "batch_size": 10,
                "num_workers": 0,
                "min_area": 0.5,
                "jitter": 0.1,
                "amp": "none",
                "cls_token_loss": 0.5,
                "seed": 3,
                "log_interval": 1,
            },
            "optim_wrapper": {
                "type": "OptimWrapper",
                "optimizer": {"type": "AdamW", "lr": 3e-3, "weight_decay": 0.05},
                "clip_grad": {"max_norm": 1.0},
            },
            "param_scheduler": [
                {"type": "CosineAnnealingLR", "begin": 0, "convert_to_iter_based": True}
            ],
        }
    )
