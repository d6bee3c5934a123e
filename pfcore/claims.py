"""The claims that the book tests: measured, judged and stored.

Each notebook ends with the `Page` of its claims: for each a sentence, a number and a condition,
from which the verdict is computed. The book's page of claims shows the result of `collect`.
"""

import html
import json
import math
import operator
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
      statement: the claim, in words that describe `number`.
      number: as measured.
      tolerance: the condition on the number, such as "< 1e-6".
      verdict: "holds", "holds in part" or "fails", computed from the number.
      figure: anchor of the figure that shows it.
      rerun_tolerance: relative difference allowed in a rerun on another machine; None where the
        number is at the level of machine epsilon and only the verdict is compared.
    """

    id: str
    statement: str
    number: float
    tolerance: str
    verdict: str
    figure: str
    rerun_tolerance: float | None = 0.1


def verdict(*conditions: Any) -> str:
    """ "holds" if all conditions hold, "fails" if none does, else "holds in part"."""
    held = [bool(condition) for condition in conditions]
    return VERDICTS[0] if all(held) else VERDICTS[1] if any(held) else VERDICTS[2]


_RELATIONS = {
    "<": operator.lt,
    "≤": operator.le,
    ">": operator.gt,
    "≥": operator.ge,
    "=": operator.eq,
}


def meets(number: Any, condition: str) -> bool:
    """Whether a number meets a condition written as text.

    Args:
      number: a Python, NumPy or JAX number; NaN meets no condition.
      condition: "< 1", "≤ 1", "> 1", "≥ 1", "= 1" or "1", "within 0.1 of 2", or "0.9 to 1.1" (ends
        included). A remark in parentheses may follow.

    Raises:
      ValueError: the condition has none of these forms.

    Example:
      >>> from pfcore import claims
      >>> claims.meets(1.95, "within 0.1 of 2"), claims.meets(0.3, "> 1 (and < 1 for NGF)")
      (True, False)
    """
    try:
        match condition.partition("(")[0].split():
            case [relation, bound] if relation in _RELATIONS:
                return bool(_RELATIONS[relation](number, float(bound)))
            case ["within", distance, "of", center]:
                return bool(abs(number - float(center)) <= float(distance))
            case [low, "to", high]:
                return bool(float(low) <= number <= float(high))
            case [value]:
                return bool(number == float(value))
    except ValueError:
        pass  # a bound that is not a number
    raise ValueError(
        f"condition must be like '< 1', '= 1', 'within 0.1 of 2' or '0.9 to 1.1', got {condition!r}"
    )


def check(
    id: str,
    statement: str,
    number: Any,
    condition: str,
    *,
    figure: str,
    in_part: str | None = None,
    also: Any = None,
    rerun_tolerance: float | None = 0.1,
) -> Claim:
    """A claim, with the verdict computed from its number and its condition.

    Args:
      id: as in `Claim`.
      statement: as in `Claim`.
      number: as measured.
      condition: the condition on the number, in the syntax of `meets`.
      figure: anchor of the figure that shows it.
      in_part: a weaker condition; if only this one is met, the claim holds in part.
      also: a second condition, evaluated by the caller; if only one of the two is met, the claim
        holds in part.
      rerun_tolerance: as in `Claim`.

    Raises:
      ValueError: a condition cannot be read.

    Example:
      >>> from pfcore import claims
      >>> claims.check("C4", "PF's distance over NGF's", 0.31, "< 1", figure="fig-banana").verdict
      'holds'
    """
    held = [meets(number, condition)]
    if in_part is not None:
        held.append(meets(number, in_part))
    if also is not None:
        held.append(bool(also))
    return Claim(id, statement, float(number), condition, verdict(*held), figure, rerun_tolerance)


def combined(claims: Iterable[Claim]) -> str:
    """The verdict on a claim as a whole: that of its parts where they agree, else "holds in part".

    Raises:
      ValueError: there are no parts, or one has an unknown verdict.
    """
    verdicts = {claim.verdict for claim in claims}
    if not verdicts:
        raise ValueError("no verdict without claims")
    if unknown := verdicts.difference(VERDICTS):
        raise ValueError(f"verdict must be one of {VERDICTS}, got {min(unknown)!r}")
    return verdicts.pop() if len(verdicts) == 1 else VERDICTS[1]


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
      claims: the notebook's claims.
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


class Page:
    """The claims of one notebook, each under the figure that shows it.

    Args:
      notebook: the notebook's name, without folder or ending.

    Example:
      >>> from pfcore.claims import Page
      >>> page = Page("edge_of_stability")
      >>> page.figure("fig-edge-digits")
      >>> page.check("C8", "Median of hλ₀ over steps 500 to 1,000", 2.02, "within 0.3 of 2")
      >>> [(claim.id, claim.verdict) for claim in page.claims]
      [('C8', 'holds')]
    """

    def __init__(self, notebook: str):
        self.notebook = notebook
        self.claims: list[Claim] = []
        self._figure = ""

    def figure(self, anchor: str) -> None:
        """Set the figure of the claims that follow."""
        self._figure = anchor

    def check(self, id: str, statement: str, number: Any, condition: str, **options: Any) -> None:
        """Add a claim; arguments and `options` are those of `pfcore.claims.check`.

        Raises:
          ValueError: no figure was set before, or a condition cannot be read.
        """
        if not self._figure:
            raise ValueError(f"claim {id} has no figure; call figure(anchor) before check")
        claim = check(id, statement, number, condition, figure=self._figure, **options)
        self.claims.append(claim)

    def report(self, folder: str | Path | None = None) -> Report:
        """Write the claims, in the order of their ids, and show them, as `pfcore.claims.report`."""
        ordered = sorted(self.claims, key=lambda claim: (_number([claim]), claim.id))
        return report(self.notebook, ordered, folder)


def collect(folder: str | Path | None = None) -> dict[str, list[Claim]]:
    """All claims stored in a folder (default: `claims`), by notebook, in the order of their ids."""
    found = {}
    for path in sorted(Path(folder or "claims").glob("*.json")):
        content = json.loads(path.read_text())
        found[content["notebook"]] = [Claim(**claim) for claim in content["claims"]]
    return dict(sorted(found.items(), key=lambda item: _number(item[1])))


def overview(found: dict[str, list[Claim]]) -> Report:
    """All claims in one table; each id links to the figure that shows it.

    If there are none, as beside a notebook copied alone, the table explains how to get them.
    """
    return Report(found, link=True)


def _number(claims: list[Claim]) -> tuple[int, int]:
    """Letter and number of the first claim: the paper's (C) before those beyond it (B)."""
    order = "CB"
    keys = [
        (order.find(claim.id[:1]) % (len(order) + 1), int("".join(filter(str.isdigit, claim.id))))
        for claim in claims
    ]
    return min(keys, default=(0, 0))
