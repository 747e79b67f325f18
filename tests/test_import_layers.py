"""Who may import whom: the picture in docs/architecture.md, held by a test."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import adcam
from adcam.data.shapes import make_shapes
from adcam.installation import EXTRAS

PACKAGE = Path(adcam.__file__).resolve().parent
ROOT = PACKAGE.parent
STAGES = ("data", "models", "cams", "masks", "boxes", "metrics", "report", "seg")
# Imported when they are used: what an extra brings, and compilers that not every machine can run.
OPTIONAL = (*EXTRAS, "triton", "numba")


@dataclass(frozen=True)
class Import:
    """One imported module, e.g. ``"adcam.ops.diffusion"``, and where the statement stands."""

    module: str
    path: Path
    line: int
    at_top_level: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module}"


def find_imports(source: str, path: Path) -> Iterator[Import]:
    """Yield every import of a file; ``from a import b`` counts as ``a.b``.

    Everything outside functions runs on import and counts as top level, except the body of
    ``if TYPE_CHECKING:``.
    """
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = parts[:-1]

    def visit(node: ast.AST, at_top_level: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, path, node.lineno, at_top_level)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield Import(f"{module}.{alias.name}", path, node.lineno, at_top_level)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                yield from visit(child, False)
            for child in node.orelse:
                yield from visit(child, at_top_level)
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, at_top_level and not is_function)

    yield from visit(ast.parse(source), True)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


# In a wheel, the configs are beside the modules.
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "configs" not in path.parents]
IMPORTS = [
    found for path in FILES for found in find_imports(path.read_text(encoding="utf-8"), path)
]


def imports_below(folder: Path) -> list[Import]:
    return [found for found in IMPORTS if folder == found.path or folder in found.path.parents]


def test_finds_every_form_of_import() -> None:
    source = """
import torch.nn as nn
from . import sibling
from .. import structures
from ..ops.diffusion import diffuse
if TYPE_CHECKING:
    import mmseg
def late():
    from mmseg import models
class Body:
    import triton
"""
    found = list(find_imports(source, PACKAGE / "cams" / "example.py"))

    assert [(f.module, f.at_top_level) for f in found] == [
        ("torch.nn", True),
        ("adcam.cams.sibling", True),
        ("adcam.structures", True),
        ("adcam.ops.diffusion.diffuse", True),
        ("mmseg", False),
        ("mmseg.models", False),
        ("triton", True),
    ]


# Who may import whom, from the bottom up. A room may import what stands in the rooms listed for it,
# and nothing of ours besides itself; docs/architecture.md draws the same order.
BASE = (
    "errors",
    "limits",
    "version",
    "structures",
    "files",
    "remote_files",
    "parquet_pages",
    "parquet",
    "options",
    "overrides",
    "method_options",
    "plain_config",
    "settings",
    "progress",
    "installation",
)
WORKFLOW = {
    "labeling": (*BASE, "ops", *STAGES),
    "convert": (*BASE, "ops", *STAGES, "labeling"),
    "project": (*BASE, "data"),
    "training": (*BASE, "ops", *STAGES, "labeling"),
    "evaluation": (*BASE, "ops", *STAGES, "labeling"),
    "recipe": (*BASE, "ops", *STAGES, "labeling", "training", "evaluation"),
    "demo": (*BASE, "ops", *STAGES, "labeling", "training", "evaluation", "recipe"),
    "cli": (
        *(*BASE, "ops", *STAGES, "labeling", "convert", "training", "evaluation", "recipe"),
        *("demo", "project"),
    ),
}
ROOMS = {
    "errors": (),
    "version": (),
    "structures": ("errors",),
    "limits": ("errors",),
    "files": ("errors", "version", "limits"),
    "remote_files": ("errors", "files"),
    "parquet_pages": (),
    "parquet": ("errors", "limits", "remote_files", "parquet_pages"),
    "options": ("errors",),
    "overrides": ("errors",),
    "method_options": ("errors", "options", "ops"),
    "plain_config": ("errors", "limits", "files"),
    # Settings check the options of methods, CRFs and networks, which therefore know no settings.
    "settings": (
        *("errors", "limits", "version", "options", "method_options", "plain_config", "files"),
        *("structures", "installation", "ops", "cams", "masks", "models"),
    ),
    "progress": ("errors",),
    "installation": ("errors", "version", "ops"),
    "ops": (),
    **dict.fromkeys(
        STAGES,
        ("errors", "limits", "version", "options", "method_options", "structures", "files", "ops"),
    ),
    "data": (
        *("errors", "limits", "version", "options", "structures", "files", "remote_files"),
        *("parquet", "plain_config", "settings", "ops"),
    ),
    **WORKFLOW,
}


# Arrows that the move into rooms left climbing: (room, what it imports). They are to go.
CLIMBING: set[tuple[str, str]] = set()


@pytest.mark.parametrize("room", ROOMS)
def test_no_arrow_climbs(room: str) -> None:
    folder = PACKAGE / room if (PACKAGE / room).is_dir() else PACKAGE / f"{room}.py"
    allowed = [f"adcam.{name}" for name in (*ROOMS[room], room)] + ["adcam.__version__"]
    allowed += [module for place, module in CLIMBING if place == room]
    wrong = [
        str(found)
        for found in imports_below(folder)
        if is_within(found.module, "adcam")
        and found.module != "adcam"
        and not any(is_within(found.module, package) for package in allowed)
    ]
    assert wrong == []


def test_modules_of_labeling_import_one_another_in_one_direction() -> None:
    folder = PACKAGE / "labeling"
    graph: dict[str, set[str]] = {module_of(path): set() for path in folder.glob("[!_]*.py")}
    for found in IMPORTS:
        if found.path.parent == folder:
            below = {module for module in graph if is_within(found.module, module)}
            graph[module_of(found.path)] |= below
    order = [*graphlib.TopologicalSorter(graph).static_order()]  # a circle raises CycleError
    assert order.index("adcam.labeling.steps") < order.index("adcam.labeling.labeler")


def test_every_module_is_in_a_room() -> None:
    names = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    assert names - {"__init__", "__main__", "__pycache__", "assets", "configs", "py.typed"} == set(
        ROOMS
    )


# Rooms with a circle that an import inside a function hides.
CIRCULAR = ("ops", "labeling", "cli")


@pytest.mark.parametrize("room", sorted({*ROOMS} - {*CIRCULAR}))
def test_modules_of_a_room_import_one_way(room: str) -> None:
    modules = {module_of(path) for path in FILES}
    graph: dict[str, set[str]] = {}
    for found in imports_below(PACKAGE / room):
        imported = found.module if found.module in modules else found.module.rpartition(".")[0]
        graph.setdefault(module_of(found.path), set()).add(imported)
    graphlib.TopologicalSorter(graph).prepare()  # which raises an error that names the circle


SHARED_BY_COMMANDS = ("arguments", "console", "labeler", "project", "signals")


def test_commands_share_five_modules_and_load_nothing_to_be_listed() -> None:
    shared = [f"adcam.cli.{name}" for name in SHARED_BY_COMMANDS] + [
        "adcam.errors",
        "adcam.progress",
    ]
    wrong = [
        str(found)
        for found in imports_below(PACKAGE / "cli")
        if is_within(found.module, "adcam")
        and (found.at_top_level or is_within(found.module, "adcam.cli"))
        and found.path.stem not in ("__init__", "__main__")
        and not any(is_within(found.module, module) for module in shared)
        and found.module != "adcam.cli.build_parser"  # which completion describes to shells
    ]
    assert wrong == []


# Where each optional package may be imported, below adcam/; kernels may import their compilers.
PLACES = {
    "mmengine": ("settings.py", "models/classifier.py", "seg", "training", "recipe", "demo"),
    "mmseg": ("seg",),
    "mmcv": ("seg",),
    "tensorboard": (),
    "jinja2": ("report",),
    "markupsafe": ("report",),
    "matplotlib": ("report",),
    "skimage": ("demo",),
    "cv2": ("ops/level_boxes/reference.py",),
    "pycocotools": ("data/coco_json.py",),
    "pydensecrf": ("ops/dense_crf/pydensecrf.py",),
    "ray": ("labeling/ray_engine.py",),
    "pyarrow": ("parquet.py",),
    "fsspec": ("remote_files.py",),
    "transformers": ("models/transformers_vit.py",),
    "open_clip": ("models/clip_text.py",),
}


def may_import(path: Path, package: str) -> bool:
    """Whether a file may import an optional package at all."""
    if package in ("triton", "numba"):
        return is_kernel_file(path)
    return any(is_below(path, place) for place in PLACES[package])


def is_below(path: Path, place: str) -> bool:
    return PACKAGE / place in (path, *path.parents)


def is_kernel_file(path: Path) -> bool:
    """Files of kernels: under ops/, their compiler in the name."""
    return is_below(path, "ops") and ("triton" in path.stem or path.stem.startswith("numba_"))


def is_imported_when_used(path: Path) -> bool:
    """Files that need an optional package from their first line on.

    They are kernels, what belongs to mmseg, and the rooms that train or follow a training.
    """
    if path.parent == PACKAGE / "seg" and path.stem == "__init__":
        return False
    rooms = ("seg", "training", "recipe", "demo", "models/classifier.py")
    return is_kernel_file(path) or any(is_below(path, room) for room in rooms)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_what_needs_an_optional_package_is_imported_when_used() -> None:
    late = {module_of(path) for path in FILES if is_imported_when_used(path)}
    assert "adcam.seg.segmenter" in late
    wrong = [
        str(found)
        for found in IMPORTS
        if found.at_top_level
        and not is_imported_when_used(found.path)
        and any(is_within(found.module, module) for module in late)
    ]
    assert wrong == []


def test_optional_packages_have_one_place() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        for package in OPTIONAL
        if is_within(found.module, package) and not may_import(found.path, package)
    ]
    assert wrong == []


def test_optional_packages_are_imported_when_used() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if found.at_top_level
        and not is_imported_when_used(found.path)
        and any(is_within(found.module, package) for package in OPTIONAL)
    ]
    assert wrong == []


def modules_after(*statements: str) -> set[str]:
    """Return the top-level modules loaded by a fresh interpreter that ran the statements."""
    code = "\n".join(
        [*statements, "import json, sys", "print(json.dumps(sorted(sys.modules)), flush=True)"]
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr
    return {name.partition(".")[0] for name in json.loads(run.stdout)}


def test_import_adcam_is_light() -> None:
    heavy = {"torch", "torchvision", "timm", "numpy", "scipy", *EXTRAS}
    assert modules_after("import adcam") & heavy == set()


def test_import_ops_needs_no_model_library() -> None:
    assert modules_after("import adcam.ops") & {"timm", "torchvision", *EXTRAS} == set()


WATCH = """
import os, sys

def note(event, args):
    if event == "import":
        with open({log!r}, "a") as file:
            file.write(f"{{os.getpid()}} {{args[0]}}\\n")

sys.addaudithook(note)
"""


def test_a_run_imports_nothing_that_it_does_not_need(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """By an audit hook in each of its processes: the first, the server, the workers."""
    make_shapes(tmp_path, num_train=17, num_val=1, size_hw=(32, 32), seed=0)
    log = tmp_path / "log"
    (tmp_path / "sitecustomize.py").write_text(WATCH.format(log=str(log)))
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    words = ["generate", "JPEGImages", "--checkpoint", tiny_checkpoint, "--labels", "predicted"]
    with subprocess.Popen(
        [sys.executable, "-m", "adcam", *words, "--crf", "--workers", "2", "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
    ) as run:
        assert run.wait() == 0
    seen = {tuple(line.split()) for line in log.read_text().splitlines()}
    who = {
        name: {pid for pid, module in seen if is_within(module, name)}
        for name in ("timm", "jinja2", "rich", "scipy.sparse", "pandas", "sklearn", *EXTRAS)
    }
    assert str(run.pid) in who["timm"] and len(who["timm"]) > 1
    first = {name for name, pids in who.items() if str(run.pid) in pids}
    others = {name for name, pids in who.items() if pids - {str(run.pid)}}
    # The report of the first process is a page, of which workers know nothing.
    assert first <= {"timm", "jinja2", "rich"} and others == {"timm"}


def test_import_adcam_takes_under_a_second() -> None:
    # Processor time of the import statement: a busy machine does not lengthen it.
    code = "import time; t = time.process_time(); import adcam; print(time.process_time() - t)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert float(run.stdout) < 1.0


def test_every_module_imports_without_optional_packages() -> None:
    modules = sorted(
        module_of(path)
        for path in FILES
        if not is_imported_when_used(path) and path.name != "__main__.py"
    )
    blocked = [f"sys.modules[{name!r}] = None" for name in OPTIONAL if name != "triton"]
    loaded = modules_after("import sys", *blocked, *(f"import {module}" for module in modules))
    assert "adcam" in loaded
