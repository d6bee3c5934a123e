"""The report: counts of verdicts, all claims, all stored records, and measured times."""

from typing import Any

from docutils import nodes

from _ext.claims_pages import signs, stored
from _ext.claims_pages.generated import Generated, verdict_counts
from _ext.common import nodes as to
from _ext.common import text
from pfcore.claims import VERDICTS, Claim, combined, in_parts


class ReportCounts(Generated):
    """`{report-counts}`: the numbers of claims, parts and records, and the total time."""

    def run(self) -> list[nodes.Node]:
        parts, records = in_parts(self.claims()), self.records()
        wholes = [combined(claim for _, claim in found) for found in parts.values()]
        pieces = [claim.verdict for found in parts.values() for _, claim in found]
        boxes = [
            _box(
                signs.verdict_word(verdict),
                str(wholes.count(verdict)),
                f"of {len(wholes)} claims",
                f"{pieces.count(verdict)} of {len(pieces)} parts",
            )
            for verdict in VERDICTS
        ]
        seconds = sum(record.info["wall_time_s"] for record in records)
        took = f"in {text.duration(seconds)}"
        boxes.append(_box("computed", str(len(records)), "stored records", took))
        return [to.make("div", *boxes, class_="report-counts")]


def _box(name: nodes.Node | str, value: str, *notes: str) -> to.element:
    return to.make(
        "p",
        to.make("span", name, class_="report-box-name"),
        to.make("b", value),
        *(to.make("span", note, class_="report-box-note") for note in notes),
    )


COLUMNS = ("Claim", "What was measured", "Measured", "Asked", "Rerun within", "Verdict", "Figure")


class ReportClaims(Generated):
    """`{report-claims}`: every part of every claim, by chapter."""

    def run(self) -> list[nodes.Node]:
        filtering = {"data_for": "report-claims", "data_verdicts": ",".join(VERDICTS)}
        found = self.claims()
        return [
            to.make("div", class_="report-filter", hidden=None, **filtering),
            to.make(
                "div",
                *(self._chapter(notebook, claims) for notebook, claims in found.items()),
                id="report-claims",
            ),
        ]

    def _chapter(self, notebook: str, claims: list[Claim]) -> to.element:
        held = text.listed(verdict_counts(claim.verdict for claim in claims))
        head = to.make("tr", *(to.make("th", c, scope="col") for c in COLUMNS), role="row")
        table = to.make(
            "table",
            to.make("thead", head, role="rowgroup"),
            to.make("tbody", *(self._row(claim) for claim in claims), role="rowgroup"),
            class_="report-claims",
            role="table",
        )
        return to.make(
            "section",
            to.make("p", to.page_link(self.page(notebook)), class_="report-chapter"),
            to.make("details", to.make("summary", held, class_="report-held"), table, open=None),
            class_="report-group",
        )

    def _row(self, claim: Claim) -> to.element:
        cells: list[nodes.Node | str] = [
            to.make("a", claim.id, href=f"#part-{claim.id}"),
            claim.statement,
            text.number(claim.number),
            claim.tolerance,
            rerun_within(claim),
            signs.verdict_word(claim.verdict),
            to.figure_link(claim.figure),
        ]
        return to.make(
            "tr",
            *(
                to.make("td", cell, data_label=label, role="cell")
                for label, cell in zip(COLUMNS, cells, strict=True)
            ),
            id=f"part-{claim.id}",
            role="row",
            data_verdict=claim.verdict,
        )


def rerun_within(claim: Claim) -> str:
    """The tolerance of a rerun, in words."""
    return (
        "verdict only" if claim.rerun_tolerance is None else f"±{100 * claim.rerun_tolerance:.0f} %"
    )


class ReportRecords(Generated):
    """`{report-records}`: every stored record, by experiment."""

    def run(self) -> list[nodes.Node]:
        records = self.records()
        used = stored.used_by(self.folder)
        groups: dict[str, list[stored.Stored]] = {}
        for record in records:
            groups.setdefault(record.info["experiment"], []).append(record)
        return [
            nodes.paragraph("", profile_sentence(records)),
            *(self._group(name, found, used) for name, found in groups.items()),
        ]

    def _group(
        self, name: str, found: list[stored.Stored], used: dict[str, list[str]]
    ) -> to.element:
        took = text.duration(sum(record.info["wall_time_s"] for record in found))
        return to.make(
            "section",
            to.make(
                "p",
                to.make("b", name),
                f" {stored.experiments.summary(name)} ",
                to.make(
                    "span",
                    f"{text.count(len(found), 'record')}, computed in {took}",
                    class_="report-held",
                ),
                class_="report-experiment",
            ),
            *(self._record(record, used.get(record.name, [])) for record in found),
            class_="report-records",
        )

    def _record(self, record: stored.Stored, pages: list[str]) -> to.element:
        info = record.info
        entries: list[tuple[str, list[nodes.Node | str]]] = [
            ("Command", [to.code(command(record))]),
            ("Seeds", [seeds(info["config"])]),
            ("Data", [info["data"]["source"]]),
            ("SHA-256 of the samples", [to.code(info["data"]["sha256"][:16]), " …"]),
            ("Computed on", [f"{info['device']}, JAX {info['versions']['jax']}"]),
            ("Commit", [to.code(commit(info["commit"]))]),
            ("Ended", [ended(info)]),
            ("Wall time", [text.duration(info["wall_time_s"])]),
            ("Folder", [to.code(f"book/records/{record.name}")]),
        ]
        if pages:
            links = [to.page_link(self.page(page)) for page in pages]
            entries.insert(0, ("Shown in", to.joined(links)))
        terms = [
            node for name, value in entries for node in (to.make("dt", name), to.make("dd", *value))
        ]
        # Data and network are already shown, in words.
        shown = [change for change in record.changes if not change.startswith("problem=")]
        changes = [to.code(stored.abridged(change)) for change in shown]
        problem = info["config"]["problem"]
        return to.make(
            "details",
            to.make(
                "summary",
                to.make(
                    "span",
                    to.make("b", f"{problem['data']}, {problem['network']}"),
                    " ",
                    *(to.joined(changes, " ") or [f"the {record.profile} profile as it is"]),
                ),
                " ",
                to.make("span", text.duration(info["wall_time_s"]), class_="report-held"),
            ),
            to.make("dl", *terms),
            class_="report-record",
            id=f"record-{record.name}",
        )


def command(record: stored.Stored) -> str:
    """The command that recomputes a record."""
    line = f"pfcore run {record.info['experiment']} --profile {record.profile}"
    return " ".join([line, *(f"--set {change}" for change in record.changes)])


def seeds(config: dict[str, Any]) -> str:
    """The seeds of a configuration, in words."""
    return ", ".join(map(str, config["seeds"] if "seeds" in config else [config["seed"]]))


def commit(name: str | None) -> str:
    """Seven digits of a commit, with a + for a checkout with uncommitted changes."""
    return "not known" if name is None else name.rstrip("+")[:7] + "+" * name.endswith("+")


def ended(info: dict[str, Any]) -> str:
    """Whether training diverged, as some runs of a sweep are expected to."""
    if not info["diverged"]:
        return "without divergence"
    step = info["diverged_at_step"]
    return "with divergence" if step is None else f"with divergence, first at step {step:,}"


def profile_sentence(found: list[stored.Stored]) -> str:
    """A sentence on the profiles and machines of the stored records."""
    full = sum(record.profile == "full" for record in found)
    gpu = sum("CPU" not in record.info["device"] for record in found)
    machines = sorted({f"{r.info['device']}, JAX {r.info['versions']['jax']}" for r in found})
    total = text.duration(sum(record.info["wall_time_s"] for record in found))
    return (
        f"{text.count(len(found), 'stored record')}, computed in {total} in all on "
        f"{text.listed(machines)}. {_is(full)} of the full profile, and "
        f"{_was(gpu)} computed on a GPU."
    )


def _is(number: int) -> str:
    return f"{number or 'None'} of them {'are' if number > 1 else 'is'}"


def _was(number: int) -> str:
    return f"{number or 'none'} {'were' if number > 1 else 'was'}"


class ReportTimes(Generated):
    """`{report-times}`: time and memory of every notebook."""

    def run(self) -> list[nodes.Node]:
        times = self.times()
        if not times:
            return [nodes.paragraph("", "Times have not been measured for this build.")]
        # In the order of the claims, then those without claims.
        order = [*(name for name in self.claims() if name in times), *times]
        rows = [
            to.make(
                "tr",
                to.make("th", to.page_link(self.page(notebook)), scope="row"),
                *(to.make("td", cell) for cell in time_cells(times[notebook])),
            )
            for notebook in dict.fromkeys(order)
        ]
        heads = ("Notebook", "Quick profile", "Full profile")
        return [
            nodes.paragraph("", times_sentence(times)),
            to.make(
                "table",
                to.make("thead", to.make("tr", *(to.make("th", h, scope="col") for h in heads))),
                to.make("tbody", *rows),
                class_="report-times",
            ),
        ]


def times_sentence(times: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The machine on which times were measured, and their sum."""
    entries = [entry for profiles in times.values() for entry in profiles.values()]
    machines = text.listed(sorted({entry["machine"] for entry in entries}))
    quick = [profiles["quick"]["seconds"] for profiles in times.values() if "quick" in profiles]
    total = (
        f"{text.count(len(quick), 'notebook')} in the quick profile, {text.duration(sum(quick))}"
    )
    return f"Wall time, and the most memory that was held, measured on {machines}: {total}."


def time_cells(found: dict[str, Any]) -> list[str]:
    """Time and memory of a notebook in each profile."""
    return [
        text.expectation(found[profile]) if profile in found else "not measured"
        for profile in ("quick", "full")
    ]
