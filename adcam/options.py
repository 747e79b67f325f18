"""Options by name: how a dataclass declares their legal values, and the checks of them.

Sections of configs, the options of methods, of InCA and of networks are all checked here.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from adcam.errors import AdcamError, naming

T = TypeVar("T")


def setting(
    default: Any = MISSING,
    *,
    choices: Sequence[str] | Callable[[], Iterable[str]] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """A field of a section: its default, its legal texts (or what returns them), its range.

    Without a default, the config must give a value.
    """
    limits = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    metadata = {"choices": choices, **{k: v for k, v in limits.items() if v is not None}}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Section:
    """A section of a config; building one checks and converts its values."""

    def __post_init__(self) -> None:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        for name, value in check_fields(type(self), values, type(self).__name__).items():
            object.__setattr__(self, name, value)


def from_section(kind: type[T], values: Any, where: str) -> T:
    """Build a section from the mapping that a config gives.

    Args:
        kind: A dataclass: one of the sections here, ``InCA``, or the options of a method.
        values: Keys and values; lists become tuples, and mappings the dataclasses in them.
        where: What errors call the section, e.g. ``"train"``.

    Raises:
        AdcamError: A key is unknown or missing, or a value has the wrong type or lies out of range.

    Example:
        >>> from adcam.settings import TestViews
        >>> from_section(TestViews, {"scales": [448, 560]}, "views")
        TestViews(scales=(448, 560), flip=False, keep_ratio=True)
    """
    if isinstance(values, kind):
        return values
    if not isinstance(values, Mapping):
        raise AdcamError(f"{where} must be a section with keys and values, got {values!r}")
    checked = check_fields(kind, values, where)
    if missing := [
        item.name
        for item in fields(typing.cast(Any, kind))
        if item.init and item.name not in values
        if item.default is MISSING and item.default_factory is MISSING
    ]:
        raise AdcamError(f"{where} lacks {list_choices(missing, 'and')}")
    with naming(where):
        return kind(**checked)


def check_fields(kind: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return values of a section, some or all, converted to the types of its fields.

    Raises:
        AdcamError: As :func:`check_options`; ``where`` is what it calls the section.
    """
    items = {item.name: item.metadata for item in fields(kind) if item.init}
    hints = typing.get_type_hints(kind)
    return check_options(values, {name: hints[name] for name in items}, where, items)


def check_options(
    values: Mapping[str, Any],
    hints: Mapping[str, Any],
    where: str,
    limits: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """Return options converted to their types.

    Args:
        values: The options that were given, by name.
        hints: The type that each option may have, as ``typing.get_type_hints`` returns them.
        where: What the options belong to, for messages.
        limits: The metadata of :func:`setting` by name.

    Raises:
        AdcamError: A name is unknown, or a value has the wrong type or lies out of range.
    """
    for key, value in values.items():
        if key not in hints:
            raise AdcamError(
                f"{where}: there is no key {key!r}{suggest(str(key), hints)} (got {value!r})"
            )
    return {
        key: convert(value, hints[key], f"{where}.{key}", limits.get(key, {}))
        for key, value in values.items()
    }


def check_choice(name: str, value: object, legal: Iterable[str]) -> None:
    """Refuse a value that is not one of the legal texts.

    Raises:
        AdcamError: The value is none of them; the message names them all.
    """
    legal = tuple(legal)
    if not isinstance(value, str) or value not in legal:
        near = difflib.get_close_matches(str(value), legal, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AdcamError(f"{name} must be {list_choices(legal)}, got {value!r}{hint}")


def suggest(name: str, legal: Iterable[str]) -> str:
    """The end of a refusal: a close name, and the legal ones.

    Example:
        >>> suggest("choose_strde", ["choose_on", "choose_stride"])
        "; did you mean 'choose_stride'? There are 'choose_on' and 'choose_stride'"
    """
    legal = sorted(legal)
    near = difflib.get_close_matches(name, legal, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    listed = f"here are {list_choices(legal, 'and')}" if legal else "here are none"
    return f"{hint} {'T' if near else 't'}{listed}"


def convert(value: Any, hint: Any, where: str, limits: Mapping[str, Any]) -> Any:
    """A value as its type asks for it, lists as tuples and mappings as sections.

    Args:
        value: The value that was given.
        hint: The type that it must have.
        where: The name of the option, for messages.
        limits: The metadata of :func:`setting`.

    Raises:
        AdcamError: The value has the wrong type or lies out of range.
    """
    if hint is Any:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, args, where, limits)
    if origin is typing.Literal:
        check_choice(where, value, args)
        return value
    if origin in (list, Sequence):
        return list(_convert_tuple(value, (args[0], ...), where, limits))
    if origin is tuple:
        return _convert_tuple(value, args, where, limits)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise AdcamError(f"{where} must be {describe_type(hint)}, got {value!r}")
        return {k: convert(v, args[1], f"{where}.{k}", limits) for k, v in value.items()}
    if is_dataclass(hint):
        return from_section(typing.cast(type, hint), value, where)
    return _convert_scalar(value, hint, where, limits)


def _convert_union(value: Any, args: Sequence[Any], where: str, limits: Mapping[str, Any]) -> Any:
    optional = types.NoneType in args
    if value is None and optional:
        return None
    if isinstance(value, str) and value.lower() == "none" and optional:
        return None  # --cfg-options data.masks=none
    kinds = [arg for arg in args if arg is not types.NoneType]
    if len(kinds) == 1:
        return convert(value, kinds[0], where, limits)
    if isinstance(value, Mapping) and (sections := [kind for kind in kinds if is_dataclass(kind)]):
        return convert(value, sections[0], where, limits)
    for kind in kinds:
        try:
            return convert(value, kind, where, limits)
        except AdcamError:
            if kind is float and isinstance(value, float) and math.isfinite(value):
                raise  # of the right type, but out of range
    wanted = " or ".join(describe_type(kind) for kind in kinds)
    raise AdcamError(f"{where} must be {wanted}, got {value!r}")


def _convert_tuple(value: Any, args: Sequence[Any], where: str, limits: Mapping[str, Any]) -> Any:
    is_list = isinstance(value, list | tuple)
    if args[1:] == (Ellipsis,):
        if not is_list and (value is None or isinstance(value, Mapping)):
            raise AdcamError(f"{where} must be {describe_type(tuple[args[0], ...])}, got {value!r}")  # type: ignore[valid-type]
        items = value if is_list else [value]  # one value is a list of one
        return tuple(convert(v, args[0], f"{where}[{i}]", limits) for i, v in enumerate(items))
    if not is_list or len(value) != len(args):
        raise AdcamError(f"{where} must be {len(args)} values, got {value!r}")
    return tuple(
        convert(v, arg, f"{where}[{i}]", limits)
        for i, (v, arg) in enumerate(zip(value, args, strict=True))
    )


def _convert_scalar(value: Any, hint: type, where: str, limits: Mapping[str, Any]) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        bool: isinstance(value, bool),
        int: is_number and isinstance(value, int),
        float: is_number and math.isfinite(value),
    }.get(hint, isinstance(value, hint))
    if not fits:
        is_split = (
            hint is str and isinstance(value, list) and all(isinstance(v, str) for v in value)
        )
        quotes = "; in --cfg-options, a text with commas stands in quotes: 'KEY=\"a, b\"'"
        raise AdcamError(
            f"{where} must be {describe_type(hint)}, got {value!r}{quotes if is_split else ''}"
        )
    if hint is str and (choices := read_choices(limits)):
        check_choice(where, value, choices)
    if is_number and (text := describe_range(limits)) and not _is_in_range(value, limits):
        raise AdcamError(f"{where} must be {text}, got {value!r}")
    return float(value) if hint is float else value


def _is_in_range(value: float, limits: Mapping[str, Any]) -> bool:
    return (
        value >= limits.get("at_least", -math.inf)
        and value > limits.get("above", -math.inf)
        and value <= limits.get("at_most", math.inf)
        and value < limits.get("below", math.inf)
    )


def read_choices(limits: Mapping[str, Any]) -> tuple[str, ...]:
    """The legal texts of a field's metadata; none where every text is legal."""
    choices = limits.get("choices", ())
    return tuple(choices() if callable(choices) else choices)


def describe_range(limits: Mapping[str, Any]) -> str:
    """The legal numbers of a field's metadata in words, ``""`` where all are.

    Example:
        >>> describe_range({"above": 0, "at_most": 1})
        'above 0 and at most 1'
    """
    words = {"at_least": "at least", "above": "above", "at_most": "at most", "below": "below"}
    return " and ".join(f"{text} {limits[key]}" for key, text in words.items() if key in limits)


def describe_type(hint: Any) -> str:
    """A type in words, e.g. ``"a list of whole numbers"``."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("None" if a is types.NoneType else describe_type(a) for a in args)
    if origin is typing.Literal:
        return list_choices(args)
    if origin in (list, Sequence) or (origin is tuple and args[1:] == (Ellipsis,)):
        return f"a list of {_PLURALS.get(args[0], 'sections')}"
    if origin is tuple:
        return f"{len(args)} {_PLURALS.get(args[0], 'values')}"
    if origin is not None and issubclass(origin, Mapping):
        return "keys and values"
    return _WORDS.get(hint, "a section")


def read_meanings(kind: type) -> dict[str, str]:
    """What each field of a dataclass means: the entries under *Attributes*, each on one line.

    Args:
        kind: The class; those that it inherits from are read too.

    Example:
        >>> from adcam.settings import TrainSettings
        >>> read_meanings(TrainSettings)["epochs"]
        'How many times all training images are seen.'
    """
    found = {}
    for base in reversed(kind.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for entry in re.split(r"\n(?=    \w)", "\n" + text.partition("\n\n")[0]):
            name, colon, meaning = entry.strip().partition(":")
            if colon and name.isidentifier():
                found[name] = " ".join(meaning.split())
    return found


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Any: "any value",
}
_PLURALS: dict[Any, str] = {
    int: "whole numbers",
    float: "numbers",
    str: "texts",
}


def list_choices(names: Iterable[str], last: str = "or") -> str:
    """Names in words: ``'a', 'b' or 'c'``."""
    quoted = [repr(name) for name in names]
    return f" {last} ".join(filter(None, [", ".join(quoted[:-1]), *quoted[-1:]]))


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
                f"backbone_kwargs of {name!r}: there is no key {key!r}"
                f"{suggest(key, BACKBONE_OPTIONS)}"
            )
        items = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(item, plain) for item in items):
            raise AdcamError(
                f"backbone_kwargs of {name!r}: {key} must be a number, a text, True, False, None "
                f"or a list of them, got {value!r}"
            )
    return dict(options or {})
