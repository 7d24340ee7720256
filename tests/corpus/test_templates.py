"""Prompts: what renders, what is refused up front, what costs its row only."""

from __future__ import annotations

import pickle

import pytest

from raydecode.corpus.templates import MAX_CHARS, Renderer
from raydecode.errors import RowError, UserError


def text(template, row, **options):
    return Renderer({"template": template, **options}).render(row).text


def fault(template, row=None, clock=None):
    options = {} if clock is None else {"clock": clock}
    with pytest.raises(RowError) as caught:
        Renderer({"template": template}, **options).render(row or {})
    assert caught.value.stage == "template"
    return caught.value


def test_text():
    assert text("Q: {{ q }}\nA:", {"q": "why?"}) == "Q: why?\nA:"
    assert (
        text("{% for x in xs %}{{ loop.index ~ '. ' ~ x }}\n{% else %}none{% endfor %}", {"xs": ["a", "b"]})
        == "1. a\n2. b\n"
    )
    assert (
        text("{{ deep.a[0] | upper }} {{ n + 1 }} {{ xs | join(', ') }}", {"deep": {"a": ["x"]}, "n": 1, "xs": [1, 2]})
        == "X 2 1, 2"
    )
    assert text("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(q) }}", {"q": 1}) == "<1>"
    assert text("trailing newline\n", {}) == "trailing newline\n"
    assert text("{{ q }}", {"q": "<b>&"}) == "<b>&"
    assert text("{{ x | default('none') }}", {}) == "none"


def test_chat():
    prompt = Renderer({"template": "{{ q }}", "system": "Be {{ how }}."}).render({"q": "hi", "how": "brief"})
    assert prompt.text is None
    assert prompt.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"})
    assert Renderer({"template": "{{ q }}", "chat": True}).render({"q": "hi"}).messages == (
        {"role": "user", "content": "hi"},
    )


def test_messages_column():
    render = Renderer({"messages": "m"}).render
    want = ({"role": "user", "content": "hi"},)
    assert render({"m": [{"role": "user", "content": "hi", "name": None}]}).messages == want
    assert render({"m": '[{"role": "user", "content": "hi"}]'}).messages == want
    assert render({"m": {"messages": [{"role": "user", "content": "hi"}]}}).messages == want
    tool = [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, {"role": "tool", "content": "4"}]
    assert len(render({"m": tool}).messages) == 2
    with_system = Renderer({"messages": "m", "system": "s"}).render
    assert [m["role"] for m in with_system({"m": [{"role": "user", "content": "x"}]}).messages] == ["system", "user"]
    assert [m["role"] for m in with_system({"m": [{"role": "system", "content": "x"}]}).messages] == ["system"]


@pytest.mark.parametrize(
    "cell", [None, [], "no json", "5", 5, [5], [{"role": "robot", "content": "x"}], [{"role": "user"}], "[]"]
)
def test_bad_messages_cost_their_row(cell):
    with pytest.raises(RowError) as caught:
        Renderer({"messages": "m"}).render({"m": cell})
    assert caught.value.kind == "InvalidMessages"


def test_missing_column_is_found_up_front_with_the_nearest():
    with pytest.raises(UserError) as caught:
        Renderer({"template": "{{ qestion }}"}, ["question", "id"])
    assert (caught.value.field, caught.value.nearest) == ("prompt.template", "question")
    with pytest.raises(UserError) as caught:
        Renderer({"messages": "msgs"}, ["messages"])
    assert (caught.value.field, caught.value.nearest) == ("prompt.messages", "messages")
    Renderer({"template": "{% if hint is defined %}{{ hint }}{% endif %}{{ q }}{{ z | default('') }}"}, ["q"])
    assert Renderer({"template": "{{ a }}{% set b = 1 %}{{ b }}{% for c in d %}{{ c }}{% endfor %}"}).needs == (
        "a",
        "d",
    )


def test_missing_value_in_one_row_costs_that_row():
    assert fault("{{ question }}", {"qestion": 1}).kind == "UndefinedError"
    assert "nearest column: qestion" in fault("{{ question }}", {"qestion": 1}).message


def test_broken_templates_and_unknown_keys_are_refused_up_front():
    with pytest.raises(UserError, match=r"does not parse \(line 2\)"):
        Renderer({"template": "\n{{ q "})
    with pytest.raises(UserError) as caught:
        Renderer({"tempalte": "x"})
    assert caught.value.nearest == "template"
    for section in ({}, {"template": "x", "messages": "m"}):
        with pytest.raises(UserError, match="either a template or a messages column"):
            Renderer(section)
    with pytest.raises(UserError, match="must be text, found int"):
        Renderer({"template": 5})


class Ticks:
    """A clock that passes a millisecond at each look: loops are bounded by looks, not by this machine's speed."""

    now = 0.0

    def __call__(self):
        self.now += 1e-3
        return self.now


LOOP, END = "{% for i in range(99999) %}", "{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set r = range(99999) %}" + "{% for i in r %}" * 3 + END * 3,
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% set y = i * 2 %}{% for j in range(99999) if j > i %}{% endfor %}{% endfor %}",
        "{% macro f() %}" + LOOP + END + "{% endmacro %}" + LOOP + "{{ f() }}" + END,
    ],
)
def test_endless_loops_end(template):
    assert fault(template, clock=Ticks()).kind == "Timeout"


@pytest.mark.parametrize(
    "template",
    [
        "{% set ns = namespace(s='x') %}{% for i in range(90) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(90) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{{ 'a' * 10**9 }}",
        "{{ [1] * 10**9 }}",
        "{{ 'a' | center(10**9) }}",
        "{{ 'a' | indent(width=10**9) }}",
        "{{ 9 ** 9999999 }}",
        "{% for i in range(99999) %}" + "x" * 200 + "{% endfor %}",
    ],
)
def test_growth_ends(template):
    assert fault(template).kind == "TooLarge"


def test_other_faults_of_a_template():
    assert fault("{{ range(10**7) }}").kind == "OverflowError"
    assert fault("{{ q.__class__.__mro__ }}", {"q": 1}).kind == "SecurityError"
    assert fault("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").kind == "RecursionError"
    assert fault("{{ 1 / 0 }}").kind == "ZeroDivisionError"
    assert fault("{{ q | int + 'a' }}", {"q": 1}).kind == "TypeError"
    assert fault("{{ q.append(1) }}", {"q": [1]}).kind == "SecurityError"


def test_a_null_is_never_the_text_none():
    assert fault("Q: {{ q }}", {"q": None}).kind == "NullValue"
    assert fault("{{ q.answer }}", {"q": {"answer": None}}).kind == "NullValue"
    assert text("Q: {{ q or '' }}{% if q %}{{ q }}{% endif %}", {"q": None}) == "Q: "


def test_half_a_character_costs_its_row():
    assert fault("{{ q }}", {"q": "\ud800"}).kind == "InvalidUnicode"
    with pytest.raises(RowError) as caught:
        Renderer({"messages": "m"}).render({"m": [{"role": "user", "content": "\ud800"}]})
    assert (caught.value.stage, caught.value.kind) == ("template", "InvalidUnicode")
    assert text("{{ q }}", {"q": "\U0001f600"}) == "\U0001f600"


def test_size_limit_is_what_it_says():
    assert len(text("{{ q }}", {"q": "x" * (MAX_CHARS - 1)})) == MAX_CHARS - 1
    assert fault("{{ q }}", {"q": "x" * (MAX_CHARS + 1)}).kind == "TooLarge"


def test_prompt_file(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text('template: "Q: {{ q }}"\nchat: true\n')
    assert Renderer({"file": str(path)}).render({"q": 1}).messages == ({"role": "user", "content": "Q: 1"},)
    assert Renderer({"file": str(path), "chat": False}).render({"q": 1}).text == "Q: 1"
    path.write_text("Q: {{ q }}")
    with pytest.raises(UserError):  # YAML reads this as a mapping with a mapping for a key
        Renderer({"file": str(path)})
    path.write_text("|\n  Q: {{ q }}\n")
    assert Renderer({"file": str(path)}).render({"q": 1}).text == "Q: 1\n"
    for broken in ("[1, 2]", "", "a: [", "tempalte: x"):
        path.write_text(broken)
        with pytest.raises(UserError):
            Renderer({"file": str(path)})
    with pytest.raises(UserError, match="cannot read the prompt file"):
        Renderer({"file": str(tmp_path / "none.yaml")})


def test_errors_travel_between_processes():
    error = fault("{{ x }}")
    assert pickle.loads(pickle.dumps(error)).kind == error.kind
