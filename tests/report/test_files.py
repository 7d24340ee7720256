"""The report's files: complete, self-contained, and safe whatever the texts hold."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pyarrow as pa
import pytest

from raydecode.metrics import measure
from raydecode.report import charts, files
from tests.metrics.test_figures import part

FACTS = {
    "job": {"output": {"path": "out/<run>"}, "model": {"source": "toy"}, "price": {"per_hour": 1.0, "currency": "EUR"}},
    "engine": {"name": "toy", "why": "asked for", "promise": "bitwise"},
    "notes": ["decoding.drafter: auto means none"],
    "versions": {"raydecode": "0"},
    "spans": [[0.0, 20.0]],
    "rows_rerun": 3,
    "started_at": 1.0,
    "finished_at": 21.0,
    "plan": {"seconds": 10.0, "seconds_low": 8.0, "seconds_high": 12.0},
}
EVIL = "</script><script>alert(1)</script> & <b>\u2028"


class Outline(HTMLParser):
    """Checks nesting; collects what a reader sees and what a browser would load."""

    VOID = ("meta", "br", "input", "line", "rect", "path", "link", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts, self.text, self.loaded = 0, "", list[str]()

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in ("src", "href") and value]
        self.scripts += tag == "script"
        if tag not in self.VOID or (tag == "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture
def written() -> dict[str, bytes]:
    table = part(0, 100, errors=(3, 50))
    table = table.set_column(table.column_names.index("text"), "text", pa.array([EVIL] * 100))
    return files(measure([table], FACTS), FACTS)


def test_json_is_json(written):
    report = json.loads(written["report.json"])
    assert report["figures"]["rows"] == 100
    assert report["facts"]["engine"]["promise"] == "bitwise"


def test_html_is_whole_and_loads_nothing(written):
    html = written["report.html"].decode()
    seen = outline(html)
    assert seen.loaded == []
    assert not re.search(r"url\(|@import|https?://", re.sub(r"<script type=\"application/json\".*?</script>", "", html))
    for word in ("Throughput", "Latency and lengths", "Errors", "Plan against fact", "Texts", "How it was made",
                 "promise: bitwise", "auto means none", "UndefinedError", "no column q", "EUR", "outside"):  # fmt: skip
        assert word in seen.text, word


def test_texts_cannot_break_out(written):
    html = written["report.html"].decode()
    assert outline(html).scripts == 2, "the data and the page's own"
    data = re.search(r'id="data">(.*?)</script>', html, re.DOTALL)
    assert data
    assert json.loads(data[1])[0]["text"] == EVIL


def test_a_report_about_nothing():
    outline(files(measure([], {}), {})["report.html"].decode())


def test_missing_columns_are_named():
    table = part(0, 5).select(["id", "sample", "text", "finish_reason", "error"])
    html = files(measure([table], {}), {})["report.html"].decode()
    assert "output.columns" in html


def test_drafters_have_a_table_where_some_row_had_one():
    def page(names):
        cells = {
            "id": ["a", "b"], "sample": [0, 0], "text": ["", ""], "finish_reason": ["eos", "eos"],
            "drafter": pa.array(names, pa.string()), "output_tokens": [30, 8], "forwards": [12, 8],
            "drafted": [40, 0], "accepted": [18, 0],
        }  # fmt: skip
        return outline(files(measure([pa.table(cells)], {}), {})["report.html"].decode()).text

    with_one = page(["suffix", None])
    assert all(word in with_one for word in ("tokens per forward", "suffix", "2.5", "45.0 %", "none"))
    assert "seconds in the drafter" not in page([None, None])


def test_acceptance_by_depth_is_drawn_and_the_choice_explained():
    cells = {
        "id": ["a"], "sample": [0], "text": [""], "finish_reason": ["eos"], "drafter": ["auto"],
        "drafting": [json.dumps({"ngram": {"forwards": 5, "tokens": 9, "drafted": 9, "accepted": 4, "offered": [4, 2],
                                           "kept": [3, 1], "failures": 7777}})],
    }  # fmt: skip
    facts = {"workers": [{"worker": "w0", "drafting": "a call of <one> row costs 2"}, {"worker": "w1"}]}
    html = files(measure([pa.table(cells)], facts), facts)["report.html"].decode()
    seen = outline(html)
    assert "w0: a call of <one> row costs 2" in seen.text
    assert "Acceptance by depth" in html
    assert "7,777" in seen.text, "failures"
    assert "ngram, 1: 0.75" in seen.text, "the title of a point"
    assert "ngram, 2: 0.50" in seen.text


def test_not_a_number_becomes_null():
    assert json.loads(files(measure([], {}), {"x": float("nan")})["report.json"])["facts"]["x"] is None


def test_charts_of_little_are_empty():
    assert charts.line([(0, 1)], x_unit="s", y_unit="t", label="l") == ""
    assert charts.bars([], x_unit="s", label="l") == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 3.7), (0, 1e6), (0.001, 0.002), (5, 5)])
def test_ticks_are_round_and_inside(low, high):
    axis = charts._Axis(low, high, 0, 100)
    ticks = axis.ticks(5)
    assert 2 <= len(ticks) <= 8
    assert all(-1 <= axis(tick) <= 101 for tick in ticks)
