"""Set the repository's address everywhere: `python tools/address.py owner/name`.

It occurs in links, badges, install lines, the citation and the package's metadata, in files that
cannot read it from elsewhere. The current address is read from `pyproject.toml`. The first change
also removes the README's note that the address is a placeholder.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GITHUB = "https://github.com/"
KINDS = {".cff", ".ipynb", ".json", ".md", ".py", ".toml", ".yml"}
NOT_OURS = {"_build", "build", "node_modules", "__pycache__", "records"}
REMARK = re.compile(r"<!-- placeholder -->.*?<!-- /placeholder -->\n*", re.DOTALL)


def current(root: Path = ROOT) -> str:
    """The repository's `owner/name` in `pyproject.toml`."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix(GITHUB)


def pages(repository: str) -> str:
    """The address of a repository's book on GitHub Pages, without "https://"."""
    owner, name = repository.split("/")
    return f"{owner}.github.io/{name}"


def moved(text: str, old: str, new: str) -> str:
    """Replace the addresses of `old` in a text by those of `new`; both are `owner/name`."""
    for before, after in ((old, new), (pages(old), pages(new))):
        text = re.sub(rf"(?<![\w.-]){re.escape(before)}(?![\w-])", after, text)
    return text


def files(root: Path = ROOT) -> Iterator[Path]:
    """Text files of the project, without environments, builds and hidden folders except .github."""
    for path in sorted(root.rglob("*")):
        folders = path.relative_to(root).parts[:-1]
        hidden = {part for part in folders if part.startswith(".")} - {".github"}
        if path.suffix in KINDS and path.is_file() and not hidden and NOT_OURS.isdisjoint(folders):
            yield path


def move(root: Path, new: str) -> list[Path]:
    """Set the address in every file; returns the changed files.

    Raises:
      ValueError: `new` is not `owner/name`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*/[\w.-]+", new):
        raise ValueError(f"REPO must be owner/name, as on GitHub, got {new!r}")
    old, changed = current(root), []
    for path in files(root):
        before = path.read_text(encoding="utf-8")
        after = moved(before, old, new)
        if path == root / "README.md":  # elsewhere, as above, the remark is spoken of
            after = REMARK.sub("", after)
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    return changed


def main() -> int:
    if len(sys.argv) != 2:
        print("give the repository: make address REPO=owner/name", file=sys.stderr)
        return 2
    try:
        changed = move(ROOT, sys.argv[1])
    except ValueError as error:
        print(f"   {error}", file=sys.stderr)
        return 2
    for path in changed:
        print(f"   {path.relative_to(ROOT)}")
    print(f"{len(changed)} files name {GITHUB}{current()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
