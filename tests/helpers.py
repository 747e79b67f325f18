"""What several test files need and no fixture serves; miniatures.py has the data sets."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adcam.labeling.inputs import Resizer

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def object_npy_header() -> bytes:
    """The start of a .npy file whose array is one pickled object; the pickle follows."""
    buffer = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def read_scalars(work_dir: Path) -> list[dict[str, Any]]:
    """The scalars that every start of a training in this folder logged, oldest first."""
    files = sorted(work_dir.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def write_labelled_photos(folder: Path, count: int) -> Path:
    """Photographs ``0.png``, ``1.png``, … of noise; ``labels.csv`` beside them says dog, cat, dog.

    Returns:
        The folder, which is created.
    """
    folder.mkdir()
    lines = ["image,label"]
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
        lines.append(f"{seed}.png,{'cat' if seed % 2 else 'dog'}")
    (folder.parent / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


class OpCounter(TorchDispatchMode):
    """Counts what torch would launch on a GPU, and what would wait for it.

    Attributes:
        launched: The operations that would launch something.
        waited: Those that would wait. What copies between host and device is not among them: on a
            CPU there is nothing to copy.
    """

    FREE = ("empty", "_unsafe_view")  # and every view
    WAITS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[str] = []
        self.waited: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        is_by_tensor = name == "repeat_interleave" and isinstance(args[-1], torch.Tensor)
        if is_by_tensor and (kwargs or {}).get("output_size") is None:
            name += " item"  # the length of the result
        if any(x is not None and x.dtype == torch.bool for x in indices):
            name += " nonzero"
        if any(word in name for word in self.WAITS):
            self.waited.append(name)
        elif not func.is_view and not any(word in name for word in self.FREE):
            self.launched.append(name)
        return func(*args, **(kwargs or {}))


class Waits(OpCounter):
    """Also notices copies between host and device that are waited for; counts no work of the host.

    Inference mode hands over operations that consist of others as one: they are taken apart.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func.namespace == "prim":  # asks a fake tensor for its device
            return func(*args, **options)
        # Not `func.decompose`, which prefers what torch.compile makes of an interpolation.
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE):
            with self:
                return func._op_dk(_COMPOSITE, *args, **options)
        name = func.overloadpacket.__name__
        if name == "_to_copy":
            source, target = args[0].device, options.get("device") or args[0].device
            self._see_copy(name, source, target, options.get("non_blocking"))
        elif name == "copy_":
            is_free = args[2] if len(args) > 2 else options.get("non_blocking")
            self._see_copy(name, args[1].device, args[0].device, is_free)
        elif name.startswith("index"):
            for index in args[1] if isinstance(args[1], list | tuple) else ():
                if index is not None:
                    self._see_copy(name, index.device, args[0].device, False)
        before = len(self.launched)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        tensors = [x for x in tree_leaves((args, options, result)) if isinstance(x, torch.Tensor)]
        if all(x.device.type == "cpu" for x in tensors):
            del self.launched[before:]
        return result

    def _see_copy(self, name: str, source: Any, target: Any, is_free: Any) -> None:
        if torch.device(source).type != torch.device(target).type and not is_free:
            self.waited.append(f"{name} from {source} to {target}")


@dataclass(frozen=True)
class DeadlyResizer(Resizer):
    """Takes its process down at a height of 41 pixels, as the head of a damaged file can.

    It is here because this module loads quickly in each process that takes its place.
    """

    def find_sizes(self, hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        if hw[0] == 41:
            assert multiprocessing.parent_process() is not None, "the run would have died"
            os.kill(os.getpid(), signal.SIGKILL)
        return super().find_sizes(hw)
