"""What is installed, what it can run on, and why something cannot run."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
import warnings
from importlib import metadata
from typing import Any

from adcam.version import __version__

# Distribution names; the first that is installed speaks for the package.
_PACKAGES = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "triton": ("triton",),
    "timm": ("timm",),
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "scikit-image": ("scikit-image",),
    "Pillow": ("Pillow",),
    "safetensors": ("safetensors",),
    "mmengine": ("onedl-mmengine", "mmengine"),
    "mmcv": ("onedl-mmcv", "mmcv", "mmcv-lite"),
    "mmsegmentation": ("onedl-mmsegmentation", "mmsegmentation"),
    "ray": ("ray",),
    "numba": ("numba",),
    "pycocotools": ("pycocotools",),
    "pydensecrf": ("pydensecrf2", "pydensecrf"),
    "rich": ("rich",),
    "tensorboard": ("tensorboard",),
}

# Operations on tensors that choose among backends. Each has an `available_backends`.
_OPS = ("common_neighbor", "diffusion", "token_attention", "level_boxes")

# What each optional feature imports, and the extra that brings it.
_FEATURES = {
    "student networks (mmsegmentation)": ("mmseg.models", "seg"),
    "clusters (Ray)": ("ray", "ray"),
    "masks of COCO (pycocotools)": ("pycocotools", "coco"),
}


def collect_info() -> dict[str, Any]:
    """Look at this installation.

    Returns:
        ``versions`` by package (``None`` where absent), ``devices``, ``threads``, and
        ``op_backends``, ``crf_backends`` and ``features``: from a name to ``None`` if it can run
        here, else to the reason why not; backends in the order they are tried. JSON-serialisable.
    """
    import torch

    from adcam.ops.dense_crf import available_backends

    return {
        "versions": read_versions(),
        "devices": _devices(),
        "threads": {
            "cpu cores": len(os.sched_getaffinity(0))
            if sys.platform == "linux"
            else os.cpu_count(),
            "torch threads": torch.get_num_threads(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
        "op_backends": _op_backends(),
        "crf_backends": available_backends(),
        "features": {
            name: why_not_importable(module, extra) for name, (module, extra) in _FEATURES.items()
        },
    }


def read_versions() -> dict[str, str | None]:
    """Versions of this package, Python, the platform and the packages used, ``None`` if absent."""
    return {
        "adcam": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(names) for name, names in _PACKAGES.items()},
    }


def _version(distributions: tuple[str, ...]) -> str | None:
    """Version of the first that is installed, and its name where it is not the usual one."""
    for name in distributions:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return f"{version} ({name})" if name.startswith("onedl-") else version
    return None


def _devices() -> dict[str, str]:
    import torch

    devices = {"cpu": platform.processor() or platform.machine()}
    if torch.version.cuda is None and torch.version.hip is None:
        devices["cuda"] = "cannot be used: this torch is built for the CPU alone"
    elif not torch.cuda.is_available():
        devices["cuda"] = "cannot be used: torch finds no GPU, or no driver for it"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        devices[f"cuda:{index}"] = f"{properties.name}, {memory:.0f} GiB"
    return devices


def _op_backends() -> dict[str, str | None]:
    return {
        f"{op}: {name}": reason
        for op in _OPS
        for name, reason in importlib.import_module(f"adcam.ops.{op}").available_backends().items()
    }


def why_not_importable(module: str, extra: str) -> str | None:
    """Import a module of an optional package; the reason if that fails, ``None`` if it works."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return f"not installed; pip install 'adcam[{extra}]'"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except (ImportError, AssertionError, OSError) as error:
        # mmseg asserts on the version of mmcv; a broken binary package raises OSError.
        return f"installed, but its import fails: {error}"
    return None
