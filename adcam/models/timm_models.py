"""Building timm's networks: names, options and weights are checked before anything is fetched."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants, hf_hub_url
from timm.models import get_pretrained_cfg
from torch import nn

from adcam.errors import AdcamError
from adcam.models.known_names import check_timm_name
from adcam.ops.drop_path import draw_on_the_processor

FILE_NAME = "model.safetensors"
TIMEOUT_S = 5
"""How long the host of published weights may take to answer."""


def create_timm_model(
    name: str,
    *,
    weights: str | Path | None,
    load: Callable[[nn.Module, str | Path], None],
    prepare: Callable[[Any], None],
    options: Mapping[str, Any],
) -> Any:
    """Build a network of timm with random or published weights, or those of a file.

    Args:
        name: A name of ``timm.list_models()``.
        weights: ``None`` for random weights; ``"timm"`` for the published ones of that name, from
            the cache of huggingface_hub where they are there and else fetched; or a file.
        load: Loads a file into the network.
        prepare: Called before weights are loaded: refuses a network of a wrong kind, and removes
            the parts that are not needed.
        options: Arguments of ``timm.create_model``.

    Raises:
        AdcamError: If the name is unknown, timm refuses an option, ``prepare`` or ``load`` does, or
            the published weights are neither here nor can be fetched.
    """
    check_timm_name(name)
    if weights == "timm":
        weights = find_cached_weights(name)
        if weights is None:
            check_weights_can_be_fetched(name)
            weights = "timm"
    try:
        model = timm.create_model(name, pretrained=weights == "timm", **options)
    except (TypeError, AssertionError) as error:
        raise AdcamError(f"{name!r} cannot be built with {dict(options)}: {error}") from error
    except OSError as error:
        raise AdcamError(describe_missing_weights(name, str(error))) from error
    try:
        prepare(model)
    except AdcamError as error:
        raise AdcamError(f"{name!r} does not serve here: {error}") from error
    if weights not in (None, "timm"):
        load(model, weights)
    draw_on_the_processor(model)
    return model


def find_cached_weights(name: str) -> Path | None:
    """Return the file of timm's weights in the cache of huggingface_hub, ``None`` if it is absent.

    Args:
        name: timm name of the network.

    Raises:
        AdcamError: If timm publishes no weights of that name.
    """
    config = get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or not (config.hf_hub_id or config.url):
        raise AdcamError(
            f"timm publishes no weights of {name!r}; give a file with --weights FILE "
            "(model.weights in a config)"
        )
    if not config.hf_hub_id:
        return None
    folder = _cache_dir() / f"models--{config.hf_hub_id.replace('/', '--')}" / "snapshots"
    found = sorted(folder.glob(f"*/{FILE_NAME}"))
    return found[-1] if found else None


def check_weights_can_be_fetched(name: str) -> None:
    """Ask the host of timm's weights for an answer, since its client retries for most of a minute.

    Raises:
        AdcamError: If the host does not answer; the message says where the file is to be had.
    """
    if constants.HF_HUB_OFFLINE:
        raise AdcamError(describe_missing_weights(name, "HF_HUB_OFFLINE is set"))
    request = urllib.request.Request(find_weights_url(name), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # an answer, if not the one hoped for: timm may know another way
    except OSError as error:
        reason = str(getattr(error, "reason", error))
        raise AdcamError(describe_missing_weights(name, reason)) from error


def find_weights_url(name: str) -> str:
    """Return the address of timm's published weights of a network."""
    config = get_pretrained_cfg(name, allow_unregistered=True)
    if config is not None and config.hf_hub_id:
        return hf_hub_url(config.hf_hub_id, FILE_NAME)
    return str(config.url) if config is not None else ""


def describe_missing_weights(name: str, reason: str) -> str:
    """Say that published weights are absent, where they are to be had and how to give them."""
    config = get_pretrained_cfg(name, allow_unregistered=True)
    download = f" (or run `hf download {config.hf_hub_id} {FILE_NAME}`)" if config.hf_hub_id else ""
    return (
        f"timm's weights of {name!r} are not on this machine (in {_cache_dir()}) and cannot be "
        f"fetched: {reason}. Where there is a network, fetch {find_weights_url(name)}{download}; "
        "then give the file with --weights FILE (model.weights in a config)"
    )


def _cache_dir() -> Path:
    # Layout of the cache: huggingface_hub's guide "Understand caching".
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
