"""Signs for verdicts, shown beside the word."""

from docutils import nodes

from _ext.common.nodes import element, make

# A check, a half and a cross, each in a circle, distinguishable without colour.
_SHAPES = {
    "holds": '<path d="M6.4 10.2l2.6 2.6 4.8-5.4"/>',
    "holds in part": '<path d="M10 2.5a7.5 7.5 0 0 1 0 15z" fill="currentColor"/>',
    "fails": '<path d="M7 7l6 6m0-6l-6 6"/>',
}


def slug(verdict: str) -> str:
    """A verdict as part of a class's name."""
    return verdict.replace(" ", "-")


def mark(verdict: str) -> nodes.raw:
    """The verdict's sign, to be shown beside the word."""
    drawing = (
        f'<svg class="verdict-mark mark-{slug(verdict)}" viewBox="0 0 20 20" aria-hidden="true" '
        'fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" '
        f'stroke-linejoin="round"><circle cx="10" cy="10" r="7.5"/>{_SHAPES[verdict]}</svg>'
    )
    return nodes.raw("", drawing, format="html")


def verdict_word(verdict: str) -> element:
    """The sign, then the word."""
    return make("span", mark(verdict), verdict, class_=f"verdict verdict-{slug(verdict)}")
