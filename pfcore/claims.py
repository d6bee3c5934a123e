"""The claims that the book puts to the test: measured, judged, and written where they are read.

Each notebook ends by calling `report`; the book's last page shows what `collect` finds.
"""

import html
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

FOLDER_VARIABLE = "PFCORE_CLAIMS_DIR"
VERDICTS = ("holds", "holds in part", "fails")


class Claim(NamedTuple):
    """A sentence, the number that decides it, and the verdict.

    Attributes:
      id: "C1" and so on, or "C4b" where a claim has parts.
      statement: the claim, in words that name what `number` is.
      number: as measured.
      tolerance: what the number is held against, such as "< 1e-6".
      verdict: "holds", "holds in part" or "fails", computed from the number.
      figure: anchor of the figure that shows it.
      rerun_tolerance: relative difference allowed to a rerun elsewhere; None where the number is
        at the level of rounding, so that only the verdict is compared.
    """

    id: str
    statement: str
    number: float
    tolerance: str
    verdict: str
    figure: str
    rerun_tolerance: float | None = 0.1


def verdict(*conditions: Any) -> str:
    """ "holds" if all conditions do, "fails" if none does, else "holds in part"."""
    held = [bool(condition) for condition in conditions]
    return VERDICTS[0] if all(held) else VERDICTS[1] if any(held) else VERDICTS[2]


def combined(claims: Iterable[Claim]) -> str:
    """The verdict on a claim as a whole: that of its parts where they agree, else "holds in part".

    Raises:
      ValueError: there are no parts, or one has an unknown verdict.
    """
    found = {claim.verdict for claim in claims}
    if not found:
        raise ValueError("no verdict without claims")
    if unknown := found.difference(VERDICTS):
        raise ValueError(f"verdict must be one of {VERDICTS}, got {min(unknown)!r}")
    return found.pop() if len(found) == 1 else VERDICTS[1]


def in_parts(found: dict[str, list[Claim]]) -> dict[str, list[tuple[str, Claim]]]:
    """Claims by the id of the whole ("C4" for C4, C4b, …), each part with its notebook.

    Args:
      found: as `collect` returns it.

    Returns:
      The paper's claims (C) first, then those beyond it (B), by their numbers.
    """
    parts: dict[str, list[tuple[str, Claim]]] = {}
    for notebook, claims in found.items():
        for claim in claims:
            whole = re.sub(r"(?<=\d)[a-z]+$", "", claim.id)
            parts.setdefault(whole, []).append((notebook, claim))
    return dict(sorted(parts.items(), key=lambda item: _number([item[1][0][1]])))


_COLUMNS = ("claim", "what", "measured", "asked", "verdict")
_NO_CLAIMS = (
    "No claims here yet: run the chapters' notebooks in this folder first. Each ends by writing "
    "its claims to the folder “claims” beside it, from which this table is collected."
)


def _cells(claim: Claim) -> tuple[str, ...]:
    return (
        claim.id,
        claim.statement,
        f"{claim.number:.2g}",
        claim.tolerance,
        claim.verdict,
    )


def _html_row(claim: Claim, notebook: str | None) -> str:
    cells = [html.escape(cell) for cell in _cells(claim)]
    if notebook is not None:
        cells[0] = f'<a href="{notebook}.html#{claim.figure}">{cells[0]}</a>'
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


class Report:
    """Claims as a table: HTML in a notebook, plain text elsewhere."""

    def __init__(self, claims: dict[str, list[Claim]], link: bool):
        self.claims = claims
        self.link = link

    def __repr__(self) -> str:
        if not self.claims:
            return _NO_CLAIMS
        rows = [_cells(claim) for claims in self.claims.values() for claim in claims]
        return "\n".join(" | ".join(row) for row in rows)

    def _repr_html_(self) -> str:
        if not self.claims:
            return f"<p>{_NO_CLAIMS}</p>"
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        body = "".join(
            _html_row(claim, notebook if self.link else None)
            for notebook, claims in self.claims.items()
            for claim in claims
        )
        return f'<table class="claims"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def report(notebook: str, claims: Iterable[Claim], folder: str | Path | None = None) -> Report:
    """Write a notebook's claims to `<folder>/<notebook>.json` and return them as a table.

    Args:
      notebook: the notebook's name, without folder or ending.
      claims: what was found.
      folder: where to write; by default the folder named by the environment variable
        PFCORE_CLAIMS_DIR, else `claims` beside the notebook.

    Raises:
      ValueError: a verdict is unknown, or a number is not finite.
    """
    claims = list(claims)
    for claim in claims:
        if claim.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {VERDICTS}, got {claim.verdict!r}")
        if not math.isfinite(claim.number):
            raise ValueError(f"claim {claim.id} has no finite number: {claim.number!r}")
    folder = Path(folder or os.environ.get(FOLDER_VARIABLE) or "claims")
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "notebook": notebook,
        "claims": [
            # Two digits: more would change with the machine that ran it.
            claim._asdict() | {"number": float(f"{float(claim.number):.2g}")}
            for claim in claims
        ],
    }
    (folder / f"{notebook}.json").write_text(json.dumps(content, indent=1) + "\n")
    return Report({notebook: claims}, link=False)


def collect(folder: str | Path | None = None) -> dict[str, list[Claim]]:
    """All claims found in a folder (default: `claims`), by notebook, in the order of their ids."""
    found = {}
    for path in sorted(Path(folder or "claims").glob("*.json")):
        content = json.loads(path.read_text())
        found[content["notebook"]] = [Claim(**claim) for claim in content["claims"]]
    return dict(sorted(found.items(), key=lambda item: _number(item[1])))


def overview(found: dict[str, list[Claim]]) -> Report:
    """All claims in one table; each id links to the figure that shows it.

    Without any, as beside a notebook that was copied alone, it says how to get them.
    """
    return Report(found, link=True)


def _number(claims: list[Claim]) -> tuple[int, int]:
    """Letter and number of the first claim: the paper's (C) before what goes beyond it (B)."""
    order = "CB"
    keys = [
        (order.find(claim.id[:1]) % (len(order) + 1), int("".join(filter(str.isdigit, claim.id))))
        for claim in claims
    ]
    return min(keys, default=(0, 0))
