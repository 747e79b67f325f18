"""Shards: which part of a data set a process labels, and the files it keeps of it.

A shard ``i/N`` owns an image by a hash of its id alone, so that no process needs to know of the
others, and the same images fall to it whatever the order of the data set. All shards write into one
output folder: masks and maps as usual, and for each shard its own files in ``shards/``, named
``00003-of-00016``: ``.jsonl``, its manifest; ``.json``, what it is to do; ``.lock``, its lock.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adcam.errors import AdcamError

SHARDS_DIR = "shards"

MAX_SHARDS = 100_000
"""Most shards: beyond it, the small files of the shards weigh more than what they say."""

_NAME = re.compile(r"(\d{5,6})-of-(\d{5,6})")


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts of a data set.

    Attributes:
        index: Its number, from 0.
        count: How many there are. More make each one smaller; how evenly images are spread is a
            matter of chance, to some per cent where a shard has a thousand images.

    Raises:
        AdcamError: There is no such shard.

    Example:
        >>> [Shard(i, 4).owns("2007_000032") for i in range(4)]
        [False, False, True, False]
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_SHARDS:
            raise AdcamError(f"the number of shards must be 1 to {MAX_SHARDS}, got {self.count}")
        if not 0 <= self.index < self.count:
            raise AdcamError(
                f"there is no shard {self.index}/{self.count}: the first is 0/{self.count} and the "
                f"last {self.count - 1}/{self.count}"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether this is the whole data set."""
        return self.count == 1

    @property
    def name(self) -> str:
        """The name of its files, without suffix."""
        return f"{self.index:05d}-of-{self.count:05d}"

    def owns(self, img_id: str) -> bool:
        """Tell whether an image belongs to this shard."""
        return hash_id(img_id) % self.count == self.index

    def find_owned(self, img_ids: Sequence[str], window: int = 1) -> list[int]:
        """Return the indices of the images that belong to this shard, ascending.

        Args:
            img_ids: The ids of all images, in the order of the data set.
            window: How many images in a row belong together; the id of the first decides.
        """
        return [
            index
            for first in range(0, len(img_ids), window)
            if self.owns(img_ids[first])
            for index in range(first, min(first + window, len(img_ids)))
        ]

    def file(self, folder: Path, suffix: str) -> Path:
        """Return the file ``shards/<name><suffix>`` of an output folder."""
        return folder / SHARDS_DIR / f"{self.name}{suffix}"


WHOLE = Shard()
"""The whole data set: the shard of a run that is not divided."""


def hash_id(img_id: str) -> int:
    """Return the number in [0, 2^64) that decides to which shard an image belongs.

    It is the start of the SHA-256 of the id in UTF-8, so that it is the same on every machine.
    """
    digest = hashlib.sha256(img_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def parse_shard(text: str) -> Shard:
    """Read ``"3/16"``, or ``"auto"``: the place among the processes of torchrun or SLURM.

    Raises:
        AdcamError: It is neither, there is no such shard, or the environment contradicts itself.
    """
    if text == "auto":
        return shard_from_environment(os.environ)
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if match is None:
        raise AdcamError(
            f"a shard is written as INDEX/COUNT, the first of 4 as 0/4 and the last as 3/4; or "
            f"auto, under torchrun and SLURM. Got {text!r}"
        )
    return Shard(int(match[1]), int(match[2]))


def shard_from_environment(environment: Mapping[str, str]) -> Shard:
    """Find the place of this process among those that torchrun or SLURM has started.

    ``RANK`` and ``WORLD_SIZE`` of torchrun go before ``SLURM_PROCID`` and ``SLURM_NTASKS``. In a
    job array, every element has that many processes: the shards of element 0 are followed by those
    of element 1, and so on. Where there is nothing of the kind, this process has the whole.

    Raises:
        AdcamError: A variable is no number, or the elements of the array do not follow each other
            evenly, so that their places among all elements cannot be known.
    """

    def number(name: str, default: int) -> int:
        text = environment.get(name, str(default))
        if not re.fullmatch(r"\d{1,9}", text.strip()):
            raise AdcamError(f"the environment variable {name} is no number: {text!r}")
        return int(text)

    names = ("SLURM_PROCID", "SLURM_NTASKS")
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE")
    process = Shard(number(names[0], 0), number(names[1], 1))
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return process
    least = number("SLURM_ARRAY_TASK_MIN", 0)
    step = max(number("SLURM_ARRAY_TASK_STEP", 1), 1)
    count = number("SLURM_ARRAY_TASK_COUNT", 1)
    place, rest = divmod(number("SLURM_ARRAY_TASK_ID", 0) - least, step)
    most = number("SLURM_ARRAY_TASK_MAX", least + (count - 1) * step)
    if rest or not 0 <= place < count or most != least + (count - 1) * step:
        raise AdcamError(
            "the SLURM array has gaps, so that the place of this element among the shards is not "
            "known; number its elements evenly (--array=0-15), or write --shard INDEX/COUNT"
        )
    return Shard(place * process.count + process.index, count * process.count)


def find_neighbours(environment: Mapping[str, str]) -> tuple[int, int]:
    """Find the place of this process among those on its machine, and how many they are.

    Args:
        environment: The environment variables of torchrun (``LOCAL_RANK``, ``LOCAL_WORLD_SIZE``) or
            SLURM (``SLURM_LOCALID``, ``SLURM_NTASKS_PER_NODE``).

    Returns:
        Its number, from 0, for the choice of a GPU, and the count, to share the processors; (0, 1)
        where the environment says nothing.
    """
    for names in (("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")):
        texts = [environment.get(name, "") for name in names]
        if re.fullmatch(r"\d{1,6}", texts[0]):
            count = int(texts[1]) if re.fullmatch(r"\d{1,6}", texts[1]) else 1
            return int(texts[0]), max(count, int(texts[0]) + 1)
    return 0, 1


def find_shards(folder: Path, suffix: str) -> list[Shard]:
    """Find the shards of which an output folder has a file with this suffix, in order."""
    found = []
    for path in (folder / SHARDS_DIR).glob(f"*{suffix}"):
        if match := _NAME.fullmatch(path.name.removesuffix(suffix)):
            index, count = int(match[1]), int(match[2])
            if index < count <= MAX_SHARDS:
                found.append(Shard(index, count))
    return sorted(found, key=lambda shard: (shard.count, shard.index))
