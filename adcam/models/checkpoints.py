"""Reading tensors from checkpoint files as projects publish them; no code of a file ever runs."""

from __future__ import annotations

import logging
import pickle
import struct
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adcam.errors import AdcamError
from adcam.models.file_header import check_file_kind

logger = logging.getLogger(__name__)

_DAMAGED = (
    *(SafetensorError, pickle.UnpicklingError, struct.error, OSError, EOFError, RuntimeError),
    *(LookupError, ValueError, TypeError, AttributeError, AssertionError, MemoryError),
)
"""What reading a truncated, damaged or refused file raises, as seen on randomly damaged ones."""

_CONTAINERS = (
    *("state_dict", "model", "model_state_dict", "model_state", "net", "network", "module"),
    *("params", "weights", "teacher", "student", "model_ema", "state_dict_ema", "ema"),
)
"""Keys under which published checkpoints keep the weights, the first found being taken."""

_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""What DDP, ``torch.compile``, Lightning and wrappers put before each name."""

_MOST_NESTED = 4
_MOST_NAMED = 20


# Weights that come with adcam.
_ASSETS = Path(__file__).resolve().parents[1] / "assets"


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name from a file of safetensors or torch, whatever its suffix.

    The weights may lie under a key, as in ``{"model": ..., "args": ...}`` or
    ``{"state_dict": ...}``, and behind a prefix such as DDP's ``module.`` or Lightning's
    ``model.``. Objects other than tensors (options, optimizers) are skipped and never built.

    Args:
        path: The file; or the name of one that comes with adcam, such as
            ``"shapes_vit.safetensors"``.

    Returns:
        Tensors by name, on the CPU, in the dtype of the file.

    Raises:
        AdcamError: If the file is missing, of another kind, unreadable, or holds no tensors; the
            message names the keys that it has.
    """
    path = Path(path)
    if not path.is_file() and path.name == str(path) and (_ASSETS / path).is_file():
        path = _ASSETS / path
    if not path.is_file():
        raise AdcamError(f"{path}: no such weights file")
    try:
        content = _read(path)
    except _DAMAGED as error:
        if isinstance(error, AdcamError):
            raise
        raise AdcamError(f"{path}: cannot be read as weights ({say_why(error)})") from error
    found = list(islice(_find_tensors(content), _MOST_NAMED))
    if len(found) == 1:
        return _strip_prefixes(found[0][1])
    if found:
        names = [name for name, _ in found]
        raise AdcamError(
            f"{path}: holds tensors under several keys {names}; save one of them alone, "
            'e.g. torch.save(torch.load(FILE, weights_only=True)["KEY"], OUT)'
        )
    there = sorted(map(str, content))[:20] if isinstance(content, dict) else type(content).__name__
    raise AdcamError(
        f"{path}: holds no tensors by name; what it has is {there}. A network that was saved whole "
        "must be saved again as torch.save(network.state_dict(), FILE)"
    )


def say_why(error: BaseException) -> str:
    """What torch says of a file that it refuses, without its advice to load it unprotected."""
    text = str(error) or type(error).__name__
    return "it cannot be read without running code" if "weights_only" in text else text


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = check_file_kind(path)
        if start[8:9] == b"{":
            return load_file(path)
        if start.startswith(b"PK") and _is_program(path):
            raise AdcamError(
                f"{path}: is a TorchScript program, whose tensors cannot be read without running "
                "it; save its state_dict() instead"
            )
        file.seek(0)
        try:
            with warnings.catch_warnings():
                # Another protocol than torch's own is no concern of a user: it is read or refused.
                warnings.filterwarnings("ignore", "Detected pickle protocol")
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            # Beside tensors there are other objects: options, loggers, NumPy's numbers.
            file.seek(0)
            return _load_skipping(file, path)


def _is_program(path: Path) -> bool:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise AdcamError(f"{path}: cannot be read as weights ({error})") from error
    with archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _load_skipping(file: Any, path: Path) -> Any:
    skipped: set[str] = set()

    class Unpickler(_TensorUnpickler):
        names = skipped

    reader = types.SimpleNamespace(
        __name__=__name__,
        Unpickler=Unpickler,
        load=lambda stream, **options: Unpickler(stream, **options).load(),
    )
    content = torch.load(file, map_location="cpu", pickle_module=reader, weights_only=False)
    logger.info("%s: objects that are no tensors were skipped: %s", path, sorted(skipped))
    return content


class _Skipped:
    """Stands in for an object that is no tensor, and swallows whatever is done to build it."""

    def __new__(cls, *_args: object, **_options: object) -> _Skipped:
        return super().__new__(cls)

    def __init__(self, *_args: object, **_options: object) -> None:
        pass

    def _swallow(self, *_args: object, **_options: object) -> _Skipped:
        return self

    __call__ = __setstate__ = __setitem__ = append = extend = add = update = _swallow


class _Table(dict[Any, Any]):
    """An ordered dict whose attributes cannot be set by a file."""

    def __setstate__(self, _state: object) -> None:
        pass


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that builds tensors and dicts, and stand-ins for everything else.

    torch's own reader derives from it and adds the storages.
    """

    names: set[str]

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): _Table,
            # Bound methods: a file could set attributes of torch's own functions.
            ("torch._utils", "_rebuild_tensor"): self._rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): self._rebuild_parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): self._rebuild_parameter,
        }
        if (module, name) not in known:
            self.names.add(f"{module}.{name}")
            return _Skipped
        return known[module, name]

    def _rebuild_tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, *_rest: object
    ) -> Any:
        rebuild: Any = torch._utils._rebuild_tensor
        return rebuild(storage, offset, size, stride)

    def _rebuild_parameter(self, data: Any, *_rest: object) -> Any:
        return data


def _find_tensors(
    content: Any, depth: int = 0, barren: set[tuple[int, int]] | None = None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the dicts of tensors that may be meant, one where it is clear, with their keys.

    A dict in which there are none is looked into once, however many others hold it.
    """
    barren = set() if barren is None else barren
    if not isinstance(content, dict) or depth == _MOST_NESTED or (id(content), depth) in barren:
        return
    for name in _CONTAINERS:
        inner = _find_tensors(content.get(name), depth + 1, barren)
        if found := list(islice(inner, _MOST_NAMED)):
            yield from found
            return
    tensors = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if tensors:
        yield "", tensors
        return
    is_barren = True
    for key, value in content.items():
        if isinstance(key, str):
            for _, state in _find_tensors(value, depth + 1, barren):
                is_barren = False
                yield key, state
    if is_barren:
        barren.add((id(content), depth))


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove what wrappers put before most of the names."""
    for prefix in _PREFIXES:
        wrapped = [name for name in state if name.startswith(prefix)]
        stripped = {name.removeprefix(prefix): value for name, value in state.items()}
        if 2 * len(wrapped) >= len(state) and wrapped and len(stripped) == len(state):
            return _strip_prefixes(stripped)
    return state
