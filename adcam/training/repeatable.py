"""What every training shares: processes, schedules, and randomness that a resumed run repeats.

mmengine's checkpoints hold neither the state of the random generators nor the place in the data. So
neither is kept as a state here: both are computed from the seed and the number of the step, and a
run that was killed resumes as if it had not been.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import get_dist_info, init_dist, is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset, Sampler

from adcam.files import name_in_error
from adcam.labeling.locks import hold_folder


def seed_everything(*entropy: int) -> None:
    """Set the generators of Python, NumPy and PyTorch; any other numbers give other states."""
    words = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


def balance_weights(class_ids: Sequence[Collection[int]], power: float) -> np.ndarray:
    """How often each image is drawn so that rare classes are seen more often.

    The repeat factors of Gupta et al., "LVIS" (arXiv 1908.03195): an image counts as often as its
    rarest class c, ``(f_max / f_c)^power``, where f is the share of the images that show a class.
    Theirs is ``max(1, √(t / f_c))`` with a chosen t; here t is the share of the commonest class.

    Args:
        class_ids: The classes of each image.
        power: Larger draws rare classes more often; 0 draws all images alike, 1 would make classes
            equally frequent if each image showed one.

    Returns:
        One weight for each image, 1 for those of the commonest class alone or of none.
    """
    counts = Counter(itertools.chain.from_iterable(class_ids))
    most = max(counts.values(), default=1)
    return np.array(
        [max(((most / counts[c]) ** power for c in ids), default=1.0) for ids in class_ids]
    )


class RepeatableSampler(Sampler[tuple[int, int]]):
    """Shuffled passes over a data set without end; every draw follows from seed and position.

    Yields ``(index, position)``, the position being counted over all processes and passes, for
    :class:`RepeatableDataset`.

    Args:
        size: Number of images, at least 1.
        seed: The seed of the run, the same in all processes.
        weights: How often each image is drawn relative to the others, all above 0; by default each
            is drawn once a pass.
    """

    def __init__(self, size: int, seed: int, weights: np.ndarray | None = None) -> None:
        self._size = size
        self._seed = seed
        self._weights = weights
        self._rank, self._world_size = get_dist_info()
        self._done = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start = self._done * self._world_size + self._rank
        order, order_of = np.empty(0, dtype=np.int64), -1
        for position in itertools.count(start, self._world_size):
            number, place = divmod(position, self._size)
            if number != order_of:
                order, order_of = self._draw_pass(number), number
            yield int(order[place]), position

    def _draw_pass(self, number: int) -> np.ndarray:
        """The indices of one pass, in the order in which they are drawn."""
        generator = np.random.default_rng((self._seed, number))
        order = generator.permutation(self._size)
        if self._weights is None:
            return order
        # Systematic sampling (Madow and Madow, 1944): equidistant points on the summed weights take
        # an image floor or ceil of its expected times; the first shuffle frees neighbours.
        ends = np.cumsum(self._weights[order])
        points = (generator.random() + np.arange(self._size)) * (ends[-1] / self._size)
        picks = np.searchsorted(ends, points, side="right")
        return generator.permutation(order[picks.clip(max=self._size - 1)])

    def __len__(self) -> int:
        """Images of one pass; mmengine asks for it, though the draws do not end."""
        return self._size

    def skip(self, num_samples: int) -> None:
        """Begin after this many draws of this process; mmengine calls it when it resumes."""
        self._done = num_samples


class RepeatableEpochs(DefaultSampler):
    """mmengine's shuffled epochs, with the position of each draw for :class:`RepeatableDataset`."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start = self.epoch * self.num_samples
        for place, index in enumerate(super().__iter__(), start):
            yield index, place * self.world_size + self.rank


class RepeatableDataset(Dataset[Any]):
    """Seeds the random generators before each item by its position in the training.

    So neither the number of workers nor an interruption changes what is drawn.

    Args:
        dataset: Whose transforms draw from Python's, NumPy's or PyTorch's global generator.
        seed: The seed of the run.
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self._dataset = dataset
        self._seed = seed
        self.metainfo = getattr(dataset, "metainfo", {})

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, draw: tuple[int, int]) -> Any:
        """The item of a draw of :class:`RepeatableSampler` or :class:`RepeatableEpochs`."""
        index, position = draw
        seed_everything(self._seed, 0, position)
        return self._dataset[index]


class RepeatableSteps(Hook):
    """Seeds the random generators before each step, for dropout and drop path.

    Args:
        seed: The seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed by the number of the step and of the process."""
        seed_everything(self._seed, 1, runner.iter, get_dist_info()[0])


def start_processes(launcher: str) -> None:
    """Join the other processes of ``launcher``; mmengine connects them on GPUs, gloo elsewhere."""
    if launcher == "none" or is_distributed():
        return
    if torch.cuda.is_available() or launcher != "pytorch":
        init_dist(launcher)
    else:
        torch.distributed.init_process_group("gloo")


@contextmanager
def hold_work_dir(work_dir: Path, *, again: str) -> Iterator[None]:
    """Keep other trainings out of a folder while the block runs; its own processes share it.

    Call it after :func:`start_processes`: the first process holds the lock for all of them.

    Args:
        work_dir: The folder, which is created.
        again: What resumes a training whose storage refused, for the message.

    Raises:
        AdcamError: Another process works there; the message says which.
        OSError: The folder cannot be written to; the message names the file and says what to do.
    """
    try:
        with hold_folder(work_dir) if is_main_process() else nullcontext():
            yield
    except OSError as error:
        # An error of a write that is under way (a full disk) does not say of which file.
        path = work_dir if error.filename is None else Path(os.fsdecode(error.filename))
        if error.errno is None or not path.is_relative_to(work_dir):
            raise
        reason = str(error.strerror)
        if not reason.startswith("cannot write"):
            reason = str(name_in_error(error, path).strerror)
        cure = f"{reason}; once it can be written to, {again} resumes the training"
        raise OSError(error.errno, cure, str(path)) from error


def wrap_model(model: nn.Module) -> nn.Module:
    """The model as several processes train it; on GPUs mmengine wraps it, and without them nobody.

    Call it after :func:`start_processes`.
    """
    if not is_distributed() or torch.cuda.is_available():
        return model
    return MMDistributedDataParallel(module=model, broadcast_buffers=False)


def fit_schedulers(
    schedulers: Sequence[Mapping[str, Any]], end: int, *, by_epoch: bool
) -> list[dict[str, Any]]:
    """A scheduler without an end runs to the last epoch or step, so that one number is changed.

    Parts that would begin after it are left out, and a warm-up ends with it. A scheduler that
    counts steps in a training that is counted in epochs stays as it is; mmengine gives it an end.
    """
    fitted = []
    for entry in schedulers:
        if by_epoch and not entry.get("by_epoch", True):
            fitted.append(dict(entry))
        elif entry.get("begin", 0) < end:
            fitted.append({**entry, "end": min(entry.get("end", end), end)})
    return fitted
