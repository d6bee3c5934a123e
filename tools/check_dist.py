"""Check a wheel and a source distribution, and the files in them, before publication."""

import argparse
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "pfcore"
# Files that a source distribution needs beside the package, to be built, read and cited.
BESIDE = {
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "MANIFEST.in",
    "PKG-INFO",
    "README.md",
    "pyproject.toml",
    "setup.cfg",
}


def package_files() -> set[str]:
    """Files of the package in the tree, relative to the root."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def without(names: set[str], *folders: str) -> set[str]:
    """The names outside all of the folders."""
    return {name for name in names if not name.startswith(tuple(f"{f}/" for f in folders))}


def in_wheel(file: Path) -> set[str]:
    """The files that a wheel installs, without its metadata."""
    with zipfile.ZipFile(file) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    name, version, *_ = file.name.split("-")
    return without(names, f"{name}-{version}.dist-info")


def in_source(file: Path) -> set[str]:
    """The files of a source distribution, without its top-level folder."""
    with tarfile.open(file) as archive:
        names = {member.name for member in archive.getmembers() if member.isfile()}
    top = file.name.removesuffix(".tar.gz")
    return without({name.removeprefix(f"{top}/") for name in names}, f"{PACKAGE}.egg-info")


def differences(what: str, found: set[str], wanted: set[str]) -> list[str]:
    """A line for each missing and each unexpected file."""
    return [f"{what}: {name} is missing" for name in sorted(wanted - found)] + [
        f"{what}: {name} should not be there" for name in sorted(found - wanted)
    ]


def complaints(folder: Path) -> list[str]:
    """The faults of the distributions in a folder, a line each."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    release = f"{project['name']}-{project['version']}"
    wheel, source = folder / f"{release}-py3-none-any.whl", folder / f"{release}.tar.gz"
    wanted = [file.name for file in (wheel, source)]
    found = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    if found != wanted:
        return [f"{folder} must hold {' and '.join(wanted)} and nothing else, but holds {found}"]
    files = package_files()
    return differences(wheel.name, in_wheel(wheel), files) + differences(
        source.name, in_source(source), files | BESIDE
    )


def main() -> int:
    """Check the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with one wheel and one source distribution")
    found = complaints(parser.parse_args().folder)
    for line in found:
        print(f"   {line}", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
