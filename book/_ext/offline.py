"""Write `offline.json`, the list of files for reading the book offline.

It contains every page with its pictures in both themes, scripts, styles and fonts, and provenance
and citation of figures. Data and drawings of figures, and notebooks, are not included: they would
double the size, and are rarely used on a phone.

`book/_static/offline.js` copies the listed files and verifies their hashes. `book/_root/worker.js`
serves pages from the copy; it is at the root because the scope of a worker is its own folder.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pfcore

LIST = "offline.json"
# Folder at the root -> suffixes of the files to keep; "" is the root itself.
PAGES = {".html", ".js", ".css", ".svg", ".png", ".woff", ".woff2"}
KEPT = {
    "": {".html", ".js"},
    "book": PAGES,
    "_images": PAGES,
    "_static": PAGES,
    "figures": {".html", ".png", ".json", ".bib"},
}
# The icons as a script, which no page loads (theme_fixes.py), and the worker itself.
LEFT_OUT = ("all.min.js", "worker.js")
HASH_DIGITS = 16


def listed(folder: Path) -> dict[str, Any]:
    """The list of a built book.

    Returns:
      `files`: by path, the first digits of the SHA-256 and the size in bytes; `bytes`, the total
      size; `version`, which changes with any file; `release`, the version of pfcore.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        top = relative.parts[0] if len(relative.parts) > 1 else ""
        if path.suffix not in KEPT.get(top, ()) or path.name in LEFT_OUT or not path.is_file():
            continue
        content = path.read_bytes()
        files[relative.as_posix()] = (
            hashlib.sha256(content).hexdigest()[:HASH_DIGITS],
            len(content),
        )
    version = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:HASH_DIGITS]
    return {
        "version": version,
        "release": pfcore.__version__,
        "bytes": sum(size for _, size in files.values()),
        "files": files,
    }


def remove_old_pictures(folder: Path, shown: set[str]) -> None:
    """Remove pictures of pages as they were before an incremental build."""
    for path in folder.glob("*"):
        if path.name not in shown:
            path.unlink()


def _write(app: Any, exception: Exception | None) -> None:
    if exception is None and app.builder.name == "html":
        shown = {name for _, name in app.env.images.values()}
        remove_old_pictures(Path(app.outdir, app.builder.imagedir), shown)
        found = listed(Path(app.outdir))
        Path(app.outdir, LIST).write_text(json.dumps(found, indent=0), encoding="utf-8")


def setup(app: Any) -> None:
    app.add_js_file("offline.js", loading_method="defer")
    # After all other handlers that write files at the end of the build.
    app.connect("build-finished", _write, priority=950)
