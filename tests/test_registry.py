"""The registry: names, options, errors with the nearest name, and guests that leave again."""

from __future__ import annotations

import pytest
from pydantic import Field

from raydecode import registry
from raydecode.errors import UserError
from raydecode.request import Card

OURS = {
    "frequency_penalty", "greedy", "min_p", "presence_penalty", "repetition_penalty", "temperature", "top_k", "top_p",
}  # fmt: skip


def test_a_room_is_its_files():
    assert set(registry.methods("samplers")) >= OURS
    assert list(registry.methods("samplers")) == sorted(registry.methods("samplers"))
    assert [method.name for method in registry.cards("samplers")] == list(registry.methods("samplers"))


def test_one_name_in_module_and_registry():
    for name in OURS:
        assert registry.get("samplers", name).origin == f"raydecode.samplers.{name}"


def test_a_card_tells_lists_and_engines_what_they_need():
    method = registry.get("samplers", "top_p")
    assert str(method) == "samplers/top_p"
    assert method.paper == "arXiv:1904.09751"
    assert method.engines == ("torch", "toy", "vllm")
    assert not method.loads
    assert method.schema()["properties"]["p"]["description"]


def test_options_are_parsed_with_defaults():
    assert registry.get("samplers", "temperature").parse(Card("temperature"), "x") == Card(
        "temperature", {"value": 1.0}
    )


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("top_p", {"q": 0.9}, ["top_p has no option 'q'", "decoding.sampler.q", "options: p"]),
        ("top_p", {}, ["top_p needs this option", "decoding.sampler.p"]),
        ("top_p", {"p": 1.5}, ["decoding.sampler.p", "less than or equal to 1", "1.5"]),
        ("temperature", {"valeu": 1.0}, ["nearest: value"]),
        ("top_k", {"k": 2.5}, ["decoding.sampler.k", "2.5"]),
    ],
)
def test_wrong_options_name_field_value_and_nearest(name, options, said):
    with pytest.raises(UserError) as caught:
        registry.get("samplers", name).parse(Card(name, options), "decoding.sampler")
    for words in said:
        assert words in str(caught.value)


def test_an_unknown_name_says_the_nearest_and_where_all_are():
    with pytest.raises(UserError) as caught:
        registry.get("samplers", "topp", "decoding.sampler[0].name")
    assert str(caught.value).splitlines() == [
        "decoding.sampler[0].name: no sampler 'topp'",
        "  nearest: top_p",
        "  all: raydecode methods samplers",
    ]


@pytest.mark.parametrize("call", [registry.methods, registry.broken, registry.register, lambda r: registry.get(r, "x")])
def test_an_unknown_room_says_the_nearest(call):
    with pytest.raises(UserError) as caught:
        call("sampler")
    assert caught.value.nearest == "samplers"


def test_guests_leave_again():
    before = registry.methods("samplers")
    with registry.guests():

        @registry.register("samplers", paper="none", exact=True)
        class TwoWordName:
            """Say something."""

            class Options(registry.Options):
                size: int = Field(default=2, ge=1)

        method = registry.get("samplers", "two_word_name")
        assert (method.summary, method.paper, method.effects.exact) == ("Say something", "none", True)
        assert isinstance(method.factory(), TwoWordName)
    assert registry.methods("samplers") == before


def test_guests_leave_after_an_error_too():
    with pytest.raises(ZeroDivisionError), registry.guests():
        registry.register("monitors", name="passing")(type("Passing", (), {"__doc__": "Pass."}))
        raise ZeroDivisionError
    assert "passing" not in registry.methods("monitors")


def test_a_name_belongs_to_one_module():
    with registry.guests(), pytest.raises(UserError) as caught:
        registry.register("samplers", name="top_p")(type("Mine", (), {"__doc__": "Mine.", "__module__": "elsewhere"}))
    assert "samplers/top_p is registered by raydecode.samplers.top_p already" in str(caught.value)
    assert registry.get("samplers", "top_p").origin == "raydecode.samplers.top_p"


def test_options_are_strict_and_frozen():
    class Own(registry.Options):
        size: int = 1

    own = Own(size=3)
    with pytest.raises(ValueError, match="frozen"):
        own.size = 4
    with pytest.raises(ValueError, match="extra"):
        Own(sise=3)


@pytest.mark.parametrize("card", [
    Card("top_p", {"p": "0.9"}), Card("top_k", {"k": True}), Card("top_k", {"k": "5"}), Card("top_k", {"k": 5.5}),
    Card("temperature", {"value": False}), Card("temperature", {"value": b"1"}), Card("temperature", {"value": None}),
], ids=str)  # fmt: skip
def test_a_wrong_type_is_refused_not_converted(card):
    with pytest.raises(UserError) as caught:
        registry.get("samplers", card.name).parse(card, "decoding.sampler[0]")
    assert str(caught.value).startswith("decoding.sampler[0]")
    assert caught.value.value is not None or card.options["value"] is None


def test_yaml_values_fit_the_options_they_mean():
    with registry.guests():

        @registry.register("samplers")
        class Listing:
            """Take a list and a whole number where a number is meant."""

            class Options(registry.Options):
                ids: tuple[int, ...] = ()
                weight: float = 1.0

        parsed = registry.get("samplers", "listing").parse(Card("listing", {"ids": [1, 2], "weight": 2}), "x")
        assert parsed.options == {"ids": (1, 2), "weight": 2.0}
        assert registry.get("samplers", "listing").parse(parsed, "x") == parsed
