"""Hooks of mkdocs.yml: pages from outside docs/, their links, and the reference of public names.

    make docs

No page is kept twice. README.md becomes the first page, the READMEs of adcam/ops and the pages of
the repository's root join those of docs/, and their relative links are made to fit. The reference
has the names of tests/api_surface.txt, which `make api` keeps.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Pages of the repository's root, and what they are called in the site.
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "THIRD_PARTY_NOTICES.md": "third_party_notices.md",
}
API_PAGE = "api.md"
API_START = """# Reference

The public names of adcam, from their docstrings. They are the names of `tests/api_surface.txt`: a
name that is not here may change without notice.

"""
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
ROLE = re.compile(r":(?:mod|class|func|meth|attr|data):<code>~?([\w.]+)</code>")


def map_pages(root: Path) -> dict[str, str]:
    """Return each page from outside docs/, by its path in the repository: its path in the site."""
    operations = sorted((root / "adcam" / "ops").glob("*/README.md"))
    pages = {p.relative_to(root).as_posix(): f"operations/{p.parent.name}.md" for p in operations}
    return {**ROOT_PAGES, **pages}


def move_links(text: str, source: str, target: str, pages: dict[str, str]) -> str:
    """Return a page's text with relative links that hold where the page stands in the site.

    Args:
        text: Markdown.
        source: Path of the page in the repository.
        target: Its path in the site.
        pages: As :func:`map_pages` returns them.
    """
    here, there = posixpath.dirname(source), posixpath.dirname(target) or "."

    def move(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        if re.match(r"[a-z]+:", link):
            return match[0]
        path = posixpath.normpath(posixpath.join(here, link))
        inside = pages.get(path) or (path[5:] if path.startswith("docs/") else None)
        if inside is None:
            # A file of the repository that is no page: its path is named, and not linked.
            return f"{before.lstrip('!')[1:-2]}"
        return before + posixpath.relpath(inside, there) + after

    return LINK.sub(move, text)


def list_public(inventory: Iterable[str]) -> list[str]:
    """Return the dotted names of the lines of an inventory, without the members of classes."""
    names = [re.split(r"[( ]", line.strip(), maxsplit=1)[0] for line in inventory if line.strip()]
    known = set(names)
    return [name for name in names if name.rpartition(".")[0] not in known and "__" not in name]


def write_reference(names: Iterable[str]) -> str:
    """Return the page that mkdocstrings fills with the docstrings of the given names."""
    return API_START + "".join(f"::: {name}\n\n" for name in names)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, and the reference."""
    for source, target in map_pages(ROOT).items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=text))
    inventory = (ROOT / "tests" / "api_surface.txt").read_text(encoding="utf-8")
    reference = write_reference(list_public(inventory.splitlines()))
    files.append(File.generated(config, API_PAGE, content=reference))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Make the links of every page hold in the site."""
    pages = map_pages(ROOT)
    sources = {target: source for source, target in pages.items()}
    target = page.file.src_uri
    return move_links(markdown, sources.get(target, f"docs/{target}"), target, pages)


def on_page_content(html: str, **_: object) -> str:
    """Show the roles of docstrings as the names they hold."""
    return ROLE.sub(r"<code>\1</code>", html)
