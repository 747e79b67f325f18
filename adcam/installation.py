"""What is installed, where its configs are, and why something cannot run here."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import itertools
import os
import platform
import re
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from adcam.errors import AdcamError
from adcam.version import __version__

_PACKAGES = (
    *("torch", "torchvision", "triton", "timm", "numpy", "scipy", "Pillow", "safetensors"),
    *("mmengine", "mmcv", "mmsegmentation", "numba", "pycocotools", "pydensecrf"),
    *("rich", "tensorboard", "matplotlib", "scikit-image", "ray", "pyarrow", "fsspec"),
)

# Where a package is distributed under other names; the first that is installed counts.
_DISTRIBUTIONS = {
    "mmengine": ("onedl-mmengine", "mmengine"),
    "mmcv": ("onedl-mmcv", "mmcv", "mmcv-lite"),
    "mmsegmentation": ("onedl-mmsegmentation", "mmsegmentation"),
    "pydensecrf": ("pydensecrf2", "pydensecrf"),
}

EXTRAS = {
    **dict.fromkeys(("mmengine", "cv2", "tensorboard"), "train"),
    **dict.fromkeys(("matplotlib", "skimage"), "train"),
    **dict.fromkeys(("mmseg", "mmcv"), "seg"),
    "pycocotools": "coco",
    "pydensecrf": "crf",
    **dict.fromkeys(("ray", "pyarrow", "fsspec"), "ray"),
    **dict.fromkeys(("transformers", "open_clip"), "clip"),
}
"""Modules that the core does without, and the extra of setup.py that brings each."""

# Operations on tensors that choose among backends. Each has an `available_backends`.
_OPS = (
    "refinement",
    "common_neighbor",
    "diffusion",
    "two_hop_walk",
    "color_diffusion",
    "token_attention",
    "level_boxes",
)

# What each optional feature imports.
_FEATURES = {
    "training and configs (mmengine)": "mmengine",
    "diagrams of reports (matplotlib)": "matplotlib",
    "segmentation networks (mmsegmentation)": "mmseg.models",
    "masks of COCO (pycocotools)": "pycocotools",
}


# The configs of this project: inside the package when pip installed it, beside it in a checkout.
_CONFIG_FOLDERS = (
    Path(__file__).resolve().parent / "configs",
    Path(__file__).resolve().parents[1] / "configs",
)


def find_config(name: str | Path) -> Path:
    """Find a config: a file of the user, or by its name one that comes with adcam.

    Args:
        name: A path as the user wrote it. Where no such file exists, it is looked up among the
            configs of this project; the folder ``configs/`` in front, ``.py`` at the end, and
            before it length and data set (``_60e_voc12``) may be left out.

    Raises:
        AdcamError: Neither exists; the message names configs of similar names.

    Example:
        >>> find_config("voc12/adcam_deit-small").name
        'adcam_deit-small_60e_voc12.py'
    """
    if Path(name).is_file():
        return Path(name)
    asked = Path(name).as_posix().removeprefix("configs/").removesuffix(".py")
    shipped = list_configs()
    short = {shorten_config_name(key): path for key, path in shipped.items()}
    if found := shipped.get(asked, short.get(asked)):
        return found
    message = f"{name}: no such config"
    if Path(name).is_dir():
        message += "; this is a folder, and a config is a .py file"
    by_stem = {Path(key).name: key for key in shipped}
    close = difflib.get_close_matches(asked, shipped, n=3, cutoff=0.7) or [
        by_stem[stem] for stem in difflib.get_close_matches(Path(asked).name, by_stem, n=3)
    ]
    if close:
        cure = f"did you mean {' or '.join(close)}? `adcam configs` lists all"
    else:
        cure = "name a file, or one that `adcam configs` lists; `adcam init` writes one for you"
    raise AdcamError(f"{message}; {cure}")


def shorten_config_name(name: str) -> str:
    """The name of a config without the length of its training and its data set.

    Example:
        >>> shorten_config_name("voc12/adcam_deit-small_60e_voc12")
        'voc12/adcam_deit-small'
    """
    return re.sub(r"_\d+[ek]_[\w-]+$", "", name)


def read_summary(config: Path) -> str:
    """The first sentence of the comment that a config begins with, ``""`` if there is none."""
    lines = config.read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    text = " ".join(line.lstrip("# ") for line in comment)
    return re.split(r"\.(?:\s|$)|; |(?<!`): ", text, maxsplit=1)[0]


def find_config_command(name: str, config: Path) -> str:
    """The command that a config of this project is made for, such as ``"compare"``."""
    if name.startswith("seg/"):
        return "segment train"
    text = config.read_text(encoding="utf-8")
    found = (key for key in ("recipe", "compare") if re.search(rf"(?m)^{key} = ", text))
    return {"recipe": "run", "compare": "compare"}.get(next(found, ""), "train")


def list_configs() -> dict[str, Path]:
    """Paths of this project's configs by name, such as ``voc12/adcam_deit-tiny_60e_voc12``."""
    folder = next((folder for folder in _CONFIG_FOLDERS if folder.is_dir()), None)
    if folder is None:
        return {}
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.py"))
        # The last is read by tools/pretrain_shapes.py alone.
        if "_base_" not in path.parts and path.name != "pretrain_vit.py"
    }


def describe_machine() -> str:
    """Processor, threads, GPU and the versions that decide about results, in one line."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, {device}, "
        f"torch {torch.__version__}, Python {platform.python_version()}, adcam {__version__}"
    )


def collect_info() -> dict[str, Any]:
    """Collect what `adcam info` shows about this installation.

    Returns:
        A dictionary that JSON can hold. ``versions`` maps packages to versions, or to ``None``
        where a package is absent; ``devices`` and ``threads`` describe the machine.
        ``op_backends``, ``crf_backends`` and ``features`` map a name to ``None`` if it can run
        here, and otherwise to the reason why not; backends stand in the order they are tried in.
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
        "features": {name: why_not_importable(module) for name, module in _FEATURES.items()},
    }


def read_versions() -> dict[str, str | None]:
    """Versions of adcam, Python, the platform and the packages used, ``None`` if absent."""
    return {
        "adcam": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(_DISTRIBUTIONS.get(name, (name,))) for name in _PACKAGES},
    }


def _version(distributions: tuple[str, ...]) -> str | None:
    """The version under the first name that is installed; a fork's name goes with it."""
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


def why_not_importable(module: str) -> str | None:
    """Import a module of an optional package.

    Returns:
        ``None`` if the import works, else the reason why it does not.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        return _not_installed(package)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except (ImportError, AssertionError, OSError) as error:
        # mmseg asserts on the version of mmcv; a broken binary package raises OSError.
        return f"installed, but its import fails: {error}"
    return None


def explain_missing(error: ModuleNotFoundError) -> str | None:
    """What to install after an import failed, ``None`` if no extra brings that module.

    Example:
        >>> explain_missing(ModuleNotFoundError("No module named 'mmengine'", name="mmengine"))
        "mmengine is not installed; pip install 'adcam[train]'"
    """
    package = (error.name or "").partition(".")[0]
    return f"{package} is {_not_installed(package)}" if package in EXTRAS else None


def _not_installed(package: str) -> str:
    return f"not installed; pip install 'adcam[{EXTRAS[package]}]'"
