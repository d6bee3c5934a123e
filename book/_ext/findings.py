"""Claims and their verdicts, stored records and measured times, put into pages when the book is
built: nothing of it is typed there.

`{claims-summary}` lists the claims, with the sentence that its body, a definition list, has for
each. `{report-counts}`, `{report-claims}`, `{report-records}` and `{report-times}` make up the
report. A claim without a sentence, a figure or a page that is not there: each is a warning of the
build, and so an error.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import findings_nodes as to
import findings_records as stored
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from pfcore.claims import VERDICTS, Claim, collect, combined, in_parts

PAPER, BEYOND = "C", "B"

Parts = list[tuple[str, Claim]]


def verdict_counts(verdicts: Iterable[str]) -> list[str]:
    """ "7 hold", "8 hold in part", "1 fails": those that occur."""
    found = Counter(verdicts)
    plural = {"holds": "hold", "holds in part": "hold in part", "fails": "fail"}
    return [f"{found[v]} {v if found[v] == 1 else plural[v]}" for v in VERDICTS if found[v]]


def listed(items: list[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


class _Generated(SphinxDirective):
    """What the directives share: where the book's files are, and that the page depends on them."""

    has_content = False

    @property
    def folder(self) -> Path:
        """The page's own folder; claims, records, times and notebooks are beside the page."""
        return Path(self.env.doc2path(self.env.docname)).parent

    def page(self, notebook: str) -> str:
        """The document's name of a notebook beside this page."""
        return str(Path(self.env.docname).with_name(notebook).as_posix())

    def claims(self) -> dict[str, list[Claim]]:
        """All claims by notebook."""
        self._depend("claims/*.json")
        return collect(self.folder / "claims")

    def records(self) -> list[stored.Stored]:
        """All stored records."""
        self._depend(f"records/*/{stored.records.RECORD}")
        return stored.stored(self.folder / "records")

    def times(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What every notebook took, by profile; nothing where nothing has been measured."""
        self._depend(stored.TIMES)
        return stored.measured(self.folder)

    def _depend(self, pattern: str) -> None:
        for path in self.folder.glob(pattern):
            self.env.note_dependency(str(path))


# ---- the landing page


class ClaimsSummary(_Generated):
    """The claims, one sentence and one verdict each; those beyond the paper folded away."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        parts, sentences = in_parts(self.claims()), self._sentences()
        for id in sorted(parts.keys() ^ sentences.keys()):
            lacks = "sentence here" if id in parts else "measured part in claims/"
            raise self.error(f"claim {id} has no {lacks}")
        paper, beyond = (
            {id: found for id, found in parts.items() if id.startswith(letter)}
            for letter in (PAPER, BEYOND)
        )
        folded = to.make(
            "details",
            to.make("summary", _counted("Beyond the paper: of", beyond)),
            self._list(beyond, sentences),
            class_="findings-beyond",
        )
        intro = nodes.paragraph("", _counted("Of the paper’s", paper))
        intro["classes"].append("findings-intro")
        return [intro, self._list(paper, sentences), folded]

    def _sentences(self) -> dict[str, list[nodes.Node]]:
        """The body's definition list: ids -> what is said of each."""
        body = nodes.Element()
        self.state.nested_parse(self.content, self.content_offset, body)
        return {
            item[0].astext(): list(item[1][0].children)
            for item in body.findall(nodes.definition_list_item)
        }

    def _list(self, claims: dict[str, Parts], sentences: dict[str, list[nodes.Node]]) -> to.element:
        items = [self._item(id, found, sentences[id]) for id, found in claims.items()]
        return to.make("ol", *items, class_="findings", role="list")

    def _item(self, id: str, parts: Parts, sentence: list[nodes.Node]) -> to.element:
        verdict = combined(claim for _, claim in parts)
        notebook, first = parts[0]
        docname = self.env.docname
        where = to.make(
            "span",
            to.figure_link(docname, first.figure),
            ", ",
            to.page_link(docname, self.page(notebook)),
            class_="finding-where",
        )
        return to.make(
            "li",
            to.mark(verdict),
            to.make("p", to.make("b", id), " ", *sentence, class_="finding-sentence"),
            to.make("span", verdict, class_=f"finding-verdict verdict-{to.slug(verdict)}"),
            where,
            to.make(
                "details",
                to.make("summary", *_strip(parts), class_="finding-strip"),
                to.make("ul", *(self._part(claim) for _, claim in parts)),
                class_="finding-parts",
            ),
            class_="finding",
            id=f"claim-{id}",
        )

    def _part(self, claim: Claim) -> to.element:
        return to.make(
            "li",
            to.verdict_word(claim.verdict),
            to.make(
                "span",
                f"{claim.statement}: ",
                to.make("b", to.number(claim.number)),
                f", asked {claim.tolerance} (",
                to.figure_link(self.env.docname, claim.figure),
                ")",
            ),
        )


def _counted(begin: str, claims: dict[str, Parts]) -> str:
    """How many claims there are, how many of each verdict, how many parts, how many hold."""
    wholes = [combined(claim for _, claim in parts) for parts in claims.values()]
    pieces = [claim.verdict for parts in claims.values() for _, claim in parts]
    return (
        f"{begin} {len(wholes)} claims, {listed(verdict_counts(wholes))}. They were measured in "
        f"{len(pieces)} parts, of which {pieces.count(VERDICTS[0])} hold."
    )


def _strip(parts: Parts) -> list[nodes.Node]:
    """A sign for each part, and how many hold."""
    held = sum(claim.verdict == VERDICTS[0] for _, claim in parts)
    words = "1 part" if len(parts) == 1 else f"{held} of {len(parts)} parts hold"
    return [*(to.mark(claim.verdict) for _, claim in parts), to.make("span", words)]


# ---- the report


class ReportCounts(_Generated):
    """How many claims, parts, records; how long all of it took."""

    def run(self) -> list[nodes.Node]:
        parts, records = in_parts(self.claims()), self.records()
        wholes = [combined(claim for _, claim in found) for found in parts.values()]
        pieces = [claim.verdict for found in parts.values() for _, claim in found]
        boxes = [
            _box(
                to.verdict_word(verdict),
                str(wholes.count(verdict)),
                f"of {len(wholes)} claims",
                f"{pieces.count(verdict)} of {len(pieces)} parts",
            )
            for verdict in VERDICTS
        ]
        seconds = sum(record.info["wall_time_s"] for record in records)
        took = f"in {to.duration(seconds)}"
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


class ReportClaims(_Generated):
    """Every part of every claim, by chapter."""

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
        docname = self.env.docname
        held = listed(verdict_counts(claim.verdict for claim in claims))
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
            to.make("p", to.page_link(docname, self.page(notebook)), class_="report-chapter"),
            to.make("details", to.make("summary", held, class_="report-held"), table, open=None),
            class_="report-group",
        )

    def _row(self, claim: Claim) -> to.element:
        cells: list[nodes.Node | str] = [
            to.make("a", claim.id, href=f"#part-{claim.id}"),
            claim.statement,
            to.number(claim.number),
            claim.tolerance,
            rerun_within(claim),
            to.verdict_word(claim.verdict),
            to.figure_link(self.env.docname, claim.figure),
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
    """How far the number may move in a rerun, in words."""
    return (
        "verdict only" if claim.rerun_tolerance is None else f"±{100 * claim.rerun_tolerance:.0f} %"
    )


class ReportRecords(_Generated):
    """Every stored record, by experiment."""

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
        took = to.duration(sum(record.info["wall_time_s"] for record in found))
        return to.make(
            "section",
            to.make(
                "p",
                to.make("b", name),
                f" {stored.experiments.summary(name)} ",
                to.make(
                    "span",
                    f"{to.count(len(found), 'record')}, computed in {took}",
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
            ("Wall time", [to.duration(info["wall_time_s"])]),
            ("Folder", [to.code(f"book/records/{record.name}")]),
        ]
        if pages:
            links = [to.page_link(self.env.docname, self.page(page)) for page in pages]
            entries.insert(0, ("Shown in", _joined(links)))
        terms = [
            node for name, value in entries for node in (to.make("dt", name), to.make("dd", *value))
        ]
        # Data and network stand before them, in words.
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
                    *(_spaced(changes) or [f"the {record.profile} profile as it is"]),
                ),
                " ",
                to.make("span", to.duration(info["wall_time_s"]), class_="report-held"),
            ),
            to.make("dl", *terms),
            class_="report-record",
            id=f"record-{record.name}",
        )


def _spaced(items: list[Any]) -> list[nodes.Node | str]:
    return [part for item in items for part in (item, " ")][:-1]


def _joined(items: list[Any]) -> list[nodes.Node | str]:
    return [part for item in items for part in (item, ", ")][:-1]


def command(record: stored.Stored) -> str:
    """The line that computes a record anew."""
    line = f"pfcore run {record.info['experiment']} --profile {record.profile}"
    return " ".join([line, *(f"--set {change}" for change in record.changes)])


def seeds(config: dict[str, Any]) -> str:
    """The seeds of a configuration, in words."""
    return ", ".join(map(str, config["seeds"] if "seeds" in config else [config["seed"]]))


def commit(name: str | None) -> str:
    """Seven digits, with the + of a checkout that was changed since."""
    return "not known" if name is None else name.rstrip("+")[:7] + "+" * name.endswith("+")


def ended(info: dict[str, Any]) -> str:
    """Whether training diverged: as it should in a sweep that is to show where it does."""
    if not info["diverged"]:
        return "without divergence"
    step = info["diverged_at_step"]
    return "with divergence" if step is None else f"with divergence, first at step {step:,}"


def profile_sentence(found: list[stored.Stored]) -> str:
    """What was not run, from what was."""
    full = sum(record.profile == "full" for record in found)
    gpu = sum("CPU" not in record.info["device"] for record in found)
    machines = sorted({f"{r.info['device']}, JAX {r.info['versions']['jax']}" for r in found})
    total = to.duration(sum(record.info["wall_time_s"] for record in found))
    return (
        f"{to.count(len(found), 'stored record')}, computed in {total} in all on "
        f"{listed(machines)}. {_is(full)} of the full profile, and "
        f"{_was(gpu)} computed on a GPU."
    )


def _is(number: int) -> str:
    return f"{number or 'None'} of them {'are' if number > 1 else 'is'}"


def _was(number: int) -> str:
    return f"{number or 'none'} {'were' if number > 1 else 'was'}"


class ReportTimes(_Generated):
    """Seconds and memory of every notebook."""

    def run(self) -> list[nodes.Node]:
        times = self.times()
        if not times:
            return [nodes.paragraph("", "Times have not been measured for this build.")]
        # As the claims come, then those without any.
        order = [*(name for name in self.claims() if name in times), *times]
        rows = [
            to.make(
                "tr",
                to.make("th", to.page_link(self.env.docname, self.page(notebook)), scope="row"),
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
    """On what the times were measured, and their sum."""
    entries = [entry for profiles in times.values() for entry in profiles.values()]
    machines = listed(sorted({entry["machine"] for entry in entries}))
    quick = [profiles["quick"]["seconds"] for profiles in times.values() if "quick" in profiles]
    total = f"{to.count(len(quick), 'notebook')} in the quick profile, {to.duration(sum(quick))}"
    return f"Wall time, and the most memory that was held, measured on {machines}: {total}."


def time_cells(found: dict[str, Any]) -> list[str]:
    """What a notebook took in each profile."""
    return [
        to.expectation(found[profile]) if profile in found else "not measured"
        for profile in ("quick", "full")
    ]


def setup(app: Any) -> dict[str, Any]:
    app.setup_extension("findings_nodes")
    app.add_directive("claims-summary", ClaimsSummary)
    app.add_directive("report-counts", ReportCounts)
    app.add_directive("report-claims", ReportClaims)
    app.add_directive("report-records", ReportRecords)
    app.add_directive("report-times", ReportTimes)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
