"""Configs as plain values: YAML, JSON or TOML, of which nothing is run (``--safe-config``).

An ordinary config is a Python program. One from a stranger can be read here instead, if it is kept
as plain values: ``_base_`` is refused, YAML knows no tags and no aliases, and nothing is looked up
in the environment. TOML is always read here; ``adcam init`` writes it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from adcam.errors import AdcamError
from adcam.files import parse_json, read_text
from adcam.limits import use_environment

VARIABLE = "ADCAM_SAFE_CONFIG"
"""The environment variable that lets this process, and those that it starts, read no other."""

_WHAT = "a plain config"


def use_safe_configs(only: bool) -> AbstractContextManager[None]:
    """Let nothing but plain configs be read while the block runs, if ``only`` is true."""
    return use_environment({VARIABLE: "1"} if only else {})


def are_configs_safe() -> bool:
    """Tell whether nothing but plain configs may be read."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def is_toml(path: Path) -> bool:
    """Tell whether a config is TOML, which is never a program; ``adcam init`` writes such."""
    return path.suffix.lower() == ".toml"


def read_plain_config(path: Path) -> dict[str, Any]:
    """Read a config that is no program: a ``.json``, ``.toml``, ``.yaml`` or ``.yml`` file.

    Raises:
        AdcamError: It is of another kind, damaged, too large, nested too deeply, or holds what is
            not plain: a ``_base_``, or in YAML a tag or an alias.
    """
    suffix = path.suffix.lower()
    if suffix not in _PARSERS:
        raise AdcamError(
            f"{path}: --safe-config reads {', '.join(_PARSERS)}, not a program. If you trust it, "
            f"python -c \"from mmengine import Config; Config.fromfile('{path.name}').dump("
            f"'{path.stem}.json')\" makes one of it"
        )
    text = read_text(path, _WHAT)
    try:
        values = _PARSERS[suffix](text, str(path))
    except RecursionError as error:
        raise AdcamError(f"{path}: {_WHAT} nested too deeply") from error
    if not isinstance(values, dict):
        raise AdcamError(f"{path}: {_WHAT} has sections, got {values!r:.40}")
    if bases := [key for key in values if not isinstance(key, str) or key.startswith("_")]:
        raise AdcamError(f"{path}: {_WHAT} has no key {bases[0]!r}: write all sections out")
    return values


def anchor_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The values of a TOML config, ``data.root`` and ``data.images`` beginning at its folder.

    So a project can be used from anywhere, and moved together with its photographs.

    Args:
        values: What the file says; it is not changed.
        folder: The folder of the file, which is ``data.root`` where the file names none.
    """
    data = values.get("data")
    if not isinstance(data, dict):
        return values
    paths = {key: data[key] for key in ("root", "images") if isinstance(data.get(key), str)}
    paths.setdefault("root", "")
    placed = {key: str(folder / Path(path).expanduser()) for key, path in paths.items()}
    return {**values, "data": {**data, **placed}}


def _parse_toml(text: str, where: str) -> Any:
    # The library of Python 3.11 is tomli under another name; setup.py brings that to 3.10.
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise AdcamError(f"{where}: not TOML ({error})") from error


def _parse_yaml(text: str, where: str) -> Any:
    import yaml

    class PlainLoader(yaml.SafeLoader):
        """Without aliases: nine lines of them stand for gigabytes ("billion laughs")."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                mark = self.peek_event().start_mark
                raise AdcamError(f"{where}, line {mark.line + 1}: YAML aliases are not read")
            return super().compose_node(parent, index)

    try:
        return yaml.load(text, Loader=PlainLoader)  # a SafeLoader with less
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, AdcamError):
            raise
        reason = " ".join(str(error).split())
        raise AdcamError(f"{where}: not plain YAML ({reason})") from error


_PARSERS: dict[str, Callable[[str, str], Any]] = {
    ".json": partial(parse_json, kind=object, what=_WHAT, unique_keys=True),
    ".toml": _parse_toml,
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
}
