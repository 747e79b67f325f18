"""How an operation chooses its backend."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from adcam.ops import _backends
from adcam.ops._backends import (
    choose_backend,
    summarize_reasons,
    triton_not_supported_reasons,
    triton_package_reason,
)
from adcam.ops._recompute import records_gradient

REASONS = {"triton": ["no GPU", "no kernel"], "torch": [], "reference": []}


def test_named_backend_runs_or_says_why_not() -> None:
    assert choose_backend("diffusion", "reference", REASONS) == "reference"
    with pytest.raises(RuntimeError, match=r"diffusion backend 'triton' cannot run: no GPU; no k"):
        choose_backend("diffusion", "triton", REASONS)
    with pytest.raises(ValueError, match=r"backend.*auto.*triton.*torch.*reference.*'numpy'"):
        choose_backend("diffusion", "numpy", REASONS)


def test_auto_falls_back_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    _backends._log_fallback.cache_clear()
    with caplog.at_level(logging.INFO, logger=_backends.__name__):
        assert [choose_backend("diffusion", "auto", REASONS) for _ in range(3)] == ["torch"] * 3
        assert choose_backend("diffusion", "auto", {"torch": [], "reference": []}) == "torch"
    assert [record.getMessage() for record in caplog.records] == [
        "diffusion: backend 'torch' in place of 'triton': no GPU; no kernel"
    ]


def test_summary() -> None:
    assert summarize_reasons(REASONS) == {
        "triton": "no GPU; no kernel",
        "torch": None,
        "reference": None,
    }


def test_why_triton_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(_backends, "triton_package_reason", lambda: None)
    monkeypatch.setattr(_backends, "_compiler_reason", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert triton_not_supported_reasons(torch.ones(1)) == ["torch finds no CUDA device"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert triton_not_supported_reasons(torch.ones(1)) == ["a tensor is on cpu, not on cuda"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert triton_not_supported_reasons() == ["the GPU is sm_75, older than sm_80"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert triton_not_supported_reasons() == []
    monkeypatch.setattr(_backends, "triton_package_reason", lambda: "too old")
    assert triton_not_supported_reasons() == ["too old"]


def test_which_triton_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    look = _backends.triton_package_reason.__wrapped__  # without its cache
    monkeypatch.setattr(_backends.importlib.util, "find_spec", lambda name: object())
    for version, reason in {
        "3.1.0": "triton 3.1.0 is older than 3.2; pip install --upgrade torch brings a newer one",
        "3.2.0": None,  # of torch 2.6, the lowest that setup.py allows
        "3.6.0": None,
        "3.10.1+git1": None,
        "4.0": None,
    }.items():
        monkeypatch.setattr(_backends.metadata, "version", lambda name, version=version: version)
        assert look() == reason
    monkeypatch.setattr(_backends.importlib.util, "find_spec", lambda name: None)
    assert look() == "triton is not installed (torch brings it on Linux); pip install triton"


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A GPU and all that Triton needs; yields the folder of Python's headers and of the driver."""
    for name in ("Python.h", "libcuda.so.1"):
        (tmp_path / name).touch()
    for name in ("TRITON_INTERPRET", "CPATH", "C_INCLUDE_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "new" / "cache"))
    monkeypatch.setattr(_backends, "_find_driver", lambda: ("libcuda.so.1", [str(tmp_path)]))
    monkeypatch.setattr(_backends, "triton_package_reason", lambda: None)
    monkeypatch.setattr(_backends.sysconfig, "get_path", lambda name, scheme: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    caches = (_backends._warn_of_plain_torch, _backends._compiler_reason)
    for cached in caches:
        cached.cache_clear()
    yield tmp_path
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize("lack", ["compiler", "headers", "driver", "cache", "capability"])
def test_a_gpu_without_kernels_is_told_once_with_the_cure(
    lack: str, compiles: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with FakeTensorMode():
        on_gpu = torch.empty(2, device="cuda")
    assert triton_not_supported_reasons(on_gpu) == []
    _backends._compiler_reason.cache_clear()
    if lack == "compiler":
        monkeypatch.delenv("CC")
        monkeypatch.setattr(_backends.shutil, "which", lambda name: None)
        expected = "triton finds no C compiler; install gcc, or name one in the variable CC"
    elif lack == "headers":
        (compiles / "Python.h").unlink()
        expected = (
            f"triton finds no Python.h in {compiles}; install the headers of Python, such as the "
            "package python3-dev"
        )
    elif lack == "driver":
        (compiles / "libcuda.so.1").unlink()
        expected = (
            "triton finds no libcuda.so.1; name its folder in the variable TRITON_LIBCUDA_PATH"
        )
    elif lack == "cache":
        (compiles / "new").touch()  # no folder can be made below a file, not even by root
        expected = (
            f"triton cannot write to {compiles / 'new' / 'cache'}; name a folder that can be "
            "written in the variable TRITON_CACHE_DIR"
        )
    else:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        expected = "the GPU is sm_75, older than sm_80"
    with caplog.at_level(logging.WARNING, logger=_backends.__name__):
        # `adcam info` asks; nothing is computed slowly
        assert triton_not_supported_reasons() == [expected]
        assert not caplog.records
        for _ in range(2):
            assert triton_not_supported_reasons(on_gpu) == [expected]
    assert [record.getMessage() for record in caplog.records] == [
        "adcam's kernels cannot run on this GPU, slower operations of torch take their place: "
        f"{expected} (`adcam info` shows all backends)"
    ]


@pytest.mark.parametrize("name", ["CPATH", "C_INCLUDE_PATH"])
def test_headers_are_found_where_the_compiler_looks(
    name: str, compiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (compiles / "elsewhere").mkdir()
    (compiles / "Python.h").rename(compiles / "elsewhere" / "Python.h")
    folders = [str(compiles / "missing"), str(compiles / "elsewhere")]
    monkeypatch.setenv(name, os.pathsep.join(folders))
    assert _backends._compiler_reason() is None


@pytest.mark.parametrize(
    ("default", "asked"), [("posix_local", "posix_prefix"), ("venv", "venv"), ("nt", "nt")]
)
def test_headers_are_looked_for_where_triton_does(
    default: str, asked: str, compiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {asked: str(compiles)}
    monkeypatch.setattr(_backends.sysconfig, "get_default_scheme", lambda: default)
    monkeypatch.setattr(_backends.sysconfig, "get_path", lambda name, scheme: folders[scheme])
    assert _backends._compiler_reason() is None


@pytest.mark.skipif(triton_package_reason() is not None, reason=str(triton_package_reason()))
def test_the_driver_is_looked_for_where_triton_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from triton.backends.nvidia import driver

    def refuse(*args: Any, **options: Any) -> bytes:
        raise FileNotFoundError("/sbin/ldconfig")

    monkeypatch.setattr(subprocess, "check_output", refuse)
    monkeypatch.delenv("TRITON_LIBCUDA_PATH", raising=False)
    try:
        driver.libcuda_dirs.cache_clear()
        library, folders = _backends._find_driver()
        assert library in ("libcuda.so", "libcuda.so.1") and folders == []
        monkeypatch.setenv("TRITON_LIBCUDA_PATH", str(tmp_path))
        assert _backends._find_driver() == (library, [str(tmp_path)])
    finally:
        driver.libcuda_dirs.cache_clear()


@pytest.mark.parametrize("name", ["TRITON_HOME", "HOME"])
def test_the_cache_is_by_default_below_the_home(
    name: str, compiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.delenv("TRITON_HOME", raising=False)
    monkeypatch.setenv(name, str(compiles))
    assert _backends._compiler_reason() is None
    (compiles / ".triton").touch()
    assert f"cannot write to {compiles / '.triton' / 'cache'};" in str(_backends._cache_reason())
    (compiles / ".triton").unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK)  # read-only
    assert _backends._cache_reason() is not None


def test_what_autograd_records() -> None:
    leaf = torch.ones(1, requires_grad=True)
    assert not records_gradient(torch.ones(1))
    assert records_gradient(torch.ones(1), leaf)
    with torch.no_grad():
        assert not records_gradient(leaf)
