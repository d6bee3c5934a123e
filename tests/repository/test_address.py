"""The repository's address, set everywhere by one command."""

import shutil
from pathlib import Path

import address
import pytest

ROOT = address.ROOT
NEW = "some-body/gradient-flows"


@pytest.fixture(scope="module")
def naming():
    """Every file that names the repository."""
    old = address.current()
    texts = {path: path.read_text(encoding="utf-8") for path in address.files()}
    return [path for path, text in texts.items() if old in text or address.pages(old) in text]


@pytest.fixture
def tree(naming, tmp_path):
    """A copy of them."""
    for path in naming:
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return tmp_path


def test_the_program_does_not_change_itself(tree):
    """Nor this file, although both have the remark's marks."""
    texts = {}
    for program in (Path(address.__file__), Path(__file__)):
        target = tree / program.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(program, target)
        texts[target] = target.read_text(encoding="utf-8")
    address.move(tree, NEW)
    for path, text in texts.items():
        assert path.read_text(encoding="utf-8") == text


def test_the_old_address_is_nowhere_and_the_new_one_everywhere(tree):
    old, copied = address.current(tree), set(address.files(tree))
    assert {"README.md", "CITATION.cff", "_config.yml", "pyproject.toml", "store.py"} <= {
        path.name for path in copied
    }
    assert set(address.move(tree, NEW)) == copied
    assert address.current(tree) == NEW
    for path in copied:
        text = path.read_text(encoding="utf-8")
        assert old not in text and address.pages(old) not in text, path
        assert NEW in text or address.pages(NEW) in text, path
    assert "placeholder" not in (tree / "README.md").read_text(encoding="utf-8")


def test_there_and_back_changes_nothing_but_the_remark(tree):
    old = address.current(tree)
    before = {path: path.read_text(encoding="utf-8") for path in address.files(tree)}
    address.move(tree, NEW)
    address.move(tree, old)
    for path, text in before.items():
        kept = address.REMARK.sub("", text) if path == tree / "README.md" else text
        assert path.read_text(encoding="utf-8") == kept
    assert address.move(tree, old) == []


@pytest.mark.parametrize(
    "text, expected",
    [
        ("https://github.com/a/b.git", "https://github.com/c/d.git"),
        ("gh/a/b/v1", "gh/c/d/v1"),
        ("https://a.github.io/b/x", "https://c.github.io/d/x"),
        ("x-a/b a/b-y a/bc a.a/b", "x-a/b a/b-y a/bc a.a/b"),
    ],
)
def test_only_whole_addresses_are_replaced(text, expected):
    assert address.moved(text, "a/b", "c/d") == expected


@pytest.mark.parametrize("wrong", ["pfcore", "a/b/c", "https://github.com/a/b", "", "a/"])
def test_what_is_no_repository_is_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="REPO must be owner/name"):
        address.move(tmp_path, wrong)
