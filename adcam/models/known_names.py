"""What timm and open_clip know, read from their files: names are checked in a tenth of a second.

To import either is to import torch, which takes seconds. The files of timm register each network by
a decorator and describe its weights in a table (timm/models/_registry.py), and open_clip has a file
for each model (open_clip/model_configs). They are those of the installed version, whichever that
is. Where a package is loaded already, it answers itself, and knows what a program registered.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from adcam.errors import AdcamError

NO_HEAD = (
    "has no classifier head; take an ImageNet classifier, e.g. 'deit_tiny_patch16_224', "
    "or train one"
)
"""Why a network cannot name classes."""

_VIT_FILES = frozenset({"vision_transformer", "vision_transformer_hybrid", "deit", "shapes_vit"})
_VITS = ("deit_tiny_patch16_224", "deit_small_patch16_224", "vit_base_patch16_224")
_OWN = {"shapes_vit": "shapes_vit"}  # adcam/models/shapes_vit.py registers it
_REGISTERED = re.compile(r"^@register_model\s+def (\w+)\(", re.M)
_RENAMED = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)^\}\)", re.M | re.S)
_OLD_NAME = re.compile(r"^\s*['\"]([\w.]+)['\"]\s*:", re.M)
_WEIGHTS = re.compile(r"^    ['\"]([\w.*-]+)['\"]\s*:\s*_cfg\(", re.M)
_END = re.compile(r"^\}\)", re.M)


@dataclass(frozen=True)
class TimmNames:
    """The networks of timm.

    Attributes:
        files: The file of timm/models that each network is in, by its name without a tag.
        old: Names that timm still takes, but no longer lists.
        num_outputs: The width of the published head, by name with and without a tag.
    """

    files: Mapping[str, str]
    old: frozenset[str]
    num_outputs: Mapping[str, int]


@cache
def read_timm_names() -> TimmNames | None:
    """Read names from the files of the installed timm, without importing it.

    Returns:
        The names; ``None`` where timm is not installed, or not as files.
    """
    folder = find_package("timm")
    paths = [] if folder is None else sorted((folder / "models").glob("*.py"))
    if not paths:
        return None
    files, old, num_outputs = dict(_OWN), set[str](), dict[str, int]()
    for path in paths:
        text = path.read_text(encoding="utf-8")
        renamed = [name for block in _RENAMED.findall(text) for name in _OLD_NAME.findall(block)]
        files |= dict.fromkeys([*_REGISTERED.findall(text), *renamed], path.stem)
        old.update(renamed)
        if path.stem in _VIT_FILES:
            num_outputs |= _read_num_outputs(text)
    return TimmNames(files, frozenset(old), num_outputs)


def find_package(name: str) -> Path | None:
    """The folder of an installed package, ``None`` where there is none; it is not imported."""
    spec = find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _read_num_outputs(text: str) -> dict[str, int]:
    """The widths of heads in one file's table of weights; 1,000 where it names none."""
    starts = list(_WEIGHTS.finditer(text))
    found: dict[str, int] = {}
    firsts: dict[str, int] = {}
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        stop = _END.search(text, start.end())
        ends = [match.start() for match in (following, stop) if match is not None]
        entry = text[start.end() : min(ends, default=len(text))]
        width = re.search(r"num_classes=(\d+)", entry)
        name, arch = start[1].rstrip("*"), start[1].partition(".")[0]
        found[name] = 1000 if width is None else int(width[1])
        firsts.setdefault(arch, found[name])
        # The name alone stands for the first weights that are published, or those with a star.
        is_published = "hf_hub_id=" in entry or "https:" in entry
        if start[1].endswith("*") or (is_published and arch not in found):
            found[arch] = found[name]
    return firsts | found


def check_timm_name(name: str) -> None:
    """Refuse a name that timm does not know; torch is not loaded for it.

    Args:
        name: A name such as ``"deit_tiny_patch16_224"``, with the tag of its weights or without.

    Raises:
        AdcamError: The name is unknown; the message holds names like it.
    """
    timm, names = sys.modules.get("timm"), read_timm_names()
    if timm is not None:
        is_known, current = timm.is_model(name), timm.list_models()
    elif names is not None:
        is_known = name.partition(".")[0] in names.files
        current = [known for known in names.files if known not in names.old]
    else:
        return
    if not is_known:
        raise AdcamError(f"unknown timm model {name!r}; {_describe_near(name, current, _VITS)}")


def check_vit_name(name: str) -> None:
    """Refuse a name that no plain ViT of timm has; torch is not loaded for it.

    Raises:
        AdcamError: The name is unknown, or that of another network.
    """
    names = read_timm_names()
    if names is None or "timm" in sys.modules:
        check_timm_name(name)  # a program may have registered it; building tells the rest
        return
    file = names.files.get(name.partition(".")[0])
    if file in _VIT_FILES:
        return
    wrong = f"unknown timm model {name!r}"
    if file is not None:
        wrong = f"{name!r} is no plain ViT of timm, whose attention can be read"
    vits = [known for known, stem in names.files.items() if stem in _VIT_FILES]
    near = _describe_near(name, [known for known in vits if known not in names.old], _VITS)
    raise AdcamError(f"{wrong}; {near}")


def find_num_outputs(name: str) -> int | None:
    """How many outputs the published head of a ViT has, ``None`` where timm's files do not tell.

    Args:
        name: The name of a plain ViT in timm, with a tag or without.
    """
    names = read_timm_names()
    return None if names is None else names.num_outputs.get(name)


def check_clip_name(name: str) -> None:
    """Refuse a name that is no model of open_clip, where it is installed; torch is not loaded.

    Args:
        name: A name such as ``"ViT-B-16-quickgelu"``.

    Raises:
        AdcamError: The name is unknown; the message holds names like it.
    """
    open_clip, folder = sys.modules.get("open_clip"), find_package("open_clip")
    if open_clip is not None:
        known = open_clip.list_models()
    elif folder is not None:
        known = [path.stem for path in sorted((folder / "model_configs").glob("*.json"))]
    else:
        return
    if known and name not in known:
        near = _describe_near(name, known, ("ViT-B-16-quickgelu", "ViT-L-14-quickgelu"))
        raise AdcamError(f"{name!r} is neither a folder of a CLIP nor a model of open_clip; {near}")


def _describe_near(name: str, known: Sequence[str], examples: Sequence[str]) -> str:
    """The end of a refusal: names that begin like this one or are spelt nearly so, or examples."""
    name_of = {other.lower().replace("-", "_"): other for other in sorted(known)}
    asked = name.partition(".")[0].lower().replace("-", "_")
    near = [key for key in name_of if asked and key.startswith(asked)]
    near = (near or difflib.get_close_matches(asked, name_of, n=5))[:5]
    if not near:
        return f"e.g. {', '.join(examples)}"
    return f"names like it: {', '.join(name_of[key] for key in near)}"
