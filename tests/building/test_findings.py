"""Claims, records, times and reruns on the book's pages."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from pfcore import experiments, figures, provenance, records
from pfcore.claims import VERDICTS, Claim, collect, combined, in_parts, report

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
REPOSITORY = "https://github.com/somebody/pfcore"

pytest.importorskip("sphinx")
from _ext import footer as foot  # noqa: E402
from _ext import launch_box  # noqa: E402
from _ext.claims_pages import generated, signs, stored  # noqa: E402
from _ext.claims_pages import report as report_page  # noqa: E402
from _ext.common import text as words  # noqa: E402


def claim(id, verdict="holds", **changes):
    return Claim(id, f"what {id} is", 1.5, "> 1", verdict, "fig-a")._replace(**changes)


# ---- verdicts


@pytest.mark.parametrize(
    "verdicts, expected",
    [
        (["holds"], "holds"),
        (["holds", "holds"], "holds"),
        (["fails", "fails"], "fails"),
        (["holds in part", "holds in part"], "holds in part"),
        (["holds", "fails"], "holds in part"),
        (["holds", "holds in part"], "holds in part"),
        (["fails", "holds in part"], "holds in part"),
    ],
)
def test_a_claim_is_judged_by_its_parts(verdicts, expected):
    assert combined(claim("C1", verdict) for verdict in verdicts) == expected


def test_an_unknown_verdict_and_no_verdict_are_refused():
    with pytest.raises(ValueError, match="'perhaps'"):
        combined([claim("C1"), claim("C1b", "perhaps")])
    with pytest.raises(ValueError, match="no verdict without claims"):
        combined([])


def test_parts_are_gathered_over_notebooks_in_the_order_of_the_claims():
    found = {"ape": [claim("B2"), claim("C10"), claim("C10b")], "bee": [claim("C9"), claim("C10c")]}
    parts = in_parts(found)
    assert list(parts) == ["C9", "C10", "B2"]
    assert [(notebook, c.id) for notebook, c in parts["C10"]] == [
        ("ape", "C10"),
        ("ape", "C10b"),
        ("bee", "C10c"),
    ]


def test_counts_of_verdicts_agree_with_their_number():
    verdicts = ["holds", "fails", "holds", "holds in part"]
    assert generated.verdict_counts(verdicts) == ["2 hold", "1 holds in part", "1 fails"]
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b", "c"]) == "a, b and c"


def test_every_claim_of_the_book_has_a_sentence_on_the_first_page():
    text = (BOOK / "intro.md").read_text(encoding="utf-8")
    body = re.search(r"```\{claims-summary\}\n(.*?)```", text, flags=re.DOTALL)[1]
    sentences = re.findall(r"^([CB]\d+)\n: \S", body, flags=re.MULTILINE)
    assert sentences == list(in_parts(collect(BOOK / "claims")))


# ---- numbers as text


@pytest.mark.parametrize(
    "value, expected",
    [
        (0.0, "0"),
        (2.0, "2"),
        (170.0, "170"),
        (0.0028, "0.0028"),
        (-23.0, "−23"),
        (-0.00014, "−0.00014"),
        (9e-07, "9×10⁻⁷"),
        (2.7e-13, "2.7×10⁻¹³"),
        (-1.24e6, "−1.2×10⁶"),
    ],
)
def test_numbers_are_written_as_by_hand(value, expected):
    assert words.number(value) == expected


@pytest.mark.parametrize(
    "seconds, expected",
    [(0.4, "0 s"), (59.6, "1 min"), (125, "2 min 5 s"), (3599.6, "1 h"), (11520, "3 h 12 min")],
)
def test_durations(seconds, expected):
    assert words.duration(seconds) == expected


def test_expectations_say_time_and_memory():
    assert words.expectation({"seconds": 87.1, "peak_mb": 1234}) == "1 min 27 s and 1.2 GB"
    assert words.expectation({"seconds": 8, "peak_mb": 643}) == "8 s and 640 MB"
    assert words.expectation({"seconds": 8, "peak_mb": None}) == "8 s"


def test_measured_times_name_their_machine(tmp_path):
    assert stored.measured(tmp_path) == {}
    quick = {"machine": "CPU", "seconds": 9.0, "peak_mb": 5}
    full = {"machine": "GPU", "seconds": 70.0, "peak_mb": 7}
    content = {"ape": {"quick": quick, "full": full}}
    (tmp_path / "times.json").write_text(json.dumps(content))
    times = stored.measured(tmp_path)
    assert times == content
    assert report_page.time_cells({"full": full}) == ["not measured", "1 min 10 s and 10 MB"]
    assert "measured on CPU and GPU: 1 notebook in the quick profile, 9 s" in (
        report_page.times_sentence(times)
    )


# ---- records

RECORDS = stored.stored(BOOK / "records")


def test_all_records_are_found():
    assert {record.name for record in RECORDS} == {p.name for p in (BOOK / "records").iterdir()}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_the_changes_of_a_record_give_its_configuration_again(record):
    name = record.info["experiment"]
    config = experiments.configure(name, *record.changes, profile=record.profile)
    assert records.jsonable(config) == record.info["config"]


@pytest.mark.parametrize("profile", experiments.PROBLEMS)
@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_a_profile_as_it_is_has_no_changes_and_is_found_again(name, profile):
    config = records.jsonable(experiments.configure(name, profile=profile))
    assert stored.nearest(name, config) == (profile, [])


def test_a_problem_is_said_by_its_name_and_what_differs():
    changes = ["problem=mnist-mlp", "problem.kind=cross_entropy", "num_steps=7"]
    config = records.jsonable(experiments.configure("edge-of-stability", *changes, profile="full"))
    assert stored.nearest("edge-of-stability", config) == ("full", changes)


def test_long_changes_are_abridged():
    assert stored.abridged("num_steps=7") == "num_steps=7"
    assert stored.abridged("steps=" + ",".join(map(str, range(101)))) == "steps: 101 of them"


def test_what_was_not_run_is_said_from_the_records():
    sentence = report_page.profile_sentence(RECORDS)
    assert f"{len(RECORDS)} stored records" in sentence
    quick = [record for record in RECORDS if record.profile == "quick"]
    one, *others = [record for record in quick if "CPU" in record.info["device"]]
    on_gpu = one._replace(profile="full", info=one.info | {"device": "1 × NVIDIA H200"})
    changed = report_page.profile_sentence([on_gpu, *others])
    assert "1 of them is of the full profile, and 1 was computed on a GPU" in changed
    assert "1 × NVIDIA H200" in changed
    assert "None of them is of the full profile, and none was computed on a GPU" in (
        report_page.profile_sentence(others)
    )


@pytest.mark.parametrize(
    "name, expected",
    [(None, "not known"), ("0123456789", "0123456"), ("0123456789+", "0123456+")],
)
def test_commits_have_seven_digits_and_their_plus(name, expected):
    assert report_page.commit(name) == expected


def test_divergence_is_named():
    assert report_page.ended({"diverged": False}) == "without divergence"
    ended = report_page.ended({"diverged": True, "diverged_at_step": 1200})
    assert ended == "with divergence, first at step 1,200"


def notebook(path, *images, code=""):
    outputs = [{"output_type": "display_data", "data": {"image/png": image}} for image in images]
    cells = [{"cell_type": "code", "source": [code], "outputs": outputs}]
    path.write_text(json.dumps({"cells": cells}))
    return path


def picture(monkeypatch, *folders):
    """A figure drawn by a process that had read these records."""
    monkeypatch.setattr(provenance, "_sources", [])
    for folder in folders:
        records.read(folder)
    with plt.rc_context():
        fig, ax = plt.subplots(figsize=(1, 1))
        ax.plot([0, 1])
    image = figures.png(fig)
    plt.close(fig)
    return base64.b64encode(image).decode()


def test_pages_that_use_a_record_are_found_by_their_figures_provenance(tmp_path, monkeypatch):
    for record in RECORDS[:2]:
        shutil.copytree(BOOK / "records" / record.name, tmp_path / "records" / record.name)
    first, second = (tmp_path / "records" / record.name for record in RECORDS[:2])
    bare = io.BytesIO()
    plt.imsave(bare, [[0.0]], format="png")
    plain = base64.b64encode(bare.getvalue()).decode()
    path = notebook(tmp_path / "ape.ipynb", picture(monkeypatch, first), plain)
    notebook(tmp_path / "bee.ipynb", picture(monkeypatch, first, second))
    assert stored.used_by(tmp_path) == {first.name: ["ape", "bee"], second.name: ["bee"]}
    assert stored.seconds_of(path) == RECORDS[0].info["wall_time_s"]


# ---- reruns


def test_addresses_are_those_of_the_released_version():
    assert launch_box.colab(REPOSITORY, "book/dal.ipynb", "0.1.0") == (
        "https://colab.research.google.com/github/somebody/pfcore/blob/v0.1.0/book/dal.ipynb"
    )
    assert launch_box.binder(REPOSITORY, "book/dal.ipynb", "0.1.0") == (
        "https://mybinder.org/v2/gh/somebody/pfcore/v0.1.0?urlpath=lab/tree/book/dal.ipynb"
    )


@pytest.mark.parametrize("version", ["0.2.0.dev1", "0.2.0rc1", "0.1.0+local"])
def test_a_version_that_is_not_released_has_no_tag(version):
    assert launch_box.revision(version) == "main"


CODE = """
KEYS = ["problem=mnist-mlp", "budget=5"]
config = experiments.configure("edge-of-stability")
other = experiments.configure("adaptive-rates", *KEYS, f"seeds={n}", "every=1")
again = experiments.configure("adaptive-rates", "budget=7", "every=1")
run = experiments.load_or_run("learning-rate-change")
experiments.run("edge-of-stability", config)
"""


def test_what_a_page_asks_for_is_read_from_its_code(tmp_path):
    path = notebook(tmp_path / "ape.ipynb", code="if True:\n    %pip install it\n" + CODE)
    asked = launch_box.asked(launch_box.code(path))
    assert asked.experiments == {
        "edge-of-stability": set(),
        "adaptive-rates": {"budget", "every"},
        "learning-rate-change": set(),
    }
    assert asked.problems == ["mnist-mlp"]
    assert asked.loads and not asked.collects


def test_a_record_asked_for_by_the_older_name_is_a_stored_record_too():
    asked = launch_box.asked('run = experiments.obtain("learning-rate-change")')
    assert asked.loads and asked.experiments == {"learning-rate-change": set()}


def test_what_the_full_profile_changes_is_computed_from_the_profiles():
    changes = launch_box.larger(launch_box.asked(CODE))
    full = experiments.configure("edge-of-stability", profile="full")
    assert f"num_steps={full.num_steps}" in changes["edge-of-stability"]
    assert not any(change.startswith(("budget", "every=")) for change in changes["adaptive-rates"])
    mnist = experiments.PROBLEMS["full"]["mnist-mlp"]
    assert f"num_train={mnist.num_train}" in changes["mnist-mlp"]
    assert launch_box.larger(launch_box.asked("x = 1")) == {}


def facts(**changes):
    measured = {"quick": {"seconds": 40, "peak_mb": 640, "machine": "2 cores"}}
    return launch_box.Facts(
        "book/ape.ipynb", REPOSITORY, launch_box.asked("x = 1"), measured, 0, {}
    )._replace(**changes)


def test_the_box_says_what_to_expect():
    box = launch_box.rendered(facts(), "../_sources/book/ape.ipynb")
    assert "about 40 s and 640 MB, no GPU needed" in box
    assert "<code>PFCORE_PROFILE=full</code> changes nothing here" in box
    assert 'href="../_sources/book/ape.ipynb" download' in box
    assert "time not measured" in launch_box.rendered(facts(measured={}), "ape.ipynb")


def test_the_box_says_what_full_means_and_what_was_not_measured():
    page = launch_box.asked(CODE)
    box = launch_box.rendered(facts(asked=page, seconds=125.0), "ape.ipynb")
    assert "%env PFCORE_PROFILE=full" in box and "has not been measured" in box
    assert "computed beforehand, and took 2 min 5 s in all" in box
    sizes = {"mnist-mlp": 900, "digits-mlp": 50, "cifar10-vgg11": 30_000}
    predicted = launch_box.rendered(facts(asked=page, predicted=sizes), "ape.ipynb")
    # Those of the page alone: what it names, and what its experiments take in the full profile.
    assert "digits-mlp 50 MB, mnist-mlp 900 MB, which Colab's GPU with 16 GB has" in predicted
    sizes |= {"mnist-mlp": 17_000}
    assert "needs a GPU with 40 GB" in launch_box.memory(page, sizes)
    assert "more than a GPU with 40 GB" in launch_box.memory(page, {"mnist-mlp": 41_000})
    assert launch_box.memory(launch_box.asked("x = 1"), sizes) == ""
    full = {"seconds": 600, "peak_mb": 9000, "machine": "1 GPU"}
    both = facts().measured | {"full": full}
    assert "That took 10 min and 9.0 GB on 1 GPU." in launch_box.rendered(
        facts(asked=page, measured=both), "ape.ipynb"
    )


@pytest.mark.parametrize("path", sorted(BOOK.glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_code_of_every_notebook_can_be_read(path):
    asked = launch_box.asked(launch_box.code(path))
    assert bool(asked.experiments) == ("experiments.configure" in launch_box.code(path))


def test_the_footer_leads_only_to_pages_that_are_there():
    line = foot.footer({"book/report", "book/intro"}, lambda page: f"../{page}.html", REPOSITORY)
    assert 'href="../book/report.html"' in line and 'href="../book/intro.html#cite"' in line
    assert "changelog" not in line
    assert "Apache-2.0" in line
    assert f"version {launch_box.pfcore.__version__}" in line
    both = foot.footer({"book/changelog"}, lambda page: f"../{page}.html", REPOSITORY)
    assert 'href="../book/changelog.html"' in both and "report" not in both


# ---- a small book, built

PAGE = """
# First

```{claims-summary}
C1
: A sentence with $h$.

B1
: Another.
```

```{report-counts}
```

```{report-claims}
```

```{report-records}
```

```{report-times}
```
"""


def build(folder, page=PAGE):
    """The page's HTML and what Sphinx warned of."""
    from sphinx.application import Sphinx

    source = folder / "source"
    report("ape", [claim("C1"), claim("C1b", "fails", number=2e-9)], source / "claims")
    report("bee", [claim("B1", rerun_tolerance=None)], source / "claims")
    record = RECORDS[0].name
    target = source / "records" / record
    target.mkdir(parents=True)
    shutil.copy2(BOOK / "records" / record / "record.json", target)
    (source / "first.md").write_text(page)
    (source / "ape.md").write_text(
        "# The ape\n\n```{figure} a.png\n:name: fig-a\nA caption.\n```\n"
    )
    (source / "bee.md").write_text("# The bee\n")
    (source / "index.md").write_text("# All\n\n```{toctree}\nfirst\nape\nbee\n```\n")
    plt.imsave(source / "a.png", [[0.0]])
    warnings = io.StringIO()
    app = Sphinx(
        source,
        None,
        folder / "html",
        folder / "doctrees",
        "html",
        confoverrides={
            "extensions": ["myst_parser", "_ext.claims_pages"],
            "myst_enable_extensions": ["deflist", "dollarmath"],
            "html_theme": "basic",
            "numfig": True,
        },
        status=None,
        warning=warnings,
    )
    app.build()
    html = folder / "html" / "first.html"
    return html.read_text(encoding="utf-8") if html.is_file() else "", warnings.getvalue()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("book"))


def test_a_book_is_built_without_warnings(built):
    assert built[1] == ""


def test_the_summary_shows_verdicts_in_words_and_leads_to_figures(built):
    text = built[0]
    assert "Of the paper’s 1 claims, 1 holds in part." in text
    item = re.search(r'<li class="finding" id="claim-C1">.*?</details></li>', text, re.DOTALL)[0]
    assert "holds in part</span>" in item and "1 of 2 parts hold" in item
    assert 'href="ape.html#fig-a"' in item and "Fig. 1" in item and ">The ape<" in item
    assert "2×10⁻⁹" in item
    assert item.count("<svg") == 1 + 2 + 2


def test_the_report_has_a_row_for_each_part(built):
    rows = dict(re.findall(r'<tr id="part-(\w+)".*?data-verdict="([^"]*)"', built[0]))
    assert rows == {"C1": "holds", "C1b": "fails", "B1": "holds"}
    assert "verdict only" in built[0] and "±10 %" in built[0]


def test_the_report_shows_records_with_their_command_to_the_letter(built):
    text = re.sub(r"<[^>]*>", "", built[0])
    assert report_page.command(RECORDS[0]) in text
    assert RECORDS[0].info["data"]["sha256"][:16] in text


def test_missing_times_are_said(built):
    assert "Times have not been measured" in built[0]


@pytest.mark.parametrize(
    "page, message",
    [
        (PAGE.replace("B1\n: Another.", ""), "claim B1 has no sentence here"),
        (PAGE.replace("B1\n", "B7\n"), "claim B[17] has no"),
    ],
)
def test_a_claim_without_a_sentence_and_a_sentence_without_a_claim_are_warned_of(
    tmp_path, page, message
):
    assert re.search(message, build(tmp_path, page)[1])


def test_every_verdict_has_a_sign():
    assert len({signs.mark(verdict).astext() for verdict in VERDICTS}) == len(VERDICTS)
