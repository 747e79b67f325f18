"""What became of a run so far, from any machine that sees its output folder; nothing is locked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from adcam.labeling.locks import LOCK_NAME, is_held, read_holder
from adcam.labeling.merge import Division, ShardState, choose_division
from adcam.labeling.output_folder import manifest_path
from adcam.labeling.shards import Shard
from adcam.remote_files import is_url


@dataclass(frozen=True)
class ShardStatus:
    """A shard, or the whole of a run that is not divided.

    Attributes:
        state: What it has done.
        holder: The process that works on it: ``process``, ``host`` and ``started``; empty if none
            does.
        was_killed: Whether the last process that worked on it did not end by itself.
        rate: Images per second since that process began; ``None`` if nothing works on it, or it is
            too early to tell.
        has_locks: Whether it can be told who works on it; object stores have no locks.
    """

    state: ShardState
    holder: dict[str, Any]
    was_killed: bool
    rate: float | None
    has_locks: bool = True

    @property
    def seconds_left(self) -> float | None:
        """Seconds until it is done at its present rate."""
        if not self.rate or self.state.missing is None:
            return None
        return self.state.missing / self.rate

    def describe(self) -> str:
        """Describe its state in a word or two."""
        if self.holder:
            return f"at work: process {self.holder.get('process')} on {self.holder.get('host')}"
        if self.state.owned is None:
            return "not started"
        if self.state.missing == 0:
            return "done"
        if not self.has_locks:
            return "not complete"
        return "killed" if self.was_killed else "interrupted"


@dataclass(frozen=True)
class RunStatus:
    """What an output folder says of a run.

    Attributes:
        images: Number of images of the data set; ``None`` if the folder does not say.
        shards: Its shards, or one that is the whole.
    """

    images: int | None
    shards: Sequence[ShardStatus]

    @property
    def ok(self) -> int:
        """Number of images with a result."""
        return sum(shard.state.ok for shard in self.shards)

    @property
    def failed(self) -> int:
        """Number of images that have none, for a reason that the manifest gives."""
        return sum(shard.state.failed for shard in self.shards)

    @property
    def missing(self) -> int | None:
        """Number of images that nothing is known of yet."""
        return None if self.images is None else max(self.images - self.ok - self.failed, 0)

    @property
    def rate(self) -> float | None:
        """Images per second of all that work."""
        rates = [shard.rate for shard in self.shards if shard.rate]
        return sum(rates) if rates else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all shards that work are done: those of the slowest."""
        times = [left for shard in self.shards if (left := shard.seconds_left) is not None]
        return max(times, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, JSON-serialisable."""
        return {
            "images": self.images,
            "ok": self.ok,
            "failed": self.failed,
            "missing": self.missing,
            "images_per_second": self.rate,
            "seconds_left": self.seconds_left,
            "shards": [
                {
                    "shard": str(shard.state.shard),
                    "owned": shard.state.owned,
                    "ok": shard.state.ok,
                    "failed": shard.state.failed,
                    "state": shard.describe(),
                    "images_per_second": shard.rate,
                }
                for shard in self.shards
            ],
        }


def read_status(path: str | Path) -> RunStatus:
    """Read what has become of a run, while it works or afterwards.

    Args:
        path: The output folder; of packed results it may be a URL.

    Raises:
        AdcamError: The folder holds no run, or something in it is damaged.
    """
    division = choose_division(path)
    if is_url(path):
        shards = [ShardStatus(state, {}, False, None, has_locks=False) for state in division.states]
    else:
        shards = [_read_shard(Path(path), state, division) for state in division.states]
    return RunStatus(division.images, shards)


def _read_shard(path: Path, state: ShardState, division: Division) -> ShardStatus:
    shard = state.shard
    lock = path / LOCK_NAME if shard.is_whole else shard.file(path, ".lock")
    holder = read_holder(lock)
    works = bool(holder) and is_held(lock)
    rate = None
    if works and isinstance(before := holder.get("lines"), int):
        # Both times are of the file server, so that clocks of other machines do not matter.
        with suppress(OSError):
            began, last = lock.stat().st_mtime, _find_last_time(path, shard, division)
            if last > began and state.lines > before:
                rate = (state.lines - before) / (last - began)
    return ShardStatus(state, holder if works else {}, bool(holder) and not works, rate)


def _find_last_time(path: Path, shard: Shard, division: Division) -> float:
    """When the last image of a shard was done, in seconds by the clock of the file server."""
    if not division.is_packed:
        return manifest_path(path, shard).stat().st_mtime
    name = "" if shard.is_whole else f"{shard.name}-"
    parts = (path / "manifest").glob(f"{name}part-*.parquet")
    return max((part.stat().st_mtime for part in parts), default=0.0)


def format_seconds(seconds: float | None) -> str:
    """Format a time that is left, such as ``"1:02:03"``.

    Example:
        >>> format_seconds(3723.4), format_seconds(None)
        ('1:02:03', 'unknown')
    """
    return "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))
