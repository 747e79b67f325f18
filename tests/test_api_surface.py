"""The public names and their parameters, against the inventory in tests/api_surface.txt.

After a wanted change, ``make api`` rewrites the inventory; its difference shows in the commit.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
INVENTORY = Path(__file__).with_name("api_surface.txt")

# What these modules define (or list in `__all__`) is public: what a user imports, as README.md and
# docs/ show it.
MODULES = (
    "adcam",
    "adcam.structures",
    "adcam.ops.common_neighbor",
    "adcam.ops.dense_crf",
    "adcam.ops.diffusion",
    "adcam.ops.level_boxes",
    "adcam.ops.token_attention",
    "adcam.cams",
    "adcam.masks.background",
    "adcam.masks.confident",
    "adcam.masks.crf",
    "adcam.boxes",
    "adcam.boxes.ts_cam",
    "adcam.boxes.wsol",
    "adcam.metrics.classification",
    "adcam.metrics.influence",
    "adcam.metrics.localization",
    "adcam.metrics.miou",
)

# Names that others may rely on from the first release: these signatures do not change with a
# new inventory.
FIXED = (
    "adcam.ops.common_neighbor.common_neighbor"
    "(attn, *, similarity='resource_allocation', power=2.0, backend='auto')",
    "adcam.ops.diffusion.diffuse"
    "(maps, affinity, *, normalize='sinkhorn', num_steps=2, alpha=None, backend='auto')",
    "adcam.ops.dense_crf.dense_crf"
    "(prob, img, *, gaussian=(3, 3), bilateral=(50, 5, 10), num_iters=10, backend='auto')",
    "adcam.metrics.localization.MaxBoxAccuracy"
    "(iou_thresholds=(0.3, 0.5, 0.7), multi_contour=True, step=0.001)",
    "adcam.metrics.localization.PixelAveragePrecision(step=0.001)",
)


def format_parameters(function: object) -> str:
    """Write a signature with names, kinds and defaults; annotations are mypy's business."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def describe(name: str, value: object) -> Iterator[str]:
    """Yield the inventory's lines for one public object."""
    if inspect.isclass(value) and issubclass(value, BaseException):
        yield name
    elif inspect.isclass(value):
        yield f"{name}{format_parameters(value)}"
        for member, raw in vars(value).items():
            if isinstance(raw, property | cached_property):
                yield f"{name}.{member}"
            elif member == "__call__" or not member.startswith("_"):
                attribute = getattr(value, member, None)
                if inspect.isroutine(attribute):
                    yield f"{name}.{member}{format_parameters(attribute)}"
    elif inspect.isroutine(value):
        yield f"{name}{format_parameters(value)}"
    else:
        yield name


def public_names(module: ModuleType) -> list[str]:
    """Return `__all__`; without one, the classes and functions that the module itself defines.

    Checks of arguments that several rooms share are not for users.
    """
    if hasattr(module, "__all__"):
        names = list(module.__all__)
    else:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    return [name for name in names if not name.startswith("check_")]


def current_surface() -> list[str]:
    """Return one line for every public function, class, method, property and constant."""
    lines = []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in public_names(module):
            lines.extend(describe(f"{module_name}.{name}", getattr(module, name)))
    return sorted(lines)


def test_surface_is_the_inventory() -> None:
    """Fails on a name or parameter that came, went or changed: run ``make api`` if it was meant."""
    assert current_surface() == INVENTORY.read_text(encoding="utf-8").splitlines()


def test_what_the_pages_import_is_public() -> None:
    names = {line.partition("(")[0] for line in INVENTORY.read_text("utf-8").splitlines()}
    shown = {
        f"{module}.{name.strip()}"
        for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("adcam/**/*.md")]
        for module, imported in re.findall(
            r"(?m)^\s*(?:>>> )?from (adcam[\w.]*) import ([\w, ]+)$", page.read_text("utf-8")
        )
        for name in imported.split(",")
    }
    assert "adcam.PseudoLabeler" in shown
    assert shown - names - set(MODULES) == set()


@pytest.mark.parametrize("line", FIXED)
def test_fixed_signatures(line: str) -> None:
    name = line.partition("(")[0]
    module, _, function = name.rpartition(".")
    value = getattr(importlib.import_module(module), function)
    assert f"{name}{format_parameters(value)}" == line


def test_mean_iou_stays_callable_as_promised() -> None:
    from adcam.metrics.miou import MeanIoU

    parameters = inspect.signature(MeanIoU).parameters
    assert list(parameters)[:2] == ["num_classes", "ignore_index"]
    assert parameters["ignore_index"].default == 255
    assert list(inspect.signature(MeanIoU.update).parameters) == ["self", "pred", "gt"]
    assert list(inspect.signature(MeanIoU.merge).parameters) == ["self", "other"]
    assert list(inspect.signature(MeanIoU.compute).parameters) == ["self"]


def test_labeler_stays_callable_as_promised() -> None:
    from adcam import PseudoLabel, PseudoLabeler

    assert next(iter(inspect.signature(PseudoLabeler.from_checkpoint).parameters)) == "path"
    assert {"image", "labels"} <= set(inspect.signature(PseudoLabeler.__call__).parameters)
    assert list(inspect.signature(PseudoLabel.save).parameters)[:2] == ["self", "path"]
    assert callable(PseudoLabel.show)


if __name__ == "__main__":
    print("\n".join(current_surface()))
