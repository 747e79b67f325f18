"""Configuration files: reading, overriding, hashing, and what they describe."""

from __future__ import annotations

import ast
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from adcam.errors import AdcamError

logger = logging.getLogger(__name__)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read an mmengine Python config and apply ``--cfg-options``.

    Args:
        path: A file below ``configs/`` or of your own.
        overrides: Dotted keys to values, e.g. ``{"train.epochs": 3}``.

    Raises:
        AdcamError: If the file is missing or cannot be read, or an override names an unknown key.
    """
    path = Path(path)
    if not path.is_file():
        raise AdcamError(f"{path}: no such config; see configs/ for those that exist")
    try:
        cfg = Config.fromfile(str(path))
    # A config is a program; these are what a slip of its author raises.
    except (SyntaxError, OSError, LookupError, TypeError, ValueError, NameError) as error:
        raise AdcamError(f"{path}: cannot be read as a config ({error})") from error
    for key in overrides or {}:
        _check_key(cfg, key)
    cfg.merge_from_dict(dict(overrides or {}))
    return cfg


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` texts; a value that is a Python literal is read as one.

    Raises:
        AdcamError: If a text has no ``=``.
    """
    overrides = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise AdcamError(f"--cfg-options takes key=value, got {text!r}")
        try:
            overrides[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            overrides[key] = value
    return overrides


def _check_key(cfg: Config, key: str) -> None:
    """Refuse an override whose section does not exist: a typo must not pass silently."""
    node: Any = cfg.to_dict()
    *sections, last = key.split(".")
    for section in sections:
        children = _children(node)
        if section not in children:
            raise AdcamError(
                f"--cfg-options {key}: no section {section!r}; there are {sorted(children)}"
            )
        node = children[section]
    # A section may get new keys, a list no new items, and anything else has no keys.
    if not isinstance(node, dict) and last not in _children(node):
        raise AdcamError(f"--cfg-options {key}: {'.'.join(sections)} is no section with {last!r}")


def _children(node: Any) -> dict[str, Any]:
    if isinstance(node, list):
        return {str(index): value for index, value in enumerate(node)}
    return node if isinstance(node, dict) else {}
