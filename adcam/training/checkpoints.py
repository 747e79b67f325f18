"""Checkpoints of a training: found in its folder, read without running code, compared by settings.

A folder may come from a stranger. So a checkpoint is read as tensors and plain values alone, only
files of the folder itself are looked at, and the config that mmengine stores in a checkpoint, which
is a program, is never executed.
"""

from __future__ import annotations

import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.logging import HistoryBuffer

from adcam.errors import AdcamError
from adcam.files import read_json, to_plain, write_json
from adcam.labeling.output_folder import diff_configs
from adcam.models.checkpoints import say_why

TRAINING_NAME = "training.json"
"""What a training was started with; it stands beside the checkpoints."""

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(?:epoch|iter)_(\d+)\.pth")


def find_checkpoint(work_dir: Path, *, cure: str) -> Path | None:
    """The newest checkpoint of a folder that can be read, ``None`` if there is no checkpoint.

    Args:
        work_dir: The folder of a training.
        cure: What to do where no checkpoint can be read, for the message.

    Raises:
        AdcamError: There are checkpoints, but none of them can be read.
    """
    found = {path: _NAME.fullmatch(path.name) for path in work_dir.glob("*.pth")}
    steps = {path: int(match[1]) for path, match in found.items() if match}
    newest_first = sorted(steps, key=lambda path: steps[path], reverse=True)
    last = work_dir / Path(_read_last_name(work_dir)).name
    if last in steps:
        newest_first = [last, *(path for path in newest_first if path != last)]
    for path in newest_first:
        try:
            read_checkpoint(path)
        except AdcamError as error:
            logger.warning("%s; trying another checkpoint", error)
            continue
        return path
    if newest_first:
        raise AdcamError(f"none of the checkpoints in {work_dir} can be read; {cure}")
    return None


def _read_last_name(work_dir: Path) -> str:
    """What mmengine noted as the last checkpoint: a path, of which only the name counts."""
    try:
        return (work_dir / "last_checkpoint").read_text("utf-8").strip() or "none"
    except (OSError, UnicodeDecodeError):
        return "none"


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of mmengine as tensors and plain values.

    Args:
        path: The file.
        map_location: As for ``torch.load``.

    Raises:
        AdcamError: The file is no checkpoint, is damaged, or holds objects that a checkpoint has no
            need of.
    """
    try:
        with torch.serialization.safe_globals(_allowed_globals()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        meta, hub = checkpoint["meta"], checkpoint["message_hub"]
        int(meta["epoch"]), int(meta["iter"]), checkpoint["state_dict"].items()
        runtime = hub["runtime_info"]
        # mmengine may delete the files that these name.
        for name in [name for name in runtime if "_ckpt" in name and name != "keep_ckpt_ids"]:
            if Path(str(runtime[name])).parent.resolve() != path.parent.resolve():
                del runtime[name]
        if not all(type(step) is int for step in runtime.get("keep_ckpt_ids", ())):
            raise ValueError("the checkpoints to keep are not named by numbers")
        meta.pop("config", None)  # mmengine would execute it
    except pickle.UnpicklingError as error:
        # torch's own message advises to load the file without this protection.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else "it is damaged, or holds other objects"
        raise AdcamError(f"{path}: is not read as a checkpoint ({reason})") from error
    # What torch raises for cut and foreign files.
    except (OSError, EOFError, RuntimeError) as error:
        reason = say_why(error).splitlines()[0]
        raise AdcamError(f"{path}: cannot be read as a checkpoint ({reason})") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise AdcamError(f"{path}: is no checkpoint of a training ({error!r})") from error
    return dict(checkpoint)


def _history_method(owner: Any, name: str) -> Any:
    """Stands for ``getattr``, with which a ``HistoryBuffer`` names its own statistics."""
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise AttributeError(f"{name!r} is not read from a checkpoint")
    return getattr(owner, name)


class _Dtype:
    """Stands for ``numpy.dtype``, whose state could make NumPy take numbers for pointers."""

    def __init__(self, code: str, *_flags: object) -> None:
        if code not in ("f8", "f4", "i8", "i4", "b1"):
            raise ValueError(f"arrays of {code!r} are not read from a checkpoint")
        self.dtype = np.dtype(f"<{code}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            raise ValueError("its arrays are not little-endian")


class _Array(np.ndarray):
    """Stands for ``numpy.ndarray`` while its bytes are read; it is stored as a plain array."""

    def __setstate__(self, state: Any, /) -> None:
        version, shape, dtype, is_fortran, data = state
        super().__setstate__((version, shape, dtype.dtype, is_fortran, data))

    def __reduce__(self) -> Any:
        return np.asarray(self).__reduce__()


def _make_array(*_args: object) -> _Array:
    return _Array(0)


def _make_scalar(dtype: _Dtype, data: bytes) -> Any:
    return np.frombuffer(data, dtype.dtype)[0]


def _allowed_globals() -> list[Any]:
    stand_ins = {"_reconstruct": _make_array, "scalar": _make_scalar}
    return [
        HistoryBuffer,
        (_history_method, "builtins.getattr"),
        *((_Array, "numpy.ndarray"), (_Dtype, "numpy.dtype")),
        *(
            (stand_in, f"numpy.{core}.multiarray.{name}")
            for core in ("core", "_core")
            for name, stand_in in stand_ins.items()
        ),
    ]


def forget_training(work_dir: Path, result: str) -> None:
    """Remove what a training left that another one in its folder could take for its own.

    Args:
        work_dir: The folder of the training.
        result: The name of the file that it ended with.
    """
    checkpoints = [path for path in work_dir.glob("*.pth") if _NAME.fullmatch(path.name)]
    for path in (*checkpoints, work_dir / "last_checkpoint", work_dir / result):
        path.unlink(missing_ok=True)


def write_description(work_dir: Path, description: Mapping[str, Any]) -> None:
    """Note what a training is started with, and in how many processes."""
    write_json(work_dir / TRAINING_NAME, {**description, "processes": get_world_size()})


def _forget_places(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description without the folders of images and masks, which may have been moved."""
    data = description.get("data")
    if not isinstance(data, Mapping):
        return dict(description)
    kept = {key: value for key, value in data.items() if key not in ("root", "masks")}
    return {**description, "data": kept}


def refuse_another_training(work_dir: Path, description: Mapping[str, Any], *, cure: str) -> None:
    """Refuse to resume a training that was started with other settings or on other data.

    So is one in another number of processes: a step has as many images more or fewer, and schedules
    count steps. The folders of images and masks may have been moved.

    Args:
        work_dir: The folder of the training.
        description: What is asked for; JSON-serialisable.
        cure: What to do, for the message.

    Raises:
        AdcamError: Something differs from ``training.json``; the message lists every difference.
    """
    path = work_dir / TRAINING_NAME
    if not path.is_file():
        raise AdcamError(
            f"{work_dir} holds checkpoints, but no {TRAINING_NAME} says what they were trained "
            f"for; {cure}"
        )
    asked = {**to_plain(description), "processes": get_world_size()}
    # Older files do not say these.
    unsaid = {"processes": 1, **{k: v for k, v in asked.items() if k == "mask_files"}}
    there = {**unsaid, **read_json(path)}
    refuse_differences(
        f"{work_dir} holds a training", _forget_places(there), _forget_places(asked), cure=cure
    )


def refuse_differences(
    what: str, found: Mapping[str, Any], wanted: Mapping[str, Any], *, cure: str
) -> None:
    """Refuse what was made with other settings than those that are asked for.

    Args:
        what: What is there, for the message.
        found: The settings that it was made with.
        wanted: Those that are asked for.
        cure: What to do, for the message.

    Raises:
        AdcamError: They differ; the message lists every difference.
    """
    if differences := diff_configs(found, wanted):
        raise AdcamError(
            f"{what} with other settings (found -> asked for):\n"
            + "\n".join(f"  {line}" for line in differences)
            + f"\nTo go on, ask for the same settings; {cure}"
        )
