"""Write the package's list of the book's stored records, `pfcore/runs/records.json`.

    python tools/registry.py

Run it after every change in `book/records`.
"""

import json
import sys
from pathlib import Path

from pfcore.runs import store

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "book" / "records"
REGISTRY = ROOT / "pfcore" / "runs" / store.REGISTRY


def text() -> str:
    """The content of the registry."""
    return json.dumps(store.describe(RECORDS), indent=1) + "\n"


def main() -> int:
    content = text()
    REGISTRY.write_text(content, encoding="utf-8")
    print(f"{len(json.loads(content))} records are in {REGISTRY.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
