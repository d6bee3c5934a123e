"""Find Chromium on this machine: `python tools/chromium.py` prints its path, or fails."""

import os
import shutil
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """A Chromium given by $CHROMIUM, on the path, or installed by Playwright; None if missing.

    Raises:
      FileNotFoundError: the file that $CHROMIUM names does not exist.
    """
    named = os.environ.get("CHROMIUM")
    if named:
        if shutil.which(named) is None:
            raise FileNotFoundError(f"CHROMIUM={named!r} is not a program; unset or correct it")
        return named
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        bundled = playwright.chromium.executable_path
    return bundled if Path(bundled).is_file() else None


if __name__ == "__main__":
    path = find()
    if path is None:
        sys.exit(1)
    print(f"   {path}")
