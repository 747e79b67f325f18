"""Limits on what a file may ask of this program: pixels, bytes, classes, annotations, memory.

The defaults let every ordinary data set through and stop a file that was made to fill a machine. A
limit is raised or lowered for a command and all its processes by an environment variable
(``ADCAM_MAX_IMAGE_PIXELS``, …) or, on the command line, by ``--limits image_pixels=…``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from adcam.errors import AdcamError

_GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Limits:
    """The largest values that are accepted; a file that asks for more is refused by name.

    Attributes:
        image_pixels: Pixels of an image or a mask, before anything of it is decoded. Decoding takes
            about 7 bytes a pixel.
        file_bytes: Bytes of an image, a mask or a table of labels, and of what is read at a time of
            a Parquet file, once it is unpacked.
        json_bytes: Bytes of a JSON file of annotations, which takes about ten times that in memory.
        classes: Classes of a data set.
        annotations: Objects in a JSON file of annotations.
        worker_memory: Bytes that a worker process may ask for, in which the network and the image
            must find room; 0 for as much as the machine, or its container, has.
    """

    image_pixels: int = 178_956_970
    file_bytes: int = 1 << 30
    json_bytes: int = 4 << 30
    classes: int = 10_000
    annotations: int = 20_000_000
    worker_memory: int = 0


def read_limits(environment: Mapping[str, str] | None = None) -> Limits:
    """Read the limits from environment variables, by default from those of this process.

    Raises:
        AdcamError: A variable is no whole number, or negative.
    """
    environment = os.environ if environment is None else environment
    values = {}
    for item in fields(Limits):
        variable = variable_of(item.name)
        if (text := environment.get(variable, "")).strip():
            values[item.name] = _parse(variable, text)
    return Limits(**values)


def variable_of(name: str) -> str:
    """Return the environment variable of a limit, e.g. ``"ADCAM_MAX_FILE_BYTES"``."""
    return f"ADCAM_MAX_{name.upper()}"


def _parse(where: str, text: object) -> int:
    with suppress(ValueError, OverflowError):
        value = float(str(text))
        if value >= 0 and value == int(value):
            return int(value)
    raise AdcamError(f"{where} must be a whole number, such as 2000000 or 2e6, got {text!r}")


@contextmanager
def use_limits(changes: Mapping[str, object]) -> Iterator[None]:
    """Let other limits hold for this process, and those that it starts, while the block runs.

    Raises:
        AdcamError: There is no such limit, or a value is no whole number.
    """
    legal = asdict(Limits())
    if unknown := sorted(set(changes) - set(legal)):
        raise AdcamError(f"there is no limit {unknown[0]!r}; there are {', '.join(legal)}")
    new = {variable_of(name): str(_parse(name, value)) for name, value in changes.items()}
    with use_environment(new):
        yield


@contextmanager
def use_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for this process, and those that it starts, in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def check_file_bytes(path: Path, what: str, limit: str = "file_bytes") -> None:
    """Refuse a file that is larger than a limit; a file that is not there passes.

    Raises:
        LimitError: It is larger; the message says ``what`` it should be.
    """
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        return
    if size > getattr(read_limits(), limit):
        raise LimitError(f"{path}: {size:,} bytes are more than {what} may have", limit)


def check_num_classes(num_classes: int, what: str = "classes") -> None:
    """Refuse more classes than the limit.

    Raises:
        LimitError: There are more.
    """
    if num_classes > read_limits().classes:
        raise LimitError(f"{num_classes:,} {what}", "classes")


def check_image_hw(hw: tuple[int, int], what: str) -> None:
    """Refuse a size without pixels, or with more than the limit; ``what`` a file says has it.

    Raises:
        AdcamError: It has no pixels.
        LimitError: It has too many.
    """
    if min(hw) < 1:
        raise AdcamError(f"{what} has no pixels")
    if hw[0] * hw[1] > read_limits().image_pixels:
        raise LimitError(f"{what} has {hw[0]}×{hw[1]} pixels", "image_pixels")


class LimitError(AdcamError):
    """A file asks for more than a limit allows: ``what`` it asks for, and which ``limit``."""

    def __init__(self, what: str, limit: str) -> None:
        super().__init__(what, limit)  # from which pickle makes it again
        most = getattr(read_limits(), limit)
        self._message = f"{what}: the limit is {most:,}; --limits {limit}=… raises it"

    def __str__(self) -> str:
        return self._message


def machine_memory() -> int | None:
    """Return the bytes of memory that this machine, or its container, has; ``None`` if unknown.

    A group of processes with a limit (a container, a job of SLURM, a service of systemd) counts as
    a container, and so does every group around it.
    """
    found = []
    for group in find_memory_groups():
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                found.append(int((group / name).read_text("ascii")))
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=None)


def find_memory_groups() -> list[Path]:
    """Find the control groups of Linux that bound this process's memory, the innermost first.

    A container may see its own group as the outermost one, under a path that only its host knows;
    of such a path the part that is there counts. Empty on other systems.
    """
    groups: list[Path] = []
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2
                top = _GROUPS
            elif "memory" in controllers.split(","):
                top = _GROUPS / "memory"
            else:
                continue
            own = top / path.lstrip("/")
            inside = (group for group in (own, *own.parents) if group.is_relative_to(top))
            groups += [group for group in inside if group.is_dir()]
    return groups


def offer_to_be_killed(score: int) -> None:
    """If memory is short, let the system kill this process rather than the one that gives it work.

    That one knows what was being worked on, and reports it.

    Args:
        score: From 0 to 1000, which is before any process with less.
    """
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/oom_score_adj").write_text(str(score), "ascii")
