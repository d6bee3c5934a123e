import json
import re

import numpy as np
import pytest

from pfcore.claims import (
    FOLDER_VARIABLE,
    VERDICTS,
    Claim,
    Page,
    check,
    collect,
    meets,
    overview,
    report,
    verdict,
)


def claim(**changes):
    return Claim("C3", "the distance", 1.23456e-7, "< 1e-6", "holds", "fig-exact")._replace(
        **changes
    )


@pytest.mark.parametrize(
    "conditions, expected",
    [
        ((True,), "holds"),
        ((True, True), "holds"),
        ((True, False), "holds in part"),
        ((False, True, True), "holds in part"),
        ((False,), "fails"),
        ((False, False), "fails"),
        ((np.float64(1) < 2, np.float64(3) < 2), "holds in part"),
    ],
)
def test_verdict(conditions, expected):
    assert verdict(*conditions) == expected
    assert expected in VERDICTS


@pytest.mark.parametrize(
    "condition, inside, outside",
    [
        ("< 1e-6", (-1, 9e-7), (1e-6, 1)),
        ("≤ 48", (48, -3), (48.001,)),
        ("> 1 (and < 1 for both flows)", (1.001,), (1, 0.5)),
        ("≥ -1", (-1, 0), (-1.001,)),
        ("= 1", (1, 1.0), (0.999,)),
        ("0", (0, 0.0), (1,)),
        ("within 0.3 of 2", (1.75, 2.25, 2), (1.69, 2.31)),
        ("0.9 to 1.01", (0.9, 1.01, 1), (0.899, 1.011)),
    ],
)
def test_conditions(condition, inside, outside):
    for number in inside:
        assert meets(number, condition) and meets(np.float32(number), condition)
    for number in (*outside, np.nan):
        assert not meets(number, condition)


@pytest.mark.parametrize(
    "condition", ["", "about 2", "< one", "≤", "!= 1", "within 2", "1 to", "< 1 and > 0"]
)
def test_an_unreadable_condition_is_rejected(condition):
    with pytest.raises(ValueError, match=f"got {re.escape(repr(condition))}"):
        meets(1.0, condition)


@pytest.mark.parametrize(
    "number, options, expected",
    [
        (8, {}, "holds"),
        (7, {}, "fails"),
        (7, {"in_part": "≥ 5"}, "holds in part"),
        (4, {"in_part": "≥ 5"}, "fails"),
        (8, {"in_part": "≥ 5"}, "holds"),
        (8, {"also": np.bool_(False)}, "holds in part"),
        (8, {"also": True}, "holds"),
        (7, {"also": True}, "holds in part"),
        (7, {"also": False}, "fails"),
    ],
)
def test_the_verdict_is_computed_from_number_and_condition(number, options, expected):
    found = check("C1", "problems, of eight", number, "8", figure="fig-a", **options)
    assert found == Claim("C1", "problems, of eight", number, "8", expected, "fig-a", 0.1)


def test_a_page_reports_its_claims_in_the_order_of_their_ids(tmp_path):
    page = Page("exact")
    with pytest.raises(ValueError, match=r"claim B1 has no figure.*call figure"):
        page.check("B1", "what", 1.0, "> 0")
    page.figure("fig-a")
    page.check("B1", "what", 1.0, "> 0", rerun_tolerance=None)
    page.check("C10", "what", 1.0, "> 2")
    page.figure("fig-b")
    page.check("C9b", "what", 1.0, "> 0")
    page.check("C9", "what", 1.0, "> 0")
    page.report(tmp_path)
    (found,) = collect(tmp_path).values()
    assert [(c.id, c.figure) for c in found] == [
        ("C9", "fig-b"),
        ("C9b", "fig-b"),
        ("C10", "fig-a"),
        ("B1", "fig-a"),
    ]
    assert [c.verdict for c in found] == ["holds", "holds", "fails", "holds"]
    assert found[-1].rerun_tolerance is None


def test_report_writes_to_the_folder_named_by_the_environment(tmp_path, monkeypatch):
    folder = tmp_path / "not" / "yet"
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    report("exact", [claim(), claim(id="C4", number=np.float64(12.3456), rerun_tolerance=None)])
    content = json.loads((folder / "exact.json").read_text())
    assert content == {
        "notebook": "exact",
        "claims": [
            {
                "id": "C3",
                "statement": "the distance",
                "number": 1.2e-7,
                "tolerance": "< 1e-6",
                "verdict": "holds",
                "figure": "fig-exact",
                "rerun_tolerance": 0.1,
            },
            {
                "id": "C4",
                "statement": "the distance",
                "number": 12.0,
                "tolerance": "< 1e-6",
                "verdict": "holds",
                "figure": "fig-exact",
                "rerun_tolerance": None,
            },
        ],
    }


def test_report_is_beside_the_notebook_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    report("exact", [claim()])
    assert (tmp_path / "claims" / "exact.json").is_file()


def test_an_explicit_folder_is_preferred(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "environment"))
    report("exact", [claim()], tmp_path / "given")
    assert [path.parent.name for path in tmp_path.rglob("*.json")] == ["given"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"verdict": "true"}, "'true'"),
        ({"number": float("nan")}, "C3 has no finite number: nan"),
        ({"number": float("-inf")}, "C3 has no finite number: -inf"),
    ],
)
def test_invalid_claims_are_rejected_and_not_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        report("exact", [claim(), claim(**changes)], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tables_show_two_digits_and_escape_html(tmp_path):
    odd = claim(statement="<b>a & b</b>", tolerance="< 1", number=0.98765)
    table = report("exact", [odd], tmp_path)
    assert repr(table) == "C3 | <b>a & b</b> | 0.99 | < 1 | holds"
    shown = table._repr_html_()
    assert "<td>&lt;b&gt;a &amp; b&lt;/b&gt;</td><td>0.99</td><td>&lt; 1</td>" in shown
    assert "<b>" not in shown and "<a " not in shown
    assert shown.count("<tr>") == 2 and shown.count("<th>") == 5 == shown.count("<td>")


def test_collect_returns_the_reported_claims_in_order(tmp_path):
    report("zebra", [claim(id="C2", number=2.0)], tmp_path)
    report("ape", [claim(id="C10"), claim(id="C9b")], tmp_path)
    report("bee", [claim(id="C3"), claim(id="C4")], tmp_path)
    found = collect(tmp_path)
    assert list(found) == ["zebra", "bee", "ape"]
    assert found["zebra"] == [claim(id="C2", number=2.0)]
    assert [c.id for c in found["ape"]] == ["C10", "C9b"]
    assert found["bee"][0] == claim(number=1.2e-7)


def test_overview_links_each_claim_to_its_figure(tmp_path):
    report("zebra", [claim(id="C2", figure="fig-two")], tmp_path)
    report("ape", [claim(id="C9"), claim(id="C10")], tmp_path)
    shown = overview(collect(tmp_path))
    assert [row.split(" | ")[0] for row in repr(shown).splitlines()] == ["C2", "C9", "C10"]
    links = re.findall(r'<td><a href="([^"]*)">([^<]*)</a></td>', shown._repr_html_())
    assert links == [
        ("zebra.html#fig-two", "C2"),
        ("ape.html#fig-exact", "C9"),
        ("ape.html#fig-exact", "C10"),
    ]


def test_a_second_report_replaces_the_first(tmp_path):
    report("exact", [claim(), claim(id="C4")], tmp_path)
    report("exact", [claim(id="C5")], tmp_path)
    assert [c.id for c in collect(tmp_path)["exact"]] == ["C5"]


def test_collect_from_an_empty_folder(tmp_path):
    assert collect(tmp_path) == {}


def test_without_claims_the_overview_explains_how_to_get_them(tmp_path):
    """As on a machine that has only the page of claims."""
    shown = overview(collect(tmp_path))
    assert "run the chapters' notebooks" in repr(shown)
    assert shown._repr_html_() == f"<p>{shown!r}</p>"
