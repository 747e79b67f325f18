"""The masks of a compared method as an output folder, as ``adcam generate`` would write it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from adcam.data.dataset import ImageDataset
from adcam.evaluation.loop import LoopOptions
from adcam.evaluation.mapping import Classifier, MaskChoice
from adcam.files import hash_values
from adcam.labeling.generate import describe_run
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.output_folder import MASK_DIR, OutputFolder, relative_path
from adcam.labeling.run import Run, RunOptions
from adcam.masks.background import BackgroundRule
from adcam.settings import MethodSpec


def build_labeler(
    classifier: Classifier, spec: MethodSpec, choice: MaskChoice, options: LoopOptions
) -> PseudoLabeler:
    """Build the labeler that makes the masks of a compared method.

    Args:
        classifier: The network.
        spec: The method.
        choice: The threshold that was chosen for it.
        options: Device and type.
    """
    return PseudoLabeler(
        classifier.network,
        classifier.class_set,
        device=options.device,
        method=spec.method,
        method_options=spec.options,
        views=spec.views,
        rule=BackgroundRule("constant", choice.threshold, choice.chosen_on),
        crf=spec.crf,
        dtype=str(options.dtype).removeprefix("torch."),
    )


class MaskFolder:
    """An output folder whose masks are written by an evaluation.

    What an earlier run left in the folder is removed first.

    Args:
        path: The folder.
        images: The images whose masks it gets.
        labeler: What makes these masks, for the configuration in the folder.

    Attributes:
        masks_dir: The folder in it that the masks belong into.
    """

    def __init__(self, path: str | Path, images: ImageDataset, labeler: PseudoLabeler) -> None:
        config = describe_run(Run("masks", images, labeler, RunOptions(batch_size=1)))
        self._images = images
        self._folder = OutputFolder(path, config, overwrite=True)
        self._hashes = {"config": hash_values(config), "weights": labeler.weights_hash}
        self.masks_dir = Path(path) / MASK_DIR

    def __enter__(self) -> MaskFolder:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let other processes work in the folder."""
        self._folder.close()

    def record(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the manifest.

        Args:
            entries: What the manifest says of each image, by image id.
        """
        root = os.path.realpath(self._folder.path)
        for record in self._images.records:
            image = relative_path(record.img_path, root)
            entry = entries[record.img_id]
            self._folder.append(
                {"id": record.img_id, "image": image, **entry, **self._hashes, "seconds": 0.0}
            )
        self._folder.finish(record.img_id for record in self._images.records)
