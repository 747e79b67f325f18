"""Reading ``.npy`` files that hold a pickle, without letting the pickle run anything.

``np.save`` of a dict writes a pickle, and unpickling a file from elsewhere can run any program.
Here the pickle machine sees only inert stand-ins for the few NumPy names that such files need;
arrays are built afterwards from their bytes. NumPy's own constructors are kept out as well: a
crafted dtype state makes them read bytes as pointers.
"""

from __future__ import annotations

import pickle
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Booleans, integers, floats, text: what class vectors, maps and keys are made of.
_PLAIN_KINDS = "biufU"

_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
)
"""What the pickle machine raises on damaged or hostile input, apart from our own refusals."""


def load_object_npy(path: str | Path) -> object:
    """Read the object that ``np.save(path, obj)`` stored as a pickle.

    Args:
        path: A ``.npy`` file whose array is one object, written by NumPy 1 or 2 (module paths
            ``numpy.core`` and ``numpy._core``), also under Python 2.

    Returns:
        The object: dicts, lists, tuples, strings, numbers, and NumPy arrays of plain dtypes.
        NumPy scalars come as Python ``bool``, ``int``, ``float`` or ``str``.

    Raises:
        ValueError: No such ``.npy`` file, a damaged one, or one that names anything else: the
            message gives the name refused.
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        except (ValueError, EOFError, OSError, SyntaxError, tokenize.TokenError) as err:
            raise ValueError(f"{path}: not a .npy file ({err})") from err
        if dtype != np.dtype(object) or shape != ():
            raise ValueError(
                f"{path}: expected one pickled object, got an array of {dtype} with shape {shape}"
            )
        try:
            stored = _Unpickler(file, encoding="latin1").load()
            return _resolve(stored).item()
        except _ERRORS as err:
            raise ValueError(f"{path}: cannot be read safely ({err})") from err


class _StandIn:
    """What the pickle machine may build; setting a state is refused unless a subclass takes it.

    The method also keeps the pickle from setting attributes of the classes themselves.
    """

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"{type(self).__name__} takes no state")

    def resolve(self) -> Any:
        """The value that is stood in for."""
        raise NotImplementedError


class _Dtype(_StandIn):
    """Stand-in for ``numpy.dtype``: keeps type code and byte order."""

    def __init__(self, code: str, *_flags: object) -> None:
        self.code = str(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.code = {"<": "<", ">": ">"}.get(state[1], "") + self.code

    def resolve(self) -> np.dtype[Any]:
        dtype = np.dtype(self.code)
        if dtype.kind not in _PLAIN_KINDS:
            raise pickle.UnpicklingError(f"arrays of dtype {self.code!r} are not allowed here")
        return dtype


class _Array(_StandIn):
    """Stand-in for ``numpy.ndarray``: keeps shape, dtype and bytes (or a list of objects)."""

    state: tuple[Any, ...]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def resolve(self) -> np.ndarray:
        _version, shape, dtype, is_fortran, data = self.state
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError(f"an array with {type(dtype).__name__} for a dtype")
        if isinstance(data, list):
            objects = np.empty(len(data), dtype=object)
            for i, item in enumerate(data):
                objects[i] = _resolve(item)
            return objects.reshape(shape)
        raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote str
        flat = np.frombuffer(raw, dtype=dtype.resolve())
        return flat.reshape(shape, order="F" if is_fortran else "C").copy()


class _Scalar(_StandIn):
    """Stand-in for a NumPy scalar."""

    def __init__(self, dtype: _Dtype, raw: bytes | str) -> None:
        self.dtype = dtype
        self.raw = raw.encode("latin1") if isinstance(raw, str) else raw

    def resolve(self) -> bool | int | float | str:
        (value,) = np.frombuffer(self.raw, dtype=self.dtype.resolve()).tolist()
        return value

    # As a dict key it must be hashable before it is resolved.
    def __hash__(self) -> int:
        return hash(self.raw)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Scalar) and self.raw == other.raw


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows a few names, none of which does anything."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Dtype,
            ("numpy._core.multiarray", "_reconstruct"): self._reconstruct,
            ("numpy._core.multiarray", "scalar"): _Scalar,
            ("numpy._core.numeric", "_frombuffer"): self._frombuffer,
            ("_codecs", "encode"): self._encode,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return known[module, name]

    def _reconstruct(self, *_args: object) -> _Array:
        return _Array()

    def _frombuffer(self, data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
        array = _Array()
        array.state = (1, shape, dtype, order == "F", bytes(data))
        return array

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
        return text.encode("latin1")


def _resolve(value: Any) -> Any:
    """Replace the stand-ins in what the pickle machine built."""
    if isinstance(value, _StandIn):
        return value.resolve()
    if isinstance(value, dict):
        return {_resolve(k): _resolve(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_resolve(item) for item in value)
    return value
