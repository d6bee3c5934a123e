"""`{claims-summary}`: the claims on the first page, one sentence and one verdict each."""

from docutils import nodes

from _ext.claims_pages import signs
from _ext.claims_pages.generated import Generated, verdict_counts
from _ext.common import nodes as to
from _ext.common import text
from pfcore.claims import VERDICTS, Claim, combined, in_parts

PAPER, BEYOND = "C", "B"

Parts = list[tuple[str, Claim]]


class ClaimsSummary(Generated):
    """`{claims-summary}`: one sentence and one verdict for each claim; further claims folded."""

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
        """The body's definition list: ids -> sentence."""
        return {
            item[0].astext(): list(item[1][0].children)
            for node in self.parse_content_to_nodes()
            for item in node.findall(nodes.definition_list_item)
        }

    def _list(self, claims: dict[str, Parts], sentences: dict[str, list[nodes.Node]]) -> to.element:
        items = [self._item(id, found, sentences[id]) for id, found in claims.items()]
        return to.make("ol", *items, class_="findings", role="list")

    def _item(self, id: str, parts: Parts, sentence: list[nodes.Node]) -> to.element:
        verdict = combined(claim for _, claim in parts)
        notebook, first = parts[0]
        where = to.make(
            "span",
            to.figure_link(first.figure),
            ", ",
            to.page_link(self.page(notebook)),
            class_="finding-where",
        )
        return to.make(
            "li",
            signs.mark(verdict),
            to.make("p", to.make("b", id), " ", *sentence, class_="finding-sentence"),
            to.make("span", verdict, class_=f"finding-verdict verdict-{signs.slug(verdict)}"),
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
            signs.verdict_word(claim.verdict),
            to.make(
                "span",
                f"{claim.statement}: ",
                to.make("b", text.number(claim.number)),
                f", asked {claim.tolerance} (",
                to.figure_link(claim.figure),
                ")",
            ),
        )


def _counted(begin: str, claims: dict[str, Parts]) -> str:
    """The numbers of claims, of each verdict, of parts, and of parts that hold."""
    wholes = [combined(claim for _, claim in parts) for parts in claims.values()]
    pieces = [claim.verdict for parts in claims.values() for _, claim in parts]
    return (
        f"{begin} {len(wholes)} claims, {text.listed(verdict_counts(wholes))}. They were measured "
        f"in {len(pieces)} parts, of which {pieces.count(VERDICTS[0])} hold."
    )


def _strip(parts: Parts) -> list[nodes.Node]:
    """A sign for each part, and the number of parts that hold."""
    held = sum(claim.verdict == VERDICTS[0] for _, claim in parts)
    words = "1 part" if len(parts) == 1 else f"{held} of {len(parts)} parts hold"
    return [*(signs.mark(claim.verdict) for _, claim in parts), to.make("span", words)]
