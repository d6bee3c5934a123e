"""Numbers, times and lists as text."""

import re
from typing import Any

import pfcore
from pfcore.runs.durations import duration


def revision(version: str = pfcore.__version__) -> str:
    """The tag of a released version, else the branch."""
    return f"v{version}" if re.fullmatch(r"\d+(\.\d+)*", version) else "main"


def listed(items: list[str]) -> str:
    """A list in words, such as "a, b and c"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def number(value: float) -> str:
    """A number with two significant digits, such as 170, 0.0028 or 9×10⁻⁷."""
    rounded = float(f"{value:.2g}")
    if rounded == 0 or 1e-4 <= abs(rounded) < 1e5:
        return f"{rounded:,.6f}".rstrip("0").rstrip(".").replace("-", "−")
    mantissa, exponent = f"{rounded:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa.removesuffix('.0').replace('-', '−')}×10{raised}"


def megabytes(amount: float) -> str:
    """An amount of memory, such as "640 MB" or "1.2 GB"."""
    return f"{amount / 1000:.1f} GB" if amount >= 1000 else f"{round(amount, -1):.0f} MB"


def expectation(measured: dict[str, Any]) -> str:
    """Time and memory in words, such as "40 s and 640 MB", from `seconds` and `peak_mb`."""
    seconds = duration(measured["seconds"])
    peak = measured["peak_mb"]
    return seconds if peak is None else f"{seconds} and {megabytes(peak)}"


def count(amount: int, one: str) -> str:
    """A count with its noun, such as "1 record" or "1,200 records"."""
    return f"{amount:,} {one}{'s' * (amount != 1)}"
