"""Lines of a batch file: what is one, what is none and why, which repeat."""

import pytest

from raydecode.errors import RowError
from serve_app.batches.input import ENVELOPE, custom_id, lines_of, parse, survey
from tests.serve_app.batches.local import ENDPOINT, line


def test_a_line():
    one = parse(line("a", "hi"), ENDPOINT)
    assert (one.custom_id, one.url, one.body) == ("a", ENDPOINT, {"model": "toy", "prompt": "hi"})


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("{not json", "invalid_json_line", "no JSON"),
        ("[1]", "invalid_json_line", "object"),
        ("[" * 5000, "invalid_json_line", "recursion"),
        (line("a", custom_idd=1), "unknown_parameter", "nearest: custom_id"),
        (line(None), "invalid_custom_id", "None"),
        (line(5), "invalid_custom_id", "5"),
        (line(""), "invalid_custom_id", "''"),
        (line("x" * 600), "invalid_custom_id", "512"),
        (line("a", method="GET"), "invalid_method", "GET"),
        (line("a", url="/v1/embeddings"), "mismatched_endpoint", "/v1/embeddings"),
        (line("a", body=[1]), "invalid_body", "[1]"),
    ],
)
def test_what_is_none(text, code, said):
    with pytest.raises(RowError) as caught:
        parse(text, ENDPOINT)
    assert caught.value.kind == code
    assert said in caught.value.message


def test_a_body_may_be_as_large_as_over_http():
    body = {"model": "toy", "prompt": "ä" * 3000}
    text = line("a", body=body)
    assert parse(text, ENDPOINT, len(text) - ENVELOPE).body == body
    for wide in (text + " ", (text + " ").encode(), text.replace('"toy"', '"ü"')):
        size = len(wide if isinstance(wide, bytes) else wide.encode())
        with pytest.raises(RowError, match=r"the body is larger than [\d,]+ bytes") as caught:
            parse(wide, ENDPOINT, size - 1 - ENVELOPE)
        assert caught.value.kind == "body_too_large"


def test_a_survey_counts_and_finds_repeats(tmp_path):
    path = tmp_path / "in"
    path.write_text("\n\n".join([line("a"), line("b"), "{broken", line("a", "other"), line("b")]) + "\n")
    found = survey(str(path), 10)
    offsets = [offset for offset, _ in lines_of(str(path))]
    assert (found.total, found.model) == (5, "toy")
    assert found.repeats == {offsets[3], offsets[4]}
    with pytest.raises(RowError, match="more than 4 lines"):
        survey(str(path), 4)


def test_two_models_are_named_by_neither(tmp_path):
    (tmp_path / "in").write_text(line("a") + "\n" + line("b", body={"model": "other"}))
    assert survey(str(tmp_path / "in"), 10).model is None


def test_the_id_of_a_line_that_is_wrong_otherwise():
    assert custom_id(line("a", method="GET").encode()) == "a"
    assert custom_id(b'{"custom_id": 5}') is custom_id(b"{") is custom_id(b"[]") is None
