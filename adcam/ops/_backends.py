"""How an operation chooses what computes it.

An operation names its backends in the order of its preference, each with the reasons why it cannot
run on the given arguments. Optional packages are not imported before a backend is asked about.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import shutil
import sysconfig
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch

from adcam.ops._checks import check_choice
from adcam.ops._recompute import records_gradient

_LOGGER = logging.getLogger(__name__)

_LOWEST_TRITON = (3, 2)
"""The version that the lowest allowed torch, 2.6, brings; its compiler takes every kernel."""

_LOWEST_CAPABILITY = (8, 0)
"""The oldest GPUs that the kernels are compiled for in the tests (Ampere)."""


def choose_backend(op: str, backend: str, reasons: Mapping[str, Sequence[str]]) -> str:
    """Name the backend that computes.

    Args:
        op: Name of the operation, for messages.
        backend: ``"auto"`` for the first that can run, or a name.
        reasons: From each backend, the preferred one first, to why it cannot run; nothing if it
            can. The last one always can.

    Raises:
        ValueError: If the name is unknown.
        RuntimeError: If the backend asked for by name cannot run; the message holds the reasons.
    """
    check_choice("backend", backend, ("auto", *reasons))
    if backend == "auto":
        chosen = next(name for name, why in reasons.items() if not why)
        for name, why in reasons.items():
            if name == chosen:
                break
            _log_fallback(op, name, "; ".join(why), chosen)
        return chosen
    if reasons[backend]:
        raise RuntimeError(
            f"the {op} backend {backend!r} cannot run: {'; '.join(reasons[backend])}"
        )
    return backend


def summarize_reasons(reasons: Mapping[str, Sequence[str]]) -> dict[str, str | None]:
    """From each backend to ``None`` if it can run, else to the reasons in one line."""
    return {name: "; ".join(why) or None for name, why in reasons.items()}


def available_backends() -> dict[str, str | None]:
    """The backends of an operation on tensors, and why one cannot run on this machine.

    Returns:
        From each backend to ``None`` if it can run, else to the reason why not.
    """
    return summarize_reasons(
        {"triton": triton_not_supported_reasons(), "torch": [], "reference": []}
    )


def triton_not_supported_reasons(
    *tensors: torch.Tensor, is_differentiable: bool = True
) -> list[str]:
    """Why Triton kernels cannot run on these tensors; without tensors, on this machine.

    Args:
        *tensors: What the kernels would read.
        is_differentiable: Whether the operation has a gradient where kernels compute it.
    """
    reason = _device_reason(tensors)
    reasons = [] if reason is None else [reason]
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        reasons.append("there is no kernel for float64")
    if not is_differentiable and records_gradient(*tensors):
        reasons.append("it has no gradient")
    return reasons


def _device_reason(tensors: Sequence[torch.Tensor]) -> str | None:
    """Why no kernel can run where these tensors are; ``None`` if kernels can.

    Under ``TRITON_INTERPRET=1`` they run on the CPU, slowly, for tests. The first time that tensors
    are on a GPU whose kernels cannot be used, a warning says so, with the cure.
    """
    reason = triton_package_reason()
    if reason is None and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not reason and not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if reason := reason or _compiler_reason():
        if any(tensor.is_cuda for tensor in tensors):
            _warn_of_plain_torch(reason)
        return reason
    if elsewhere := sorted({tensor.device.type for tensor in tensors} - {"cuda"}):
        return f"a tensor is on {', '.join(elsewhere)}, not on cuda"
    devices = {tensor.device for tensor in tensors} or {torch.device("cuda")}
    if len(devices) > 1:
        return f"the tensors are on several devices: {sorted(map(str, devices))}"
    capability = torch.cuda.get_device_capability(devices.pop())
    if capability < _LOWEST_CAPABILITY:
        reason = "the GPU is sm_{}{}, older than sm_{}{}".format(*capability, *_LOWEST_CAPABILITY)
        if tensors:
            _warn_of_plain_torch(reason)
        return reason
    return None


@functools.cache
def triton_package_reason() -> str | None:
    """Why the installed Triton cannot be used; ``None`` if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (torch brings it on Linux); pip install triton"
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:  # nightly builds of torch bring it under another name
        return None
    if tuple(int(number) for number in version.split(".")[:2]) < _LOWEST_TRITON:
        return (
            "triton {} is older than {}.{}; pip install --upgrade torch brings a newer one".format(
                version, *_LOWEST_TRITON
            )
        )
    return None


@functools.cache
def _compiler_reason() -> str | None:
    """Why Triton cannot build its launcher, as it does when a kernel first runs.

    It compiles C, links it and keeps it on disk (triton/runtime/build.py, triton/backends/nvidia).
    """
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton finds no C compiler; install gcc, or name one in the variable CC"
    # What follows is done as there: the scheme of Debian's Python names a folder without headers.
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    include = sysconfig.get_path("include", scheme)
    # gcc and clang also look into these (gcc's manual, "Environment Variables Affecting GCC").
    more = os.pathsep.join(os.environ.get(name, "") for name in ("CPATH", "C_INCLUDE_PATH"))
    folders = [include, *filter(None, more.split(os.pathsep))]
    if not any(Path(folder, "Python.h").is_file() for folder in folders):
        return (
            f"triton finds no Python.h in {include}; install the headers of Python, such as the "
            "package python3-dev"
        )
    if torch.version.hip is None:  # another driver is linked for AMD's GPUs
        library, folders = _find_driver()
        if not any(Path(folder, library).is_file() for folder in folders):
            return f"triton finds no {library}; name its folder in the variable TRITON_LIBCUDA_PATH"
    return _cache_reason()


def _find_driver() -> tuple[str, list[str]]:
    from adcam.ops._triton_driver import find_driver

    return find_driver()


def _cache_reason() -> str | None:
    """Why Triton cannot keep what it compiles, without which it runs nothing (runtime/cache.py)."""
    home = Path(os.environ.get("TRITON_HOME") or Path.home())
    folder = Path(os.environ.get("TRITON_CACHE_DIR", "").strip() or home / ".triton" / "cache")
    there = folder.absolute()
    while not os.access(there, os.F_OK):  # Triton makes the folders that are missing
        there = there.parent
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    return (
        f"triton cannot write to {folder}; name a folder that can be written in the variable "
        "TRITON_CACHE_DIR"
    )


@functools.cache
def _warn_of_plain_torch(reason: str) -> None:
    """Cached, so that each reason is logged once in a process."""
    _LOGGER.warning(
        "adcam's kernels cannot run on this GPU, slower operations of torch take their place: %s "
        "(`adcam info` shows all backends)",
        reason,
    )


def numba_not_supported_reasons(module: str) -> list[str]:
    """Why the compiled kernels of a module, named in full, cannot run on this machine."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return [f"{error}; install it with `pip install numba`"]
    except RuntimeError as error:  # no folder for compiled code can be written
        return [f"{error}; name one in NUMBA_CACHE_DIR"]
    return []


@functools.cache
def _log_fallback(op: str, name: str, why: str, chosen: str) -> None:
    """Cached, so that each fallback is logged once in a process."""
    _LOGGER.info("%s: backend %r in place of %r: %s", op, chosen, name, why)
