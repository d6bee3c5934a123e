"""Import the records that a GPU job computed into `book/records`.

    python tools/gpu/take.py FOLDER [--only NAME ...]

FOLDER is the output of `run.py`. Each record of its `records.tar.gz` is stored in the folder that
belongs to its configuration, with the commit of the tree that computed it. Then run `make
registry`.
"""

import argparse
import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from pfcore import records

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 2 * 10**6


def take(results: Path, to: Path, only: list[str] | None = None) -> list[Path]:
    """Import records; returns their folders.

    Raises:
      ValueError: a record is damaged, or one of its files is too large to be stored.
    """
    commit = json.loads((results / "job.json").read_text(encoding="utf-8"))["commit"]
    taken = []
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(results / "records.tar.gz") as archive:
            archive.extractall(scratch, filter="data")
        for path in sorted(Path(scratch).glob(f"*/{records.RECORD}")):
            if only and path.parent.name not in only:
                continue
            record = records.read(path.parent)
            info = dict(record.info)
            info["commit"] = info.get("commit") or commit
            wanted = {name: info[name] for name in ("experiment", "config")}
            folder = to / f"{info['experiment']}-{records.digest(wanted)}"
            shutil.rmtree(folder, ignore_errors=True)
            records.write(records.Record(record.arrays, info), folder)
            for file in folder.iterdir():
                if file.stat().st_size > LIMIT:
                    raise ValueError(f"{file} has {file.stat().st_size:,} bytes, over {LIMIT:,}")
            taken.append(folder)
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", nargs="*", help="names of jobs")
    args = parser.parse_args()
    for folder in take(args.results, ROOT / "book" / "records", args.only):
        print(folder.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
