"""Compare new claims with the stored ones.

    python tools/check_claims.py _build/check/claims

Claims and verdicts must be the same. A number may differ by its `rerun_tolerance`, relative to the
larger of the two. A claim without that field is compared by its verdict only.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tables import aligned

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "book" / "claims"

Claims = dict[tuple[str, str], dict[str, Any]]


def read(folder: Path) -> Claims:
    """All claims of a folder, by notebook and id."""
    claims: Claims = {}
    for path in sorted(folder.glob("*.json")):
        page = json.loads(path.read_text(encoding="utf-8"))
        for claim in page["claims"]:
            claims[page["notebook"], claim["id"]] = claim
    return claims


def agree(stored: float, fresh: float, tolerance: float) -> bool:
    """Whether two numbers agree."""
    both_missing = math.isnan(stored) and math.isnan(fresh)
    return both_missing or math.isclose(stored, fresh, rel_tol=tolerance)


def ordered(keys: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Notebooks in the order of their names, claims in the order of numbers and parts."""

    def place(key: tuple[str, str]) -> tuple[str, int, str]:
        notebook, claim = key
        return notebook, int("0" + "".join(filter(str.isdigit, claim))), claim

    return sorted(keys, key=place)


def judge(
    stored: dict[str, Any] | None, fresh: dict[str, Any] | None, *, numbers: bool = True
) -> str:
    """The difference between a stored and a new claim; "" if there is none.

    Args:
      stored: the stored claim, or None.
      fresh: the new claim, or None.
      numbers: whether to compare numbers as well as verdicts.
    """
    if stored is None:
        return "not among the stored claims"
    if fresh is None:
        return "was not written by the rerun"
    if stored["verdict"] != fresh["verdict"]:
        return f"verdict was {stored['verdict']!r}, is {fresh['verdict']!r}"
    tolerance = stored.get("rerun_tolerance") if numbers else None
    if tolerance is not None and not agree(stored["number"], fresh["number"], tolerance):
        return f"number differs by more than {tolerance:g} relative"
    return ""


def show(number: float) -> str:
    """A number with a few significant digits."""
    return f"{number:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("fresh", type=Path, help="folder with the claims of a rerun")
    parser.add_argument("--stored", type=Path, default=STORED, help="default: book/claims")
    args = parser.parse_args()

    stored, fresh = read(args.stored), read(args.fresh)
    if not stored:
        print(f"no claims are stored in {args.stored}")
        return 1
    order = ordered(stored.keys() | fresh.keys())
    rows = [("notebook", "claim", "stored", "fresh", "verdict", "")]
    wrong = 0
    for key in order:
        before, after = stored.get(key), fresh.get(key)
        problem = judge(before, after)
        wrong += bool(problem)
        rows.append(
            (
                *key,
                show(before["number"]) if before else "-",
                show(after["number"]) if after else "-",
                str((after or before or {})["verdict"]),
                problem or "ok",
            )
        )
    print(aligned(rows))
    if wrong:
        print(f"   {wrong} of {len(order)} claims came out differently")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
