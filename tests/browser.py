"""A browser for the tests that look at pages: the Chromium, Chrome or Edge of this machine."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
)
USUAL_PLACES = [  # macOS, then below the folders of programs on Windows
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
]
for variable in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA"):
    for program in (
        "Google/Chrome/Application/chrome.exe",
        "Microsoft/Edge/Application/msedge.exe",
    ):
        if variable in os.environ:
            USUAL_PLACES.append(str(Path(os.environ[variable]) / program))
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def find_chromium() -> str | None:
    """The path of a browser that playwright can drive, or None."""
    on_the_path = (shutil.which(name) for name in NAMES)
    usual = (place for place in USUAL_PLACES if Path(place).exists())
    return next((found for found in (*on_the_path, *usual) if found), None)


@contextmanager
def open_browser():
    """A headless browser; where there is none the test is skipped, or fails if NEED_BROWSER=1."""
    executable = find_chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        executable = None
    if executable is None:
        say = pytest.fail if os.environ.get("NEED_BROWSER") else pytest.skip
        say("this test needs playwright and a Chromium, Chrome or Edge on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
