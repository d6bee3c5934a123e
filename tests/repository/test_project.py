"""What several files state must be the same in all of them."""

import itertools
import json
import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from toc import chapters

import pfcore

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PYPROJECT["project"]["urls"]["Repository"]
PROSE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
NOT_OURS = {"_build", "build", "node_modules", "__pycache__"}
MEGABYTE = 2**20


def notebooks():
    return sorted((ROOT / "book").glob("*.ipynb"))


def notebook_text(path):
    """The sources of all cells; outputs are what running them gave."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def texts():
    """Files that contain an address or a version, by name."""
    names = [*PROSE, "pyproject.toml", "CITATION.cff", "_config.yml", "environment.yml"]
    found = {name: (ROOT / name).read_text(encoding="utf-8") for name in names}
    for path in sorted((ROOT / "book").glob("*.md")):
        found[path.name] = path.read_text(encoding="utf-8")
    return found | {path.name: notebook_text(path) for path in notebooks()}


def own_files():
    """Files of the project, without hidden folders, virtual environments and builds."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if name not in NOT_OURS
            and not name.endswith(".egg-info")
            and not (name.startswith(".") and name not in {".ci", ".github"})
            and not (Path(folder) / name / "pyvenv.cfg").exists()
        ]
        yield from (Path(folder) / name for name in files)


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PYPROJECT["project"]["version"] == pfcore.__version__ == citation["version"]
    for name in ("README.md", "book/intro.md"):
        cited = re.findall(
            r"^  version = \{(.*)\}", (ROOT / name).read_text(encoding="utf-8"), re.M
        )
        assert cited == [pfcore.__version__], name
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[?(\d+\.\d+\.\d+|Unreleased)", changelog, flags=re.MULTILINE)
    assert headings and headings[0] in {pfcore.__version__, "Unreleased"}


def test_versions_in_install_lines():
    """An install line that names a release names this one."""
    for name, text in texts().items():
        for release in re.findall(r"pfcore(?:\.git)?(?:@|==)v?(\d+\.\d+\.\d+)", text):
            assert release == pfcore.__version__, name


def test_readme_opens_the_notebooks_of_the_version_that_they_install():
    """Those of the branch may use names that the release does not have."""
    opened = re.findall(
        r"colab\.research\.google\.com/github/[^/]+/[^/]+/blob/([^/]+)/", texts()["README.md"]
    )
    assert opened and set(opened) == {f"v{pfcore.__version__}"}


def test_one_repository_address():
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", REPOSITORY)
    slug = REPOSITORY.removeprefix("https://github.com/")
    name = re.escape(slug.partition("/")[2])
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["repository-code"] == REPOSITORY
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert config["repository"]["url"] == REPOSITORY
    ours = re.compile(
        r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+?)(?=[/\s)\"'#]|\.git\b|$)"
        r"|git\+https://github\.com/([\w.-]+/[\w.-]+?)(?=[@/\s)\"'#]|\.git\b|$)"
        rf"|github\.com/([\w.-]+/{name})\b"
    )
    seen = {
        name: {next(filter(None, groups)) for groups in ours.findall(text)}
        for name, text in texts().items()
    }
    for name, slugs in seen.items():
        assert slugs <= {slug}, name
    assert seen["README.md"] and seen["pyproject.toml"]


def test_the_lock_pins_everything_by_hash_and_names_no_index():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in lock
    for option in ("--index-url", "--extra-index-url", "--find-links", "-i ", "-f "):
        assert not re.search(rf"^\s*{re.escape(option)}", lock, flags=re.MULTILINE)
    logical = re.sub(r"\\\n", " ", lock).splitlines()
    requirements = [line for line in logical if line.strip() and not line.lstrip().startswith("#")]
    assert len(requirements) > 50
    for line in requirements:
        assert re.match(r"[A-Za-z0-9_.-]+==\S+", line), line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), line


def test_the_lock_holds_every_direct_dependency():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = {name.lower() for name in re.findall(r"^([A-Za-z0-9_.-]+)==", lock, re.MULTILINE)}
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *itertools.chain.from_iterable(extras)]
    names = {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in wanted} - {"pfcore"}
    assert names <= locked


def test_no_large_files():
    files = list(own_files())
    assert ROOT / "pfcore" / "__init__.py" in files
    assert [str(f.relative_to(ROOT)) for f in files if f.stat().st_size > 2 * MEGABYTE] == []


def test_every_page_of_the_book_exists_and_every_notebook_is_a_page():
    pages = [chapter.name for chapter in chapters(ROOT)]
    missing = [
        page
        for page in pages
        if not any((ROOT / page).with_suffix(ending).is_file() for ending in (".md", ".ipynb"))
    ]
    assert missing == []
    assert {f"book/{path.stem}" for path in notebooks()} <= set(pages)


RECORDS = sorted((ROOT / "book" / "records").iterdir())


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_stored_records_are_whole_and_of_todays_configurations(folder):
    """A setting that came or went since would make a page compute for an hour, unasked."""
    record = pfcore.records.read(folder)
    today = pfcore.records.jsonable(pfcore.experiments.configure(record.info["experiment"]))
    assert today.keys() == record.info["config"].keys()
    assert today["problem"].keys() == record.info["config"]["problem"].keys()
    assert record.info["data"]["sha256"] and record.computed_on
    assert {path.name for path in folder.iterdir()} == {"arrays.npz", "record.json"}


@pytest.mark.parametrize("name", PROSE)
def test_links_to_files_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text):
        assert (ROOT / target).exists(), target


def test_zenodo_says_what_the_citation_says():
    zenodo = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = PYPROJECT["project"]
    assert zenodo["version"] == citation["version"] == project["version"]
    assert zenodo["title"] == citation["title"]
    assert zenodo["description"] == citation["abstract"]
    assert zenodo["keywords"] == citation["keywords"] == project["keywords"]
    assert zenodo["license"] == citation["license"].lower() == project["license"].lower()
    assert zenodo["upload_type"] == citation["type"] == "software"
    assert zenodo["creators"] == citation["authors"] == project["authors"]
    related = {(entry["relation"], entry["identifier"]) for entry in zenodo["related_identifiers"]}
    (preprint,) = citation["preferred-citation"]["identifiers"]
    assert related == {
        ("isSupplementTo", preprint["value"]),
        ("isDocumentedBy", citation["url"]),
    }


def test_the_book_is_where_github_publishes_it():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    owner, name = REPOSITORY.removeprefix("https://github.com/").split("/")
    assert citation["url"] == f"https://{owner}.github.io/{name}/"


def test_types_are_published():
    assert (ROOT / "pfcore" / "py.typed").is_file()
    assert "Typing :: Typed" in PYPROJECT["project"]["classifiers"]


@pytest.mark.parametrize("name", ["long", "slow"])
def test_what_is_listed_exists(name):
    """A test that was renamed would leave the list, and run where it should not."""
    lines = (ROOT / "tests" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    missing = []
    for line in (line for line in lines if not line.startswith("#")):
        path, _, test = line.partition("::")
        file, function = ROOT / path, test.partition("[")[0].rpartition(".")[2]
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if not text or (function and not re.search(rf"\b(def|class) {function}\b", text)):
            missing.append(line)
    assert len(lines) > 1 and missing == []
