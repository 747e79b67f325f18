"""A headless Chromium for tests of pages; they are skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


class Watched:
    """A page of which all requests and errors are kept.

    Attributes:
        page: Playwright's page.
        requests: The address of every request.
        errors: What the console called an error, and what was thrown.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self._hear(message.type, message.text))

    def _hear(self, kind: str, text: str) -> None:
        if kind == "error":
            self.errors.append(text)

    def check_quiet(self) -> None:
        """Fail if there was an error, or a request to anything but this machine's files."""
        assert self.errors == []
        away = [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]
        assert away == []


@contextmanager
def open_browser() -> Iterator[Any]:
    """Start a browser; the test is skipped where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pages are tested with playwright, which is not installed"
    )
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"pages are tested in a browser, but there is none of {', '.join(NAMES)}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(browser: Any, path: Path, **options: Any) -> Watched:
    """Open a file, as by a double click.

    Args:
        browser: What :func:`open_browser` gave.
        path: The file.
        options: Those of a new page: ``viewport``, ``color_scheme`` and the like.
    """
    watched = Watched(browser.new_page(**options))
    watched.page.goto(path.resolve().as_uri())
    return watched
