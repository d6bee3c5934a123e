"""What a reader's device keeps of the book, to read it without a network: `offline.json`.

Every page and what it shows: pictures in both themes, scripts, styles, fonts, and of what the lines
under the figures lead to, provenance and citation. The figures' data and drawings, and the
notebooks, stay with the network: they are as large again, and for other machines than a phone.

`book/_static/offline.js` copies what is listed and compares it with its hash, and
`book/_root/worker.js`, which has to lie at the root to answer for all pages, reads from the copy.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pfcore

LIST = "offline.json"
# Folder at the root -> what is kept of it; "" stands for the root itself.
PAGES = {".html", ".js", ".css", ".svg", ".png", ".woff", ".woff2"}
KEPT = {
    "": {".html", ".js"},
    "book": PAGES,
    "_images": PAGES,
    "_static": PAGES,
    "figures": {".html", ".png", ".json", ".bib"},
}
# The icons once more as a script, which no page loads (theme_fixes.py); the worker keeps itself.
LEFT_OUT = ("all.min.js", "worker.js")
HASH_DIGITS = 16


def listed(folder: Path) -> dict[str, Any]:
    """The list of a built book.

    Returns:
      `files`: by path, the first digits of the SHA-256 and the size in bytes; `bytes`, of all of
      them; `version`, which changes when any of them does; `release`, pfcore's version.
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


def _write(app: Any, exception: Exception | None) -> None:
    if exception is None and app.builder.name == "html":
        found = listed(Path(app.outdir))
        Path(app.outdir, LIST).write_text(json.dumps(found, indent=0), encoding="utf-8")


def setup(app: Any) -> dict[str, Any]:
    app.add_js_file("offline.js", loading_method="defer")
    # After everything that writes files when the build ends.
    app.connect("build-finished", _write, priority=950)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
