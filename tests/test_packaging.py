"""What an installation contains and depends on."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import entry_points, metadata
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import adcam
from adcam import installation

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
LICENSES = ("LICENSE", "THIRD_PARTY_NOTICES.md")

# Distribution that provides an import name or depends on the one that does, where names differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "huggingface_hub": "timm",
    "mmcv": "onedl-mmcv",
    "mmengine": "onedl-mmengine",
    "mmseg": "onedl-mmsegmentation",
    "open_clip": "open-clip-torch",
    "pydensecrf": "pydensecrf2",
    "skimage": "scikit-image",
    "triton": "torch",
    "typing_extensions": "torch",
    "yaml": "pyyaml",
}


@pytest.fixture
def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The keyword arguments that setup.py hands to setuptools."""
    arguments: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: arguments.update(given))
    runpy.run_path(str(ROOT / "setup.py"))
    return arguments


def requirements_of(arguments: dict[str, Any]) -> Iterator[Requirement]:
    for lines in (arguments["install_requires"], *arguments["extras_require"].values()):
        yield from map(Requirement, lines)


def read_pins(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pins_for(python: str, pins: list[Requirement]) -> dict[str, list[str]]:
    """Return all versions pinned for each package on one Python."""
    found: dict[str, list[str]] = {}
    for pin in pins:
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            found.setdefault(canonicalize_name(pin.name), []).append(
                str(pin.specifier).removeprefix("==")
            )
    return found


def test_installed_metadata() -> None:
    installed = metadata("adcam")
    assert installed["Version"] == adcam.__version__
    assert installed["License-Expression"] == "Apache-2.0"
    supported = SpecifierSet(installed["Requires-Python"])
    assert [p for p in ("3.9", *PYTHONS, "3.14") if supported.contains(p)] == list(PYTHONS)
    (script,) = entry_points(group="console_scripts", name="adcam")
    assert script.value == "adcam.cli:main"


def test_console_script_starts() -> None:
    (script,) = entry_points(group="console_scripts", name="adcam")
    assert callable(script.load())


def test_constraints_pin_exact_versions() -> None:
    for pin in read_pins("constraints.txt"):
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin


@pytest.mark.checkout
@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_cover_every_requirement_once(
    setup_arguments: dict[str, Any], python: str
) -> None:
    pinned = pins_for(python, read_pins("constraints.txt"))
    assert {name: versions for name, versions in pinned.items() if len(versions) > 1} == {}
    for requirement in requirements_of(setup_arguments):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            (version,) = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), (requirement, version)


@pytest.mark.checkout
def test_lower_bounds_are_the_tested_ones(setup_arguments: dict[str, Any]) -> None:
    tested = pins_for("3.10", read_pins("constraints-lower.txt"))
    bounds = [*setup_arguments["install_requires"], *setup_arguments["extras_require"]["train"]]
    for requirement in map(Requirement, bounds):
        (version,) = tested[canonicalize_name(requirement.name)]
        (bound,) = requirement.specifier
        assert bound.operator == ">="
        assert Version(bound.version) == Version(version), requirement


@pytest.mark.checkout
def test_users_are_told_the_extra_that_brings_a_module(setup_arguments: dict[str, Any]) -> None:
    core = {canonicalize_name(Requirement(r).name) for r in setup_arguments["install_requires"]}
    for module, extra in installation.EXTRAS.items():
        brought = {
            canonicalize_name(Requirement(r).name) for r in setup_arguments["extras_require"][extra]
        }
        assert canonicalize_name(DISTRIBUTIONS.get(module, module)) in brought - core, module


@pytest.mark.checkout
def test_every_extra_is_used(setup_arguments: dict[str, Any]) -> None:
    used = {*installation.EXTRAS.values(), "dev", "peers", "docs"}  # for tests, for the site
    assert set(setup_arguments["extras_require"]) == used


@pytest.mark.checkout
def test_every_import_is_declared(setup_arguments: dict[str, Any]) -> None:
    declared = {canonicalize_name(r.name) for r in requirements_of(setup_arguments)}
    known = sys.stdlib_module_names | {"adcam"}
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "adcam").rglob("*.py")
        for name in imported_names(path)
        if name not in known and canonicalize_name(DISTRIBUTIONS.get(name, name)) not in declared
    }
    assert missing == set()


def imported_names(path: Path) -> Iterator[str]:
    """Yield the top-level module of every absolute import in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this package; the sources it was built from are in ``source`` beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", *LICENSES):
        shutil.copy(ROOT / name, source)
    for name in ("adcam", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run(
        [sys.executable, "-c", build], cwd=source, check=True, capture_output=True, text=True
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.checkout
def test_wheel_holds_package_and_configs_and_nothing_else(wheel: Path) -> None:
    source = wheel.parent / "source"
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    # READMEs beside the operations are for readers of the source.
    package = {
        path.relative_to(source).as_posix()
        for path in (source / "adcam").rglob("*")
        if path.is_file() and path.suffix != ".md"
    }
    configs = {
        f"adcam/{path.relative_to(source).as_posix()}"
        for path in (source / "configs").rglob("*")
        if path.is_file()
    }
    assert packed == package | configs


@pytest.mark.checkout
def test_wheel_states_what_indexes_ask_for(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (info,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        stated = Metadata.from_email(archive.read(info), validate=True)  # as an index would
        folder = info.removesuffix("METADATA")
        licenses = {
            n.rpartition("/")[2] for n in archive.namelist() if n.startswith(f"{folder}lic")
        }
    assert (stated.name, str(stated.version)) == ("adcam", adcam.__version__)
    assert licenses == set(LICENSES)
    assert stated.description_content_type == "text/markdown"
    pythons = [c.rpartition(" ")[2] for c in stated.classifiers or () if ":: Python :: 3." in c]
    assert pythons == list(PYTHONS)


@pytest.mark.checkout
def test_source_archive_builds_what_the_repository_builds(tmp_path: Path) -> None:
    """It holds what setup.py and the tests read, and nothing that git does not know."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    source = tmp_path / "source"
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    build = "from setuptools import build_meta; build_meta.build_sdist('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        packed = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    made = {name for name in packed if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert packed - made <= set(tracked.stdout.splitlines())
    left_out = set(tracked.stdout.splitlines()) - packed
    assert {name for name in left_out if not name.startswith(".")} == set()


def test_version_is_one() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {adcam.__version__}\n" in citation
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.findall(r"(?m)^## (\S+)", changes)[0]
    assert newest in (adcam.__version__, "Unreleased")


@pytest.mark.checkout
def test_an_installed_package_finds_its_configs_by_name(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    name = "voc12/adcam_deit-small_60e_voc12"
    short = name.removesuffix("_60e_voc12")
    code = f"from adcam.installation import find_config; print(find_config({short!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == tmp_path / "site" / "adcam" / "configs" / f"{name}.py"
