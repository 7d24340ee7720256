"""A person at the page: real keys and pointer, headless Chromium, the toy engine behind the real routes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from serve_app.keys import hashed
from tests.serve_app.playground.chromium import Chromium, Page
from tests.serve_app.playground.server import ROOT, Server

DONE = (
    "[...document.querySelectorAll('.status > p[role=status]')].every((one) => one.textContent.startsWith('finished'))"
)
TOKENS = "[...document.querySelectorAll('[role=listbox]')].map((one) => one.querySelectorAll('[data-t]').length)"
AXE = ROOT / "tests" / "serve_app" / "playground" / "vendor" / "axe.min.js"


def settings(**more: object) -> dict[str, object]:
    """A comparison on the toy: plain against the same seed with drafts."""
    side = {"model": "toy", "methods": {"samplers": [{"name": "temperature", "value": 0.7}]}}
    drafted = {
        "model": "toy",
        "methods": {**side["methods"], "drafters": [{"name": "token_recycling", "k": 3, "nodes": 8}]},
    }  # type: ignore[dict-item]
    return {
        "mode": "plain", "prompt": "ab(a)ab(a)", "system": "",
        "decoding": {"max_tokens": 60, "seed": 5, "ignore_eos": True},
        "noise_id": "", "compare": True, "order": "together", "colour": "surprise", "sides": [side, drafted], **more,
    }  # fmt: skip


def link(page: Page, chosen: dict[str, object]) -> str:
    """The page's own words for settings in an address."""
    made = f"import('/playground/now/settings.js').then((own) => own.toFragment(own.settle({json.dumps(chosen)})))"
    return "#" + str(page.evaluate(made))


def fill(page: Page, **more: object) -> None:
    """Settings by the address, as a link brings them."""
    page.evaluate(f"location.hash = {json.dumps(link(page, settings(**more)))}")
    page.wait("document.querySelector('#prompt').value === 'ab(a)ab(a)'")


def run(page: Page) -> None:
    page.press("Ctrl+Enter")
    page.wait(f"{TOKENS}.length && {DONE}")


def test_a_comparison_by_keyboard(opened: Callable[..., Page]) -> None:
    """From an empty page to two finished streams, alternatives and a tree, without a pointer."""
    page = opened()
    page.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.press("Enter")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.type("ab(a)ab(a)")
    page.tab_to("e.dataset.path === ':decoding.max_tokens'")
    page.press("Ctrl+a")
    page.type("40")
    page.tab_to("e.tagName === 'SUMMARY' && e.textContent.startsWith('Methods of B')")
    page.press("Enter")
    page.tab_to("e.dataset.path === 'B:decoding.drafter.name'")
    page.press("n")  # a select takes the option that begins so: ngram
    page.press("g")
    page.wait("document.querySelector('[data-path=\"B:decoding.drafter.shortest\"]')")
    page.tab_to("e.dataset.path === 'B:decoding.drafter.shortest'")
    page.type("1")
    page.press("Ctrl+Enter")
    page.wait(DONE)
    first, second = page.evaluate(TOKENS)
    assert first == second > 4
    assert "identical" in page.text(".verdict"), "a draft does not change a text"
    first, second = page.evaluate("[...document.querySelectorAll('[role=listbox]')].map((one) => one.textContent)")
    assert first == second

    page.tab_to("e.getAttribute('role') === 'listbox' && e.getAttribute('aria-label').includes(' B,')")
    page.wait("document.querySelector('.alternatives')")
    page.press("ArrowRight", times=3)
    assert page.evaluate("document.activeElement.getAttribute('aria-activedescendant')") == "B-t3"
    assert page.evaluate("document.querySelectorAll('.alternatives tr').length") >= 5
    assert "likeliest: " in page.evaluate("document.querySelector('#B-t3').getAttribute('aria-label')")
    step = int(re.findall(r"step (\d+)", page.text(".alternatives"))[0])
    page.press("Enter")
    number = "Number(document.querySelector('#B-step').value)"
    page.wait(f"{number} === {step}")
    page.press("ArrowDown")
    page.press("Enter")
    page.wait(f"{number} === {step} + 1")
    page.press("Escape")
    page.wait("!document.querySelector('.alternatives')")


def test_a_link_reproduces_settings_and_text(opened: Callable[..., Page]) -> None:
    page = opened()
    fill(page)
    run(page)
    text = page.text("[role=listbox]")
    address = page.evaluate("location.href")
    other = opened(url=address)
    assert other.evaluate("document.querySelector('#prompt').value") == "ab(a)ab(a)"
    assert "drafted by token_recycling" in other.text(".side:nth-child(2) summary")
    run(other)
    assert other.text("[role=listbox]") == text, "one seed, one text"
    other.tab_to("e.dataset.path === ':decoding.seed'")
    other.press("Ctrl+a")
    other.type("6")
    other.wait(f"location.href !== {json.dumps(address)}")


def test_pointing_shows_alternatives_and_trees(opened: Callable[..., Page]) -> None:
    page = opened()
    fill(page)
    run(page)
    page.point("#A-t4")
    rows = page.wait("[...document.querySelectorAll('.alternatives tr')].map((row) => row.textContent)")
    assert len(rows) == 5
    shares = [float(re.findall(r"([\d.]+) %", row)[0]) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert 99 < sum(shares) < 101, "five tokens are all the toy has"
    page.point("h1")
    page.wait("!document.querySelector('.alternatives')")

    drafted = page.evaluate("document.querySelector('.side:nth-child(2) .token.draft').id")
    page.click(f"#{drafted}")
    picture = ".side:nth-child(2) .tree svg"
    page.wait("document.querySelector('.side:nth-child(2) [aria-pressed=false]')")  # not its own choice
    page.wait(f"document.querySelector('{picture} .node.accepted')")
    kinds = page.evaluate(
        f"Object.fromEntries(['root', 'accepted', 'rejected'].map((k) =>"
        f" [k, document.querySelectorAll('{picture} .node.' + k).length]))"
    )
    assert kinds["root"] == 1
    assert kinds["accepted"] >= 1
    said = page.evaluate(f"document.querySelector('{picture}').getAttribute('aria-label')")
    assert re.match(rf"token_recycling drafted \d+ tokens?, {kinds['accepted']} accepted: ", said)
    shown = page.evaluate(
        f"['accepted', 'rejected'].map((k) =>"
        f" getComputedStyle(document.querySelector('{picture} .edge.' + k) ?? document.body).opacity)"
    )
    assert not kinds["rejected"] or float(shown[1]) < float(shown[0])
    assert page.evaluate("document.querySelectorAll('.side:nth-child(2) figure path').length") == 3, (
        "both charts are drawn"
    )


def test_differing_texts_are_marked(opened: Callable[..., Page]) -> None:
    page = opened()
    sides = [{"model": "toy", "methods": {"samplers": one}} for one in ([{"name": "greedy"}], [])]
    fill(page, sides=sides, colour="source")
    run(page)
    assert "first difference at token" in page.text(".verdict")
    at = page.evaluate(
        "[...document.querySelectorAll('.token.parts')].map((one) => [one.id.slice(1), one.textContent])"
    )
    assert len(at) == 2
    assert at[0][0] == at[1][0]
    assert at[0][1] != at[1][1]
    page.click(".verdict button")
    page.wait("document.activeElement.getAttribute('role') === 'listbox'")


def test_the_servers_words_stand_at_the_field(opened: Callable[..., Page]) -> None:
    page = opened(expected=("status of 400",))
    chain = [{"name": "temperature", "value": 0.7}, {"name": "top_p", "p": 7}]
    fill(page, compare=False, sides=[{"model": "toy", "methods": {"samplers": chain}}])
    page.press("Ctrl+Enter")
    field = '[data-path="A:decoding.sampler[1].p"]'
    page.wait(f"document.querySelector('{field}')?.getAttribute('aria-invalid') === 'true'")
    said = page.evaluate(
        f"document.getElementById(document.querySelector('{field}').getAttribute('aria-describedby').split(' ').at(-1))"
        ".textContent"
    )
    assert "less than or equal to 1" in said
    page.click(".problem button")
    assert page.evaluate("document.activeElement.dataset.path") == "A:decoding.sampler[1].p"
    page.press("Ctrl+a")
    page.type("0.9")
    run(page)
    assert not page.evaluate("document.querySelectorAll('[aria-invalid=true], .problem').length")


def test_options_of_every_kind_come_from_the_schemas(opened: Callable[..., Page]) -> None:
    """Every method can be chosen, and every option of its schema has a field; nested cards too."""
    page = opened()
    page.evaluate("document.querySelector('.methods').open = true")
    page.wait("document.querySelector('[data-path=\"A:decoding.drafter.name\"]')")
    methods = page.evaluate("fetch('v1/methods').then((answer) => answer.json()).then((all) => all.data)")
    missing = page.evaluate(
        "(async () => { const own = await import('/playground/now/schema.js');"
        " const all = (await (await fetch('v1/methods')).json()).data;"
        " return all.flatMap((m) => own.fieldsOf(m).filter((f) => f.kind === 'json').map((f) => m.name + f.name)) })()"
    )
    assert len(methods) > 25
    assert not missing, "options that could only be written as JSON"
    choose = (
        "(() => {{ const box = document.querySelector('[data-path=\"{path}\"]'); box.value = '{name}';"
        " box.dispatchEvent(new Event('change', {{bubbles: true}})) }})()"
    )
    page.evaluate(choose.format(path="A:decoding.drafter.name", name="auto"))
    page.wait("document.querySelector('[data-path=\"A:decoding.drafter.among+\"]')")
    page.evaluate(choose.format(path="A:decoding.drafter.among+", name="ngram"))
    page.wait("document.querySelector('[data-path=\"A:decoding.drafter.among[0].tokens\"]')")
    page.evaluate(choose.format(path="A:decoding.sampler+", name="dola"))
    page.wait("document.querySelector('[data-path$=\".norm\"]').type === 'checkbox'")


@pytest.mark.parametrize(("theme", "width", "height"), [("light", 360, 740), ("dark", 1280, 900)])
def test_every_size_and_theme(opened: Callable[..., Page], theme: str, width: int, height: int) -> None:
    """No sideways scrolling, and what axe-core finds wrong with contrast, names and roles: nothing."""
    page = opened(width=width, height=height, prefers_color_scheme=theme, prefers_reduced_motion="reduce")
    fill(page)
    run(page)
    page.evaluate("for (const one of document.querySelectorAll('details:not(.key)')) one.open = true")
    page.press("Tab")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 23, 26)"}[theme]
    assert accessible(page) == []
    assert page.evaluate("getComputedStyle(document.querySelector('.token')).transitionDuration") == "0s"


def accessible(page: Page) -> list[str]:
    """Violations that axe-core finds (WCAG 2.2 A and AA, and its best practices)."""
    page.evaluate("import('/repository/tests/serve_app/playground/vendor/axe.min.js')")
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then((all) => all.violations)")
    return [
        f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}: {one['nodes'][0]['any'][:1]}" for one in found
    ]


def test_dialogs_copy_and_keys(opened: Callable[..., Page]) -> None:
    page = opened()
    fill(page)
    page.click("nav button:nth-of-type(3)")
    page.wait("document.querySelector('dialog[open]')")
    said = page.text("dialog pre")
    assert said.startswith("curl -N 'http://127.0.0.1:")
    assert json.loads(said.partition("-d '")[2].rstrip().removesuffix("'"))["decoding"]["seed"] == 5
    page.click("dialog input[value=Python]")
    page.wait("document.querySelector('dialog pre').textContent.includes('OpenAI(')")
    compile(page.text("dialog pre"), "copied", "exec")
    page.click("dialog input[value=YAML]")
    page.wait("document.querySelector('dialog pre').textContent.includes('decoding:')")
    import yaml

    from raydecode.config import parse_decoding

    parse_decoding(yaml.safe_load(page.text("dialog pre"))["decoding"])
    assert accessible(page) == []
    page.press("Escape")
    page.wait("!document.querySelector('dialog')")
    assert page.evaluate("document.activeElement.textContent") == "Copy as code", "the focus goes back"


def test_a_full_server_is_asked_again(opened: Callable[..., Page], server: Server) -> None:
    page = opened(expected=("status of 429",))
    fill(page, compare=False)
    server.faults.busy = 1
    page.press("Ctrl+Enter")
    page.wait("document.body.innerText.includes('every slot is taken')")
    assert "Trying again in 1 s" in page.text(".status")
    page.wait(DONE)
    server.faults.busy = 1
    page.press("Ctrl+Enter")
    page.wait("document.body.innerText.includes('Trying again')")
    page.press("Escape")
    page.wait("document.querySelector('.status').textContent.startsWith('stopped')")


def test_streams_that_break(opened: Callable[..., Page], server: Server) -> None:
    page = opened(expected=("ERR_INCOMPLETE", "ERR_CONNECTION"))
    fill(page, compare=False)
    try:
        server.faults.cut, server.faults.last = 8, b'data: {"half'
        page.press("Ctrl+Enter")
        page.wait("document.querySelector('.problem')")
        assert "broke off" in page.text(".problem")
        assert page.evaluate(TOKENS)[0] > 0, "what came before stays"
        server.faults.last = (
            b'data: {"error": {"message": "the engine ended", "type": "server_error", "param": null, "code": "x"}}\n\n'
        )
        page.press("Ctrl+Enter")
        page.wait("document.querySelector('.problem')?.textContent.includes('the engine ended')")
    finally:
        server.faults.cut, server.faults.last = None, b""
    run(page)
    assert not page.evaluate("Boolean(document.querySelector('.problem'))")


def test_keys_and_a_server_that_goes(chromium: Chromium) -> None:
    """A server with keys asks for one, keeps it out of links and code; and when it is gone the page says so."""
    server = Server(keys=[{"name": "me", "sha256": hashed("secret-key")}])
    page = chromium.page(server.url)
    try:
        page.wait("document.querySelector('.key').open")
        page.wait("document.querySelector('.problem').textContent.includes('API key')")
        page.evaluate("document.querySelector('#key').focus()")
        page.type("secret-key")
        page.press("Enter")
        page.wait("!document.querySelector('#run').disabled && !document.querySelector('.problem')")
        fill(page)
        run(page)
        assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]
        page.press("Escape")
        page.evaluate(
            "[...document.querySelectorAll('nav button')].find((one) => one.textContent === 'Copy as code').click()"
        )
        page.wait("document.querySelector('dialog pre')")
        assert "secret-key" not in page.evaluate("document.documentElement.outerHTML + location.href")
        assert "$RAYDECODE_API_KEY" in page.text("dialog pre")
        page.press("Escape")
    finally:
        server.close()
    page.press("Ctrl+Enter")
    page.wait("document.querySelector('.problem')?.textContent.includes('cannot be reached')")
    page.close()


def test_a_row_of_a_batch_job(opened: Callable[..., Page], tmp_path: Path) -> None:
    """What `explain --json` wrote opens as a run; run again here it is the same text."""
    from tests.serve_app.playground.rows import explained

    file, found = explained(tmp_path)
    page = opened()
    page.click("nav button:nth-of-type(1)")
    page.wait("document.querySelector('dialog input[type=file]')")
    page.drop("dialog input[type=file]", file)
    page.wait("document.querySelector('.rows button')")
    assert accessible(page) == []
    page.evaluate(
        "[...document.querySelectorAll('.rows button')].find((one) => one.textContent.startsWith('compare')).click()"
    )
    page.wait("document.querySelector('.verdict').textContent.startsWith('identical:')")
    assert page.evaluate("document.querySelectorAll('#A-t0, #B-t0').length") == 2
    assert page.evaluate(TOKENS)[0] == len(found["steps"])
    assert "Equal to the stored text" in page.text(".side .status")
    assert page.evaluate("document.querySelectorAll('.side:nth-child(1) .tree .node').length") > 0


def test_a_row_of_a_batch_of_the_server(opened: Callable[..., Page], server: Server) -> None:
    """Listed, opened, and run again: the same text, now with its draft trees."""
    client = openai.OpenAI(base_url=server.url + "v1", api_key="none")
    body = {"model": "toy", "prompt": "ab(a)", "seed": 4, "max_tokens": 20, "logprobs": 5, "temperature": 0.7}
    line = {"custom_id": "one", "method": "POST", "url": "/v1/completions", "body": body}
    file = client.files.create(file=("lines.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    page = opened()
    until = time.monotonic() + 60
    while client.batches.retrieve(batch.id).status != "completed":
        assert time.monotonic() < until
        time.sleep(0.1)
    client.close()
    page.click("nav button:nth-of-type(1)")
    page.wait("document.querySelector('dialog h3 + .rows button')")
    page.click("dialog h3 + .rows button")
    page.wait("document.querySelector('[aria-label=\"Rows that were found\"] button:nth-of-type(3)')")
    page.click("[aria-label='Rows that were found'] button:nth-of-type(3)")
    page.wait("document.querySelector('.verdict').textContent.startsWith('identical:')")
    assert page.evaluate("document.querySelectorAll('.side:nth-child(2) .tree .node').length") > 1
