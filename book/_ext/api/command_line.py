"""Directives that insert the help of `pfcore` commands, and their output, into pages.

Both are taken from the program when the book is built.
"""

import re
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


def documented() -> dict[str, str]:
    """The output of `typer ... utils docs`, in Markdown, by command; "pfcore" comes first."""
    import typer
    from typer.cli import get_docs_for_click

    from pfcore.cli import app

    program: Any = typer.main.get_command(app)
    context = program.make_context("pfcore", [], resilient_parsing=True)
    text = get_docs_for_click(obj=program, ctx=context, name="pfcore")
    _, *found = re.split(r"^#+ `(.+)`$", text, flags=re.MULTILINE)
    return dict(zip(found[::2], found[1::2], strict=True))


def printed(arguments: str) -> str:
    """The output of `pfcore ARGUMENTS`.

    Raises:
      RuntimeError: the command failed.
    """
    from typer.testing import CliRunner

    from pfcore.cli import app

    result = CliRunner().invoke(app, arguments.split())
    if result.exit_code:
        raise RuntimeError(f"pfcore {arguments} failed: {result.output}")
    return result.output


class CommandLine(SphinxDirective):
    """`{command-line}`: the help of every command, in a section for each."""

    def run(self) -> list[nodes.Node]:
        (_, whole), *commands = documented().items()
        return self.parse_text_to_nodes(whole) + [self._section(*command) for command in commands]

    def _section(self, name: str, text: str) -> nodes.section:
        section = nodes.section("", nodes.title("", "", nodes.literal("", name)))
        section["ids"] = [nodes.make_id(name)]
        section["names"] = [nodes.fully_normalize_name(name)]
        self.state.document.note_implicit_target(section, section)
        section += self.parse_text_to_nodes(text)
        return section


class CommandOutput(SphinxDirective):
    """`{command-output}`: a command `pfcore ARGUMENTS`, followed by its output."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        output = printed(self.arguments[0])
        return self.parse_text_to_nodes(f"```console\n$ pfcore {self.arguments[0]}\n{output}```")


def setup(app: Any) -> None:
    app.add_directive("command-line", CommandLine)
    app.add_directive("command-output", CommandOutput)
