"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from mmengine.config import Config

from adcam.data.shapes import make_shapes
from adcam.settings import Settings

if TYPE_CHECKING:
    import torch

# The same examples in every run, and a slow machine is no failure. To look for new examples:
# make test PYTEST_ARGS=--hypothesis-profile=default
settings.register_profile("adcam", derandomize=True, deadline=None)
settings.load_profile("adcam")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what reads the sources where they are not; keep together what shares something.

    Together stay tests that share a module's fixture, and those that use the GPU.
    ``make test`` runs with ``--dist loadgroup``: the tests of a group run in one process, all
    others wherever a process is free. Without groups, each process would build the fixture anew.
    """
    for item in items:
        if item.get_closest_marker("checkout") and not IS_CHECKOUT:
            item.add_marker(pytest.mark.skip("reads the sources, which are not beside the tests"))
        definitions = item._fixtureinfo.name2fixturedefs.values()
        if item.get_closest_marker("gpu"):
            check_fixtures(item)
            item.add_marker(pytest.mark.xdist_group("gpu"))
        elif any(found[-1].scope in ("module", "class") for found in definitions):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def check_fixtures(item: pytest.Item) -> None:
    """Refuse a test that would not find a fixture, where it is only collected, too.

    Tests that need a GPU rarely run, and a missing fixture is an error of that run alone.
    """
    given = item.callspec.params if hasattr(item, "callspec") else {}
    known = {"request", *item._fixtureinfo.name2fixturedefs, *given}
    if unknown := sorted({*item.fixturenames} - known):
        raise pytest.UsageError(f"{item.nodeid}: there is no fixture {unknown}")


ROOT = Path(__file__).resolve().parents[1]
# `make test-wheel` runs the tests away from the sources: `import adcam` is what pip installed.
IS_CHECKOUT = (ROOT / "adcam").is_dir() and (ROOT / ".ci").is_dir()
SHARED = Path(os.environ.get("ADCAM_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """A CUDA device that runs Triton; tests that take it are marked ``gpu``."""
    import torch

    from adcam.ops._backends import triton_not_supported_reasons

    if reasons := triton_not_supported_reasons():
        pytest.skip("; ".join(reasons))
    return torch.device("cuda")


@pytest.fixture
def full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions of a GPU in float32 in place of TF32, as its products of matrices are anyway.

    The switch of the products is not touched: ``torch.backends.cuda.matmul`` reads it by
    ``__getattr__``, and what is set there pytest 9.2 cannot undo.
    """
    import torch

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The development data beside the repository; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the development data folder `shared` is not beside this repository")
    return SHARED


@pytest.fixture(scope="session")
def voc_animals(shared_dir: Path) -> Path:
    """Root of the real photographs (VOC layout, six classes)."""
    return shared_dir / "data" / "voc-animals"


@pytest.fixture(scope="session")
def deit_tiny(shared_dir: Path) -> Path:
    """DeiT-Tiny ImageNet weights, float16 safetensors, timm names."""
    return shared_dir / "weights" / "deit_tiny_patch16_224.fp16.safetensors"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier of cat, dog and horse, 3 blocks of width 24, patches of 16 pixels."""
    import torch

    from adcam.data.sources import build_classes
    from adcam.models.classifier_file import save_classifier
    from adcam.models.token_cam import TokenCAM

    torch.manual_seed(0)
    options = {
        "backbone": "vit_tiny_patch16_224",
        "img_size": 32,
        "backbone_kwargs": {"embed_dim": 24, "depth": 3, "num_heads": 2},
    }
    class_set = build_classes(["cat", "dog", "horse"])
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    network = TokenCAM(num_fg_classes=class_set.num_fg_classes, **options)
    save_classifier(path, network, options, class_set, {})
    return path


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """The images, their height and their width in the first scale of every pass of a network."""
    from adcam.labeling.map_maker import MapMaker

    forward, seen = MapMaker.forward, []

    def record(self: MapMaker, *batches: torch.Tensor) -> Any:
        images, _, height, width = batches[0].shape
        seen.append((images, height, width))
        return forward(self, *batches)

    monkeypatch.setattr(MapMaker, "forward", record)
    return seen


@pytest.fixture(scope="session")
def mini_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training and 15 validation pictures of 48×64 pixels; read only."""
    root = tmp_path_factory.mktemp("shapes")
    make_shapes(root, num_train=40, num_val=15, size_hw=(48, 64), seed=0)
    return root


@pytest.fixture
def mini_cfg(mini_settings: Settings) -> Config:
    """The values of `mini_settings` to change."""
    return Config(mini_settings.to_dict())


@pytest.fixture(scope="session")
def mini_settings(mini_shapes: Path) -> Settings:
    """Two epochs of four steps on `mini_shapes`; read only."""
    return Settings(
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
