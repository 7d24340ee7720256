"""The stop-string rule against its definition, on every way to split a text into tokens."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from raydecode.engine.ending import first_stop, settled

STOPS = ((b"ab",), (b"aab", b"b"), (b"bb", b"abb"), (b"b", b"aa"))


def test_the_cut_is_before_the_first_occurrence_whatever_the_split() -> None:
    for stops, letters in product(STOPS, product((97, 98), repeat=5)):
        whole = bytes(letters)
        for split in product((False, True), repeat=4):
            text, cut, new = b"", -1, 0
            for i, letter in enumerate(whole):
                text, new = text + bytes([letter]), new + 1
                if i == 4 or split[i]:
                    cut = first_stop(text, new, stops)
                    if cut >= 0:
                        break
                    new = 0
            if split == (True,) * 4:  # byte by byte: nothing but the definition on the shortest prefix that has one
                prefix = next((whole[:i] for i in range(6) if any(s in whole[:i] for s in stops)), None)
                expected = min(prefix.find(s) for s in stops if s in prefix) if prefix else -1
                assert cut == expected
            assert (cut >= 0) == any(s in whole for s in stops)
            if cut >= 0:
                assert not any(s in text[:cut] for s in stops)


LETTERS = "abé€😀"  # 1 to 4 bytes


@given(st.text(LETTERS, max_size=8), st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=3))
def test_shown_pieces_are_whole_characters_and_never_taken_back(text: str, stops: list[str]) -> None:
    data, ends = text.encode(), tuple(stop.encode() for stop in stops)
    shown = 0
    for i in range(1, len(data) + 1):
        cut = first_stop(data[:i], 1, ends) if ends else -1
        if cut >= 0:
            assert shown <= cut
            return
        now = settled(data[:i], ends)
        assert now >= shown
        data[shown:now].decode()
        shown = now
    assert shown == len(data) or ends


def test_bytes_that_are_no_text_are_not_held() -> None:
    assert settled(b"a\x80\x80\x80\x80", ()) == 5
    assert settled(b"a\xff", ()) == 2
    assert settled("a€".encode()[:-1], ()) == 1
