"""Draw docs/images/explorer.jpg: a report as a screen and a phone show it, in a headless browser.

    adcam demo --work-dir work
    python tools/report_picture.py work/report docs/images/explorer.jpg

It needs playwright (`pip install '.[dev]'`) and a Chromium that is installed.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

SCREEN, PHONE = (1320, 860), (400, 860)  # pixels
GAP = 16
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Take both pictures and put them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("report", type=Path, help="the folder of report.html")
    parser.add_argument("out", type=Path, help="the picture, JPEG")
    args = parser.parse_args()
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        parser.error(f"there is none of {', '.join(BROWSERS)}")
    page = (args.report / "report.html").resolve().as_uri()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        screen = take(browser, page, SCREEN, "light", view="mask")
        phone = take(browser, page, PHONE, "dark", view="both")
        browser.close()
    space = np.full((screen.shape[0], GAP, 3), 255, np.uint8)
    both = np.concatenate([screen, space, phone], axis=1)
    Image.fromarray(both).save(args.out, quality=82, optimize=True)


def take(
    browser: Any, address: str, size: tuple[int, int], scheme: str, *, view: str
) -> np.ndarray:
    """Show the explorer of a report, with masks of a threshold that was moved; RGB uint8."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page.goto(address)
    page.wait_for_selector("#explorer .panel canvas")
    page.select_option('[data-part="view"]', view)
    page.select_option('[data-part="rule"]', "steepest")
    page.evaluate("document.getElementById('explorer').scrollIntoView()")
    page.wait_for_timeout(500)  # small pictures come as they are scrolled to
    png = page.screenshot()
    page.close()
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


if __name__ == "__main__":
    main()
