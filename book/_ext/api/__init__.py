"""Pages of the API and of the command line, from docstrings and from the program."""

from typing import Any


def setup(app: Any) -> dict[str, Any]:
    app.setup_extension("_ext.api.docstrings")
    app.setup_extension("_ext.api.command_line")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
