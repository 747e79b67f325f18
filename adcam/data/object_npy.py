"""Reading ``.npy`` files that hold a pickle, without letting the pickle run anything.

``np.save`` of a dict writes a pickle, and unpickling a file from elsewhere can run any program.
Here the pickle machine sees only inert stand-ins for the few NumPy names that such files need;
arrays are built afterwards from their bytes. NumPy's own constructors are kept out as well: a
crafted dtype state makes them read bytes as pointers.

Tensors of PyTorch are read the same way, without PyTorch: inside such a pickle each is a call of
``torch._utils._rebuild_tensor_v2`` on a storage, which is itself a small file of ``torch.save``
(``torch/storage.py``, ``torch/serialization.py``).
"""

from __future__ import annotations

import io
import math
import pickle
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adcam.errors import AdcamError
from adcam.limits import check_file_bytes

# Booleans, integers, floats, text: what class vectors, maps and keys are made of.
_PLAIN_KINDS = "biufU"

_STORAGE_DTYPES = {
    "BoolStorage": "?",
    "ByteStorage": "u1",
    "CharStorage": "i1",
    "ShortStorage": "<i2",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
    "HalfStorage": "<f2",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
}
"""Storage classes of ``torch`` that NumPy has a dtype for; bfloat16 is not among them."""

# Of the files that torch.save wrote before it wrote zip archives, and still writes for a storage.
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_PROTOCOL = 1001

NPY_ERRORS = (
    *(OSError, ValueError, TypeError, SyntaxError, OverflowError, MemoryError, EOFError),
    *(RecursionError, NotImplementedError, RuntimeError, KeyError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What NumPy raises on damaged ``.npy`` and ``.npz`` files: a header is read as Python, and a file
that begins like an archive as an archive."""

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

_MOST_SHARED = 100
"""Values that a byte of a pickle may stand for; without values that are named twice it is 1."""


def load_object_npy(path: str | Path) -> object:
    """Read the object that ``np.save(path, obj)`` stored as a pickle.

    Args:
        path: A ``.npy`` file whose array is one object, written by NumPy 1 or 2 (module paths
            ``numpy.core`` and ``numpy._core``), also under Python 2.

    Returns:
        The object: dicts, lists, tuples, strings, numbers, and NumPy arrays of plain dtypes.
        NumPy scalars come as Python ``bool``, ``int``, ``float`` or ``str``, tensors of PyTorch as
        NumPy arrays.

    Raises:
        AdcamError: No such ``.npy`` file, a damaged one, or one that names anything else: the
            message gives the name refused.
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    check_file_bytes(path, "class maps or labels")
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        except NPY_ERRORS as err:
            raise AdcamError(f"{path}: not a .npy file ({err})") from err
        if dtype != np.dtype(object) or shape != ():
            raise AdcamError(
                f"{path}: expected one pickled object, got an array of {dtype} with shape {shape}"
            )
        try:
            stored = _Unpickler(file, encoding="latin1").load()
            _refuse_expansion(stored, _MOST_SHARED * path.stat().st_size)
            return _resolve(stored).item()
        except _ERRORS as err:
            raise AdcamError(f"{path}: cannot be read safely ({err})") from err


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


class _StorageType(_StandIn):
    """Stand-in for a storage class such as ``torch.FloatStorage``."""

    def __init__(self, name: str) -> None:
        self.dtype = np.dtype(_STORAGE_DTYPES[name])


class _Storage(_StandIn):
    """Stand-in for a storage: one-dimensional memory that tensors are views of."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values


class _Tensor(_StandIn):
    """Stand-in for a tensor: a strided view of a storage."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any) -> None:
        self.view = (storage, offset, size, stride)

    def resolve(self) -> np.ndarray:
        storage, offset, size, stride = self.view
        if not isinstance(storage, _Storage) or not (
            len(size) == len(stride)
            and all(type(n) is int and n >= 0 for n in (offset, *size, *stride))
        ):
            raise pickle.UnpicklingError("a tensor with a storage, size or stride that is none")
        values = storage.values
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        # A tensor of more elements than its storage would repeat them: none is saved so, and a few
        # bytes could ask for any amount of memory.
        if math.prod(size) > len(values) or (0 not in size and last >= len(values)):
            raise pickle.UnpicklingError(
                f"a tensor of size {tuple(size)} and stride {tuple(stride)} does not lie within "
                f"its storage of {len(values)}"
            )
        steps = [step * values.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(values[offset:], tuple(size), steps).copy()


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
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild_tensor,
            ("torch.storage", "_load_from_bytes"): self._load_storage,
            ("collections", "OrderedDict"): self._no_hooks,
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

    def _rebuild_tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, *_grad_and_hooks: object
    ) -> _Tensor:
        return _Tensor(storage, offset, size, stride)

    def _load_storage(self, data: Any) -> _Storage:
        return _read_storage(data.encode("latin1") if isinstance(data, str) else data)

    def _no_hooks(self) -> dict[str, Any]:
        """The empty table of backward hooks that every pickled tensor carries."""
        return {}


class _StorageUnpickler(pickle.Unpickler):
    """An unpickler for the parts of a stored storage: knows the names of storage classes."""

    def find_class(self, module: str, name: str) -> Any:
        if module != "torch" or name not in _STORAGE_DTYPES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return _StorageType(name)

    def persistent_load(self, saved_id: Any) -> _StorageType:
        kind, storage_type, *_key_location_numel = saved_id
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"a stored {kind!r} in place of a storage")
        return storage_type


def _read_storage(data: bytes) -> _Storage:
    """Read what ``torch.save`` wrote of one storage.

    Five pickles (magic number, protocol, machine, storage class, keys), then the number of elements
    as an int64, then the elements.
    """
    file = io.BytesIO(data)
    magic, protocol, machine, storage_type, _keys = (
        _StorageUnpickler(file).load() for _ in range(5)
    )
    if (magic, protocol) != (_TORCH_MAGIC, _TORCH_PROTOCOL):
        raise pickle.UnpicklingError("a tensor whose storage is of an unknown kind")
    if machine.get("little_endian") is not True or not isinstance(storage_type, _StorageType):
        raise pickle.UnpicklingError("a tensor whose storage is not little-endian, or is none")
    dtype = storage_type.dtype
    count = int.from_bytes(file.read(8), "little")
    if count * dtype.itemsize != len(data) - file.tell():
        raise pickle.UnpicklingError("a tensor whose storage is cut short")
    return _Storage(np.frombuffer(data, dtype, count, offset=file.tell()))


def _refuse_expansion(value: Any, most: int) -> None:
    """Refuse a pickle whose lists hold one another so often that it stands for more than itself."""
    left = [value]
    for _ in range(most):
        if not left:
            return
        found = left.pop()
        if isinstance(found, _StandIn):
            left.extend(vars(found).values())
        elif isinstance(found, dict):
            left.extend(found)
            left.extend(found.values())
        elif isinstance(found, list | tuple | set | frozenset):
            left.extend(found)
    raise pickle.UnpicklingError(f"it stands for more than {most:,} values")


def _resolve(value: Any) -> Any:
    """Replace the stand-ins in what the pickle machine built."""
    if isinstance(value, _StandIn):
        return value.resolve()
    if isinstance(value, dict):
        return {_resolve(k): _resolve(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_resolve(item) for item in value)
    return value
