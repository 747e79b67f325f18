"""The documentation as a site: every page has its place, and it builds without a warning."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WHY = "mkdocs and its theme are not installed (extra `docs`)"


class PlainLoader(yaml.SafeLoader):
    """Reads mkdocs.yml without making the Python objects that it asks for."""


PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def read_nav(entry: Any) -> Iterator[str]:
    """Yield the pages of the navigation."""
    if isinstance(entry, str):
        yield entry
    else:
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from read_nav(inner)


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs", reason=WHY)
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "tools" / "site_hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.checkout
def test_every_page_has_one_place_in_the_navigation() -> None:
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=PlainLoader)
    pages = list(read_nav(config["nav"]))
    written = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    added = {p.parent.name for p in (ROOT / "adcam" / "ops").glob("*/README.md")}
    root = {"index.md", "contributing.md", "changelog.md", "security.md", "third_party_notices.md"}
    operations = {f"operations/{name}.md" for name in added}
    assert sorted(pages) == sorted(written | root | operations | {"api.md"})


def test_links_are_moved_with_their_page(hooks: ModuleType) -> None:
    pages = {"README.md": "index.md", "adcam/ops/diffusion/README.md": "operations/diffusion.md"}

    def move(text: str, source: str, target: str) -> str:
        moved = hooks.move_links(text, source, target, pages)
        assert isinstance(moved, str)
        return moved

    assert move("[a](docs/cli.md#masks)", "README.md", "index.md") == "[a](cli.md#masks)"
    assert move("![a](docs/images/a.jpg)", "README.md", "index.md") == "![a](images/a.jpg)"
    assert move("[a](../README.md)", "docs/cli.md", "cli.md") == "[a](index.md)"
    assert (
        move("[a](../adcam/ops/diffusion/README.md)", "docs/cli.md", "cli.md")
        == "[a](operations/diffusion.md)"
    )
    source = "adcam/ops/diffusion/README.md"
    assert move("[a](../../../docs/cli.md)", source, pages[source]) == "[a](../cli.md)"
    assert move("[a](LICENSE) [b](https://c.d/e.md)", "README.md", "index.md") == (
        "a [b](https://c.d/e.md)"
    )
    assert move("[a](#b)", "README.md", "index.md") == "[a](#b)"


def test_reference_names_what_is_public_and_no_members(hooks: ModuleType) -> None:
    inventory = ["a.B(x, *, y)", "a.B.c()", "a.B._d", "a.__version__", "a.E = 3", "a.f.g(x)"]
    assert hooks.list_public(inventory) == ["a.B", "a.E", "a.f.g"]
    page = hooks.write_reference(["a.B"])
    assert page.endswith("\n::: a.B\n\n")


@pytest.mark.checkout
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason=WHY)
    build = ["-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        [sys.executable, *build],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    start = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'src="images/overview.jpg"' in start
    for title in ("All six", "Results, and what to doubt", "Third parties"):
        assert title in start
    assert (tmp_path / "site" / "images" / "overview.jpg").is_file()
    reference = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    for name in ("adcam.PseudoLabeler", "adcam.refine", "adcam.ops.dense_crf.dense_crf"):
        assert f'id="{name}"' in reference
    assert ":class:" not in reference
    # Nothing is loaded from elsewhere: the pages work offline.
    assert re.findall(r'<(?:script|link rel="stylesheet")[^>]*//[^>]*>', start) == []
