"""What may be in the repository at all: sizes, paths, hosts, dangerous calls."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from adcam.ops._backends import _LOWEST_TRITON
from adcam.options import read_meanings
from adcam.settings import SegmentationSettings, Settings

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20

# Put together from pieces, so that this file passes its own test.
MACHINE_PATHS = ["/" + name + "/" for name in ("work", "root", "home", "Users", "opt")]
REGISTRY_HOSTS = [
    "py" + "pi.org",
    "python" + "hosted.org",
    "download.py" + "torch.org",
    "ana" + "conda.org",
    "ghc" + "r.io",
]


def tracked_files() -> list[Path]:
    """Paths of all files under version control, relative to the root."""
    try:
        run = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [Path(name) for name in run.stdout.split("\0") if name]
    return [path for path in paths if (ROOT / path).is_file()]


def tracked_lines() -> Iterator[tuple[str, str]]:
    """Yield ``("path:line", text)`` for every line of every tracked text file."""
    for path in tracked_files():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            yield f"{path}:{number}", line


def test_no_large_files() -> None:
    def limit(path: Path) -> int:
        return 3 * MIB if path.suffix == ".safetensors" else MIB

    sizes = {path: (ROOT / path).stat().st_size for path in tracked_files()}
    assert {str(path): size for path, size in sizes.items() if size > limit(path)} == {}


def test_no_path_of_a_machine() -> None:
    # Not a machine's path when something precedes it: https://host/home/, data/work/.
    pattern = re.compile(r"(?<![\w.~$)}/-])(?:" + "|".join(map(re.escape, MACHINE_PATHS)) + ")")
    assert pattern.search("see " + MACHINE_PATHS[0] + "x")
    assert [where for where, line in tracked_lines() if pattern.search(line)] == []


def test_no_package_registry_host() -> None:
    pattern = re.compile("|".join(map(re.escape, REGISTRY_HOSTS)))
    assert [where for where, line in tracked_lines() if pattern.search(line)] == []


def test_readme_names_both_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in lines
    assert lines[-1] == "make test"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("is_ci", [False, True])
def test_without_the_oldest_triton_make_says_so_and_ci_fails(tmp_path: Path, is_ci: bool) -> None:
    done = make(tmp_path, "test-kernels", CI="true" if is_ci else "")
    assert "Triton 3.2.0 is missing: it compiles no kernel." in done.stdout
    assert (done.returncode != 0) == is_ci


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_a_triton_of_each_minor_version_compiles_the_kernels(tmp_path: Path) -> None:
    """The pinned one does so in the other tests; `make test` has time for the oldest beside it."""
    pins = re.findall(r"(?m)^triton==3\.(\d+)", (ROOT / "constraints.txt").read_text())
    versions = {}
    for target in ("test-kernels", "test-all"):
        done = make(tmp_path, "--dry-run", target)
        versions[target] = re.findall(r"PYTHONPATH=\S+/triton-(\d+)\.(\d+)\.\d+ ", done.stdout)
    assert versions["test-kernels"] == [tuple(map(str, _LOWEST_TRITON))]
    between = range(_LOWEST_TRITON[1], max(map(int, pins)))
    assert versions["test-all"] == [("3", str(minor)) for minor in between]


def make(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run make with an environment that seems complete but has no pip."""
    for stamp in (".installed", ".extras"):
        (folder / stamp).touch()
    return subprocess.run(
        ["make", f"VENV={folder}", *words],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


def find_dangers(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and description of each call or handler that the project forbids.

    Pickles of strangers run code when they are read, and a handler of every exception hides
    bugs. ``except BaseException`` that cleans up and raises again is fine.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
            if keywords.get("allow_pickle", "False") != "False":
                yield node.lineno, "allow_pickle"
            if keywords.get("weights_only", "True") != "True":
                yield node.lineno, "weights_only is not True"
            name = ast.unparse(node.func)
            if name == "torch.load" and "weights_only" not in keywords:
                yield node.lineno, "torch.load without weights_only=True"
            if name in ("pickle.load", "pickle.loads"):
                yield node.lineno, name
        elif isinstance(node, ast.ExceptHandler):
            caught = {"BaseException"} if node.type is None else set(names_in(node.type))
            raises_again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if "Exception" in caught or ("BaseException" in caught and not raises_again):
                yield node.lineno, "handler of every exception"


def names_in(node: ast.expr) -> Iterator[str]:
    return (n.id for n in ast.walk(node) if isinstance(n, ast.Name))


@pytest.mark.parametrize(
    "line",
    [
        "np.load(path, allow_pickle=True)",
        "torch.load(path, weights_only=False)",
        "torch.load(path)",
        "pickle.loads(data)",
        "try: f()\nexcept: pass",
        "try: f()\nexcept Exception: raise",
        "try: f()\nexcept (OSError, Exception): pass",
        "try: f()\nexcept BaseException: pass",
    ],
)
def test_dangers_are_found(line: str) -> None:
    assert list(find_dangers(line))


@pytest.mark.parametrize(
    "line",
    [
        "np.load(path, allow_pickle=False)",
        "torch.load(path, weights_only=True)",
        "try: f()\nexcept OSError: pass",
        "try: f()\nexcept BaseException:\n    clean()\n    raise",
    ],
)
def test_safe_forms_pass(line: str) -> None:
    assert list(find_dangers(line)) == []


EXCEPTIONS = (
    # What a process and its workers send one another, as multiprocessing itself does; no file.
    "adcam/labeling/executor.py: pickle.loads",
    # What the processes of a run on Ray send one another, which Ray itself pickles; no file.
    "adcam/labeling/ray_engine.py: pickle.loads",
    # torch reads its own containers, but with our unpickler, which builds tensors and nothing else.
    "adcam/models/checkpoints.py: weights_only is not True",
    # A config is a program of the user, and whatever it raises is a mistake of the user.
    "adcam/settings.py: handler of every exception",
)


def test_no_dangers_in_the_code() -> None:
    found = [
        f"{path.relative_to(ROOT).as_posix()}: {what}"
        for path in code_files()
        for _, what in find_dangers(path.read_text(encoding="utf-8"))
    ]
    assert found == list(EXCEPTIONS)


def test_every_environment_variable_is_documented() -> None:
    in_python = re.compile(r"environ(?:\.get\(|\[)\s*[\"'](\w+)|getenv\([\"'](\w+)")
    in_configs = re.compile(r"\{\{\$(\w+):")
    read = {
        name
        for folder in ("adcam", "configs", "tools", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for pattern in (in_python, in_configs)
        for groups in pattern.finditer(path.read_text(encoding="utf-8"))
        for name in groups.groups()
        if name
    }
    documented = set(
        re.findall(r"`([A-Z][A-Z_]+)`", (ROOT / "docs" / "environment.md").read_text("utf-8"))
    )
    assert "ADCAM_SHARED" in read
    assert read - documented == set()


MAX_LINES, MAX_PARAMETERS = 60, 10

Function = ast.FunctionDef | ast.AsyncFunctionDef


def code_files() -> list[Path]:
    return [p for folder in ("adcam", "tools") for p in sorted((ROOT / folder).rglob("*.py"))]


def find_functions(path: Path) -> Iterator[Function]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def count_lines(function: Function) -> int:
    """Lines of a function from `def` to its end, without its docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def count_parameters(function: Function) -> int:
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return sum(1 for arg in named if arg is not None and arg.arg not in ("self", "cls"))


def test_lines_and_parameters_are_counted() -> None:
    source = '''
class A:
    @property
    def f(self, a, /, b, *c, d=1, **e):
        """Two
        lines."""
        if a:
            return b
        return c
'''
    (function,) = (n for n in ast.walk(ast.parse(source)) if isinstance(n, Function))
    assert (count_lines(function), count_parameters(function)) == (4, 5)


def test_functions_are_short() -> None:
    """At most 60 lines and 10 parameters, but for kernels: their tiles are what they are."""
    too_long = {
        f"{path.relative_to(ROOT).as_posix()}: {function.name}"
        for path in code_files()
        if not path.stem.startswith("numba_") and "triton" not in path.stem
        for function in find_functions(path)
        if count_lines(function) > MAX_LINES or count_parameters(function) > MAX_PARAMETERS
    }
    assert too_long == set()


# Methods that a library calls by their names.
CALLED_FROM_OUTSIDE = {
    *(
        "emit",
        "persistent_load",
        "_repr_png_",
        "_repr_html_",
        "val_step",
        "after_val_epoch",
        "before_train_iter",
    ),
    *("before_train", "before_train_epoch", "after_train_iter", "after_train_epoch"),
    *("after_train", "before_save_checkpoint", "load_checkpoint"),
    *("on_files", "on_page_markdown", "on_page_content"),
}


def test_every_function_is_used() -> None:
    """Outside its tests, or it is public: listed in tests/api_surface.txt."""
    words = Counter(
        word
        for folder in ("adcam", "tools", "configs")
        for suffix in ("*.py", "*.j2")
        for path in (ROOT / folder).rglob(suffix)
        for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))
    )
    public = set(re.findall(r"\w+", (ROOT / "tests" / "api_surface.txt").read_text("utf-8")))
    unused = [
        f"{path.relative_to(ROOT)}:{function.lineno}: {function.name}"
        for path in code_files()
        for function in find_functions(path)
        if words[function.name] == 1
        and not function.decorator_list  # registered, or a property
        and not function.name.startswith("__")
        and function.name not in public | CALLED_FROM_OUTSIDE
    ]
    assert unused == []


POINTER = re.compile(r"(?<![\w/])(?:docs|tools|tests|configs)/[\w./-]*|\b[\w/-]+\.md\b")


def find_pointers(text: str) -> list[str]:
    """The files of the repository that a text names and a wheel does not have."""
    names = [name.rstrip(".") for name in POINTER.findall(text)]
    names = [name for name in names if name != "report.md"]  # which reports write
    return [
        name
        for name in names
        if (ROOT / name).exists() or (ROOT / "docs" / name).exists() or name.startswith("docs/")
        # The configs travel in the wheel, and commands find them by these names.
        if name != "configs/" and not (name.startswith("configs/") and (ROOT / name).is_file())
    ]


def test_pointers_are_found() -> None:
    assert find_pointers("see docs/metrics.md.") == ["docs/metrics.md"]
    assert find_pointers("docs/results holds more; see configs/seg, README.md, metrics.md") == [
        "docs/results",
        "configs/seg",
        "README.md",
        "metrics.md",
    ]
    assert find_pointers("report.md, rulixiang/ToCo, tools/infer_cam_crf_label.py") == []
    assert find_pointers("adcam run configs/voc_animals/adcam_deit-tiny_fcn.py") == []


def test_no_text_for_users_names_a_file_that_the_wheel_lacks() -> None:
    """Help, messages, reports and the meanings of keys say the thing itself."""
    found = []
    for path in sorted((ROOT / "adcam").rglob("*")):
        if path.suffix in (".j2", ".js", ".css", ".html"):
            lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            texts = [(number, line.partition("// ")[0]) for number, line in lines]
        elif path.suffix == ".py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docs = {
                id(node.value)
                for parent in ast.walk(tree)
                if isinstance(parent, ast.Module | ast.ClassDef | ast.FunctionDef)
                for node in parent.body
                if isinstance(node, ast.Expr)
            }
            texts = [
                (node.lineno, node.value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
                if id(node) not in docs
            ]
        else:
            continue
        found += [(f"{path.name}:{line}", find_pointers(t)) for line, t in texts]
    entries = {**Settings.entries(), **SegmentationSettings.entries()}.values()
    sections = [kind for entry in entries for kind in entry.kinds()]
    found += [("a key", find_pointers(entry.text)) for entry in entries]
    found += [(k.__name__, find_pointers(m)) for k in sections for m in read_meanings(k).values()]
    assert [item for item in found if item[1]] == []
