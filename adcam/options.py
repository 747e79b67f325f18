"""Options that are given by name: refused when they are unknown or of the wrong type."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from adcam.errors import AdcamError

_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "None",
}


BACKBONE_OPTIONS = frozenset(
    {
        # Transformers
        *("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "qk_norm"),
        *("scale_attn_norm", "scale_mlp_norm", "proj_bias", "init_values", "class_token"),
        *("pos_embed", "no_embed_class", "reg_tokens", "pre_norm", "final_norm", "fc_norm"),
        *("pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
        *("weight_init", "fix_init", "attn_layer"),
        # Convolutional networks
        *("layers", "channels", "cardinality", "base_width", "stem_width", "stem_type"),
        *("replace_stem_pool", "block_reduce_first", "down_kernel_size", "avg_down", "aa_layer"),
        *("drop_block_rate", "zero_init_last", "norm_eps"),
        *("drop_rate", "norm_layer", "act_layer"),
    }
)
"""The options of a backbone that a config or a file may give.

A classifier file comes from anywhere, and ``timm.create_model`` has options that open other files
or fetch them; those are not among these.
"""


def check_options(options: Mapping[str, Any], legal: Mapping[str, Any], owner: str) -> None:
    """Check names and types of options.

    Args:
        options: The options that were given, by name.
        legal: The type that each option may have, as ``typing.get_type_hints`` returns them.
        owner: What the options belong to, for the message.

    Raises:
        AdcamError: If an option is unknown or its value has another type.
    """
    for name, value in options.items():
        if name not in legal:
            hint = suggest_name(name, legal)
            raise AdcamError(f"{owner} has no option {name!r}{hint}; options: {sorted(legal)}")
        if not has_type(value, legal[name]):
            raise AdcamError(
                f"{name} of {owner} must be {describe_type(legal[name])}, got {value!r}"
            )


def check_choice(name: str, value: object, legal: Collection[str]) -> None:
    """Refuse a value that is not one of the legal texts.

    Raises:
        AdcamError: If the value is none of them; the message names them all.
    """
    if not isinstance(value, str) or value not in legal:
        hint = suggest_name(str(value), legal)
        raise AdcamError(f"{name} must be one of {sorted(legal)}, got {value!r}{hint}")


def suggest_name(name: str, legal: Collection[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for a name close to a legal one, else an empty text.

    Example:
        >>> suggest_name("rival_wieght", ["rival_weight", "negatives"])
        "; did you mean 'rival_weight'?"
    """
    close = difflib.get_close_matches(name, legal, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def has_type(value: object, hint: Any) -> bool:
    """Say whether a value fits a type hint.

    A whole number counts as a number, a list as a tuple, and ``True`` is not a number.

    Args:
        value: Any value.
        hint: A class, ``Any``, a union, a literal, or a generic tuple, list or mapping.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(has_type(value, part) for part in parts)
    if origin is typing.Literal:
        return value in parts
    if hint in (int, float):
        legal = (int,) if hint is int else (int, float)
        return isinstance(value, legal) and not isinstance(value, bool)
    if origin in (tuple, list) or getattr(origin, "__name__", "") == "Sequence":
        if not isinstance(value, tuple | list):
            return False
        if origin is tuple and parts[-1:] != (...,):
            fits = zip(value, parts, strict=False)
            return len(value) == len(parts) and all(has_type(v, part) for v, part in fits)
        return all(has_type(item, parts[0]) for item in value)
    return isinstance(value, origin or hint)


def describe_type(hint: Any) -> str:
    """Name a type hint in words, as in ``"a number or None"``."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(part) for part in parts)
    if origin is typing.Literal:
        return f"one of {list(parts)}"
    if origin in (tuple, list) or getattr(origin, "__name__", "") == "Sequence":
        kinds = dict.fromkeys(describe_type(part) for part in parts if part is not ...)
        return f"a list ({', '.join(kinds)})"
    return _WORDS.get(hint, getattr(origin or hint, "__name__", str(hint)))


def check_range(name: str, value: float, interval: str) -> None:
    """Refuse a number outside an interval; NaN is in none.

    Args:
        name: Name of the option, for the message.
        value: The number.
        interval: The interval as in ``"[0, 1)"``, with a round bracket where the end is excluded.

    Raises:
        AdcamError: If the number lies outside.

    Example:
        >>> check_range("alpha", 1.0, "[0, 1]")
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    if not (above and below):
        raise AdcamError(f"{name} must lie in {interval}, got {value}")


def check_backbone_options(options: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Return the options of a backbone, each of them legal and plain data.

    Args:
        options: Arguments of ``timm.create_model``, or ``None`` for none.
        name: Name of the backbone, for messages.

    Raises:
        AdcamError: If an option is none of :data:`BACKBONE_OPTIONS`, or its value is no number,
            text, truth value, ``None`` or list of them.
    """
    plain = (bool, int, float, str, type(None))
    for key, value in (options or {}).items():
        if key not in BACKBONE_OPTIONS:
            raise AdcamError(
                f"backbone_kwargs of {name!r} has no option {key!r}"
                f"{suggest_name(key, BACKBONE_OPTIONS)}; options: {sorted(BACKBONE_OPTIONS)}"
            )
        items = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(item, plain) for item in items):
            raise AdcamError(
                f"backbone_kwargs of {name!r}: {key} must be a number, a text, True, False, None "
                f"or a list of them, got {value!r}"
            )
    return dict(options or {})
