"""Pseudo masks for many images: resumable, and never stopped by one bad image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adcam.data.dataset import ImageDataset
from adcam.errors import AdcamError
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.map_maker import count_color_steps
from adcam.labeling.maps_file import MAPS_DTYPES, STRIDES
from adcam.labeling.mask_job import MaskJob, PackedMaskJob
from adcam.labeling.output_folder import OutputFolder
from adcam.labeling.packed_folder import PackedFolder, PackedOutput
from adcam.labeling.run import Run, RunOptions, RunResult
from adcam.labeling.shown import forget_shown
from adcam.version import __version__


def generate(
    images: ImageDataset,
    labeler: PseudoLabeler,
    out: str | Path | PackedOutput,
    *,
    maps_dtype: str | None = None,
    overwrite: bool = False,
    num_shown: int = 0,
    **run_options: Any,
) -> RunResult:
    """Write ``masks/<id>.png`` of every image, with manifest and configuration beside them.

    Run again, it resumes where it stopped and tries failed images again
    (:mod:`adcam.labeling.output_folder`). Memory does not grow with the number of images. Masks,
    maps and the manifest do not depend on the number of workers or shards.

    Args:
        images: The images; class ids are matched to the labeler's classes by name.
        labeler: The classifier and every choice that changes a mask.
        out: The folder of this run; or a folder of packed results, with Parquet files or tar
            archives in place of a file each (:mod:`adcam.labeling.packed_parts`).
        maps_dtype: ``"uint8"`` or ``"float16"`` also writes ``maps/<id>.npz`` with values of this
            type (:mod:`adcam.labeling.maps_file`); ``None`` writes no maps.
        overwrite: Whether to start over; what the folder's manifest lists is removed.
        num_shown: The number of images, evenly spread, of which ``report/shown`` keeps small maps
            and probabilities for a report (:mod:`adcam.recipe.generation_report`). Packed results
            keep none.
        run_options: How to go about it: the fields of :class:`adcam.labeling.run.RunOptions`, such
            as ``labels``, ``workers`` and ``shard``. A script that uses workers needs
            ``if __name__ == "__main__":`` around the call.

    Returns:
        Counts, failures, images without a class, and seconds.

    Raises:
        AdcamError: Images lack labels, a class is unknown to the labeler, a number is out of range,
            the folder holds another run, or another process works in it; nothing has been written.
        OSError: The folder cannot be written to.
    """
    if maps_dtype is not None and maps_dtype not in MAPS_DTYPES:
        raise AdcamError(f"maps_dtype must be None or one of {MAPS_DTYPES}, got {maps_dtype!r}")
    run = Run("generate", images, labeler, RunOptions(**run_options))
    fine = count_color_steps(labeler.map_maker.methods[0]) > 0
    job = (PackedMaskJob if isinstance(out, PackedOutput) else MaskJob)(
        labeler.mask_maker,
        Path(out.path if isinstance(out, PackedOutput) else out),
        labeler.class_set,
        maps_dtype,
        labeler.label_thresholds,
        maps_stride=STRIDES[fine],
        shown_every=-(-len(images) // num_shown) if num_shown else 0,
    )
    run.check(job)
    config = describe_run(run, maps_dtype)
    how: dict[str, Any] = {"overwrite": overwrite, "shard": run.options.shard}
    if isinstance(out, PackedOutput):
        with PackedFolder(out, config, **how) as packed:
            return run.into(packed, job, config)
    with OutputFolder(out, config, **how) as folder:
        if overwrite:
            forget_shown(folder.path)
        return run.into(folder, job, config)


def describe_run(run: Run, maps_dtype: str | None = None) -> dict[str, Any]:
    """Describe all that changes the bytes of a run's masks and maps, as ``config.json`` does."""
    return {
        "adcam": __version__,
        "labels": run.describe_labels(),
        "labeler": run.labeler.describe(),
        "maps_dtype": maps_dtype,
        "batch_size": run.batch_size,
    }
