"""The masks of a compared method as an output folder, as ``adcam generate`` would write it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adcam.data.dataset import ImageDataset
from adcam.evaluation.loop import LoopOptions
from adcam.evaluation.mapping import Classifier, MaskChoice
from adcam.evaluation.masks import MaskWriter
from adcam.files import hash_values
from adcam.labeling.generate import describe_run
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.output_folder import OutputFolder, describe_image
from adcam.labeling.run import Run, RunOptions
from adcam.masks.background import BackgroundRule
from adcam.settings import MethodSpec


def mask_options(spec: MethodSpec, rule: BackgroundRule) -> dict[str, Any]:
    """Return what makes the masks of a compared method, as keyword arguments of a labeler.

    Args:
        spec: The method.
        rule: Where background ends.
    """
    return {
        "method": spec.method,
        "method_options": dict(spec.options),
        "views": spec.views,
        "rule": rule,
        "crf": spec.crf,
    }


def build_labeler(
    classifier: Classifier, spec: MethodSpec, choice: MaskChoice, options: LoopOptions
) -> PseudoLabeler:
    """Build the labeler that makes the masks of a compared method.

    Args:
        classifier: The network.
        spec: The method.
        choice: The background rule that was chosen for it.
        options: Device and type.
    """
    return PseudoLabeler(
        classifier.network,
        classifier.class_set,
        device=options.device,
        dtype=str(options.dtype).removeprefix("torch."),
        **mask_options(spec, choice.rule),
    )


@contextmanager
def open_mask_folder(
    path: str | Path, images: ImageDataset, labeler: PseudoLabeler, choice: MaskChoice
) -> Iterator[MaskWriter]:
    """Hold an output folder while an evaluation writes its masks, and write its manifest after it.

    What an earlier run left in the folder is removed first.

    Args:
        path: The folder.
        images: The images whose masks it gets.
        labeler: What makes these masks, for the configuration in the folder.
        choice: The masks to write.
    """
    config = describe_run(Run("masks", images, labeler, RunOptions()))
    hashes = {"config": hash_values(config), "weights": labeler.weights_hash}
    root = os.path.realpath(path)
    with OutputFolder(path, config, overwrite=True) as folder:
        writer = MaskWriter(choice, images.class_set, folder.path)
        yield writer
        entries = writer.compute()
        for record in images.records:
            head = {"id": record.img_id, "image": describe_image(record, root)}
            folder.append({**head, **entries[record.img_id], **hashes, "seconds": 0.0})
        folder.finish(record.img_id for record in images.records)
