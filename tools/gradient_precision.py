"""Compare the gradients of a classifier's steps in float32 and bfloat16 with those in float64.

    python tools/gradient_precision.py configs/voc_animals/adcam_deit-tiny_10e_voc-animals.py T.csv

The network is the one that a training begins with; images, crops and dropped paths are those of
its first steps, and nothing is updated. For each group of parameters the table has
‖g − g₆₄‖ / ‖g₆₄‖ in percent, where g is the gradient of one step (the mean over the steps) or the
mean gradient of all steps: noise becomes smaller in it, and what is systematic stays. ``norm`` is
‖g₆₄‖ of one step.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from adcam.files import write_csv
from adcam.models.classifier import Classifier
from adcam.settings import Settings, load_settings
from adcam.training.classifier import _build_model, _build_train_view
from adcam.training.labelled_images import open_labelled_images
from adcam.training.repeatable import RepeatableDataset, RepeatableEpochs, seed_everything

VARIANTS = {
    "float64": "none",
    "float32": "none",
    "bfloat16": "bfloat16",
    "bfloat16, patches too": "bfloat16",
}
"""The names of the variants and their ``train.amp``; the first is what the others are held to."""


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    rows = make_rows(load_settings(args.config), steps=16)
    write_csv(args.out, ("variant", "parameters", "one_step", "mean_of_steps", "norm"), rows)


def make_rows(settings: Settings, steps: int) -> list[tuple[str, ...]]:
    """The rows of the table, one for each variant and group of parameters."""
    batches = list(load_batches(settings, steps))
    gradients = {
        name: [take_gradients(model, batch, step) for step, batch in enumerate(batches)]
        for name in VARIANTS
        for model in [build(settings, name)]
    }
    exact = gradients.pop("float64")
    return [
        (name, group, *(f"{value:.3g}" for value in compare(ours, exact, group)))
        for name, ours in gradients.items()
        for group in exact[0]
    ]


def load_batches(settings: Settings, steps: int) -> Iterator[dict[str, Tensor]]:
    """The first batches of a training."""
    seed = settings.train.seed
    view = _build_train_view(settings, open_labelled_images(settings))
    draws = iter(RepeatableEpochs(view, shuffle=True, seed=seed))
    dataset = RepeatableDataset(view, seed)
    for _ in range(steps):
        yield default_collate([dataset[draw] for draw in islice(draws, settings.train.batch_size)])


def build(settings: Settings, variant: str) -> Classifier:
    """The network as the training begins with it."""
    settings = settings.with_changes({"train.amp": VARIANTS[variant]})
    torch.manual_seed(settings.train.seed)
    model = _build_model(settings, open_labelled_images(settings).class_set).train()
    if variant == "float64":
        model.double()
    if variant == "bfloat16, patches too":
        embed = model.network.backbone.patch_embed
        embed._forward_pre_hooks.clear()
        embed._forward_hooks.clear()
    return model


def take_gradients(model: Classifier, batch: dict[str, Tensor], step: int) -> dict[str, np.ndarray]:
    """The gradient of each group of parameters, as one vector."""
    seed_everything(step)
    model.zero_grad()
    sum(model(**batch, mode="loss").values()).backward()
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            groups.setdefault(group_of(name), []).append(parameter.grad.double().flatten())
    return {group: torch.cat(parts).numpy() for group, parts in groups.items()}


def group_of(name: str) -> str:
    """What a parameter belongs to."""
    parts = name.removeprefix("network.backbone.").split(".")
    if parts[0] == "blocks":
        return f"block {int(parts[1])}"
    return {"pos_embed": "position embedding", "patch_embed": "patch embedding"}.get(
        parts[0], "class token, last norm and heads"
    )


def compare(
    steps: list[dict[str, np.ndarray]], exact: list[dict[str, np.ndarray]], group: str
) -> tuple[float, float, float]:
    """Deviation of one step and of the mean of all, in percent, and the norm of one step."""
    ours = np.stack([step[group] for step in steps])
    truth = np.stack([step[group] for step in exact])
    norms = np.linalg.norm(truth, axis=1)
    one = np.linalg.norm(ours - truth, axis=1) / norms
    mean = np.linalg.norm((ours - truth).mean(axis=0)) / np.linalg.norm(truth.mean(axis=0))
    return 100 * one.mean(), 100 * mean, norms.mean()


if __name__ == "__main__":
    main()
