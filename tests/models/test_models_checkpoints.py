"""Tensors from checkpoints as projects publish them; what a file wants to run is never run."""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import tarfile
import types
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adcam.errors import AdcamError
from adcam.models.checkpoints import load_state_dict

STATE = {"cls_token": torch.arange(6.0).view(1, 1, 6), "head.weight": torch.ones(2, 6).half()}


def prefixed(prefix: str, state: Mapping[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def is_the_state(found: Mapping[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(
        torch.equal(found[n], STATE[n]) and found[n].dtype == STATE[n].dtype for n in STATE
    )


ADAM = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
ARGS = argparse.Namespace(lr=0.1, output_dir=PurePosixPath("out"), device=torch.device("cpu"))
PUBLISHED: dict[str, Any] = {
    "plain": STATE,
    "ordered dict of parameters": OrderedDict((n, nn.Parameter(t)) for n, t in STATE.items()),
    "DeiT and MAE": {"model": STATE, "optimizer": ADAM, "epoch": 7, "args": ARGS},
    "timm": {"state_dict": STATE, "state_dict_ema": prefixed("x", STATE), "args": ARGS},
    "Lightning": {
        "state_dict": prefixed("model."),
        "hyper_parameters": types.SimpleNamespace(width=3),
        "pytorch-lightning_version": "2.1",
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
    },
    "Lightning with a loss": {"state_dict": prefixed("model.") | {"loss.weight": torch.ones(1)}},
    "DDP": prefixed("module."),
    "DDP of a compiled network": {"net": prefixed("module._orig_mod.")},
    "model_state_dict": {"model_state_dict": STATE, "loss": np.float32(0.3)},
    "DINO": {"teacher": prefixed("module."), "student": prefixed("x."), "args": ARGS},
    "student alone": {"student": STATE, "epoch": 3},
    "a key of its own": {"vit_weights": STATE, "optimizer": ADAM, "date": np.datetime64("now")},
    "nested": {"state_dict": {"model": prefixed("module.")}},
}


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".ckpt", ".safetensors", ".weights", ""])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_checkpoints(tmp_path: Path, kind: str, legacy: bool, suffix: str) -> None:
    path = tmp_path / f"checkpoint{suffix}"
    torch.save(PUBLISHED[kind], path, _use_new_zipfile_serialization=not legacy)
    found = load_state_dict(path)
    found.pop("loss.weight", None)
    assert is_the_state(found)


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.pth", "w"])
def test_safetensors_whatever_the_suffix(tmp_path: Path, name: str) -> None:
    save_file(prefixed("module."), tmp_path / name)
    assert is_the_state(load_state_dict(tmp_path / name))


def test_a_prefix_of_few_names_is_kept(tmp_path: Path) -> None:
    state = {"model.a": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(1)}
    torch.save(state, tmp_path / "w.pth")
    assert load_state_dict(tmp_path / "w.pth").keys() == state.keys()


def test_prefixes_whose_removal_would_merge_two_tensors_are_kept(tmp_path: Path) -> None:
    state = {"model.a": torch.zeros(1), "a": torch.ones(1)}
    torch.save(state, tmp_path / "w.pth")
    assert load_state_dict(tmp_path / "w.pth").keys() == state.keys()


def test_where_several_states_could_be_meant_they_are_named(tmp_path: Path) -> None:
    torch.save({"generator": STATE, "critic": STATE, "epoch": 1}, tmp_path / "w.pth")
    with pytest.raises(AdcamError, match=r"w\.pth: .*several keys \['generator', 'critic'\]"):
        load_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "there"),
    [
        ({"epoch": 3, "args": ARGS}, r"\['args', 'epoch'\]"),
        ({"model": {}, "optimizer": ADAM}, r"\['model', 'optimizer'\]"),
        (torch.zeros(3), "Tensor"),
        ([1, 2], "list"),
        (nn.Linear(2, 2), "_Skipped|Linear"),
    ],
)
def test_where_no_tensor_is_found_the_keys_are_named(
    tmp_path: Path, content: Any, there: str
) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(AdcamError, match=rf"w\.pth: holds no tensors by name.*({there})"):
        load_state_dict(tmp_path / "w.pth")


OTHERS = {
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "Git LFS pointer.*git lfs pull",
    ),
    "page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(40), "gzip; unpack"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(60), "NumPy array"),
    "empty": (b"", "the file is empty"),
    "text": (b"these are not the weights", "cannot be read as weights"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_other_kinds_are_named(tmp_path: Path, kind: str, suffix: str) -> None:
    content, message = OTHERS[kind]
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(AdcamError, match=message) as error:
        load_state_dict(path)
    assert str(error.value).startswith(f"{path}: ")


def test_archives_that_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 1000)
    with tarfile.open(tmp_path / "w.tar", "w") as archive:
        archive.add(tmp_path / "a.txt", "a.txt")
    with pytest.raises(AdcamError, match=r"w\.tar: is a tar archive; unpack it"):
        load_state_dict(tmp_path / "w.tar")
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as packed:
        packed.write(tmp_path / "a.txt", "a.txt")
    with pytest.raises(AdcamError, match=r"w\.npz: cannot be read as weights"):
        load_state_dict(tmp_path / "w.npz")


class _Runs:
    """Asks for a call of a function when it is unpickled."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["beside", "before", "as a key"])
def test_what_a_file_wants_to_run_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, legacy: bool, place: str
) -> None:
    caplog.set_level(logging.INFO)
    victim = tmp_path / "made-by-the-pickle"
    evil = _Runs(os.mkdir, str(victim))
    content: dict[Any, Any] = {
        "beside": {"model": STATE, "x": evil},
        "before": {"x": _Runs(eval, "1"), "y": evil, **STATE},
        "as a key": {"model": STATE, evil: 3},
    }[place]
    path = tmp_path / "evil.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert is_the_state(load_state_dict(path))
    assert not victim.exists()
    assert "mkdir" in caplog.text and "evil.pth" in caplog.text


def test_attributes_of_torchs_own_functions_cannot_be_set(tmp_path: Path) -> None:
    """A pickle's BUILD opcode sets attributes of whatever the machine holds."""
    rebuild = torch._utils._rebuild_tensor_v2
    before = dict(vars(rebuild)), rebuild.__defaults__
    pickled = (
        b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02"
        b"}q\x03X\x04\x00\x00\x00evilq\x04K\x01s}q\x05X\x0c\x00\x00\x00__defaults__q\x06)s\x86b"
        b"X\x01\x00\x00\x00bq\x07cnumpy\nfloat64\nq\x08u."
    )
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", pickled)
        archive.writestr("w/version", "3\n")
        archive.writestr("w/byteorder", "little")
    with pytest.raises(AdcamError, match=r"w\.pth: "):
        load_state_dict(tmp_path / "w.pth")
    assert (vars(rebuild), rebuild.__defaults__) == before


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"w/{name}", "")
    with pytest.raises(AdcamError, match=r"w\.pt: is a TorchScript program.*state_dict"):
        load_state_dict(tmp_path / "w.pt")


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": [1, 2]}, protocol=2))
    with pytest.raises(AdcamError, match=r"w\.pkl: cannot be read as weights"):
        load_state_dict(tmp_path / "w.pkl")
