"""`python tools/picture_of_report.py REPORT.html PICTURE.png`: the first screen of a report, for the README.

Needs playwright and a chromium (or what CHROME names); `fastce bench --html REPORT.html` makes the report.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH = 900


def main(report: Path, picture: Path) -> None:
    browser = os.environ.get("CHROME") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(
            viewport={"width": WIDTH, "height": 1000}, color_scheme="light"
        )
        page.goto(report.resolve().as_uri())
        page.wait_for_selector(".main-svg")
        end = page.locator("figure").first.bounding_box()
        if end is None:
            sys.exit(f"{report} has no picture")
        clip = {"x": 0.0, "y": 0.0, "width": float(WIDTH), "height": end["y"] + end["height"] + 16}
        page.screenshot(path=picture, clip=clip)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
