"""The HTML report: one file, styled and scripted from the two files beside this one; readable without scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources
from typing import Any

from raydecode.report import charts

DISTRIBUTIONS = (
    ("output_tokens", "Output length", "tokens"),
    ("prompt_tokens", "Prompt length", "tokens"),
    ("first_token_s", "Time to the first token", "s"),
    ("total_s", "Time per row", "s"),
)


def page(figures: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The whole document."""
    job = facts.get("job") or {}
    title = (job.get("output") or {}).get("path") or "report"
    sections = [
        _headline(figures, facts),
        _section("Throughput", _throughput(figures)),
        _section("Rows", _reasons(figures)),
        _section("Drafters", _drafters(figures, facts)),
        _section("Latency and lengths", _distributions(figures)),
        _section("Errors", _errors(figures)),
        _section("Plan against fact", _plan(figures)),
        _section("Texts", _browser(figures)),
        _section("How it was made", _settings(facts)),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(str(title))} - raydecode</title><style>{_asset('page.css')}</style></head><body>"
        f'<header><h1>{escape(str(title))}</h1><button id="theme" type="button">dark / light</button></header>'
        f"<main>{''.join(sections)}</main><script>{_asset('page.js')}</script></body></html>\n"
    )


def _headline(figures: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    throughput = figures["throughput"]
    cost = figures.get("cost")
    cards = [
        ("rows", _n(figures["rows"]) + (f" x {figures['samples'] / figures['rows']:.3g}" if _many(figures) else "")),
        ("errors", f"{_n(figures['errors'])} ({100 * figures['error_rate']:.2g} %)"),
        ("output tokens", _n(figures["output_tokens"])),
        ("tokens/s", _n(throughput["tokens_per_s"])),
        ("time", _seconds(figures["seconds"])),
        ("run again", _n(figures["rows_rerun"])),
    ]
    if cost:
        cards.append(("cost", f"{cost['amount']:.4g} {cost['currency']}"))
    engine = facts.get("engine") or {}
    said = [f"{engine.get('name')} engine: {engine['why']}"] if engine.get("why") else []
    if engine.get("promise"):
        kernels = f", kernels {engine['kernels']}" if engine.get("kernels") else ""
        said.append(f"promise: {engine['promise']}{kernels}")
    if facts.get("promises"):
        said.append(str(facts["promises"]))
    said += [str(note) for note in facts.get("notes") or ()]
    boxes = "".join(f"<div><b>{escape(value)}</b><span>{name}</span></div>" for name, value in cards)
    return f'<div class="cards">{boxes}</div>' + "".join(f"<p class='note'>{escape(line)}</p>" for line in said)


def _throughput(figures: Mapping[str, Any]) -> str:
    throughput = figures["throughput"]
    over = throughput["over_time"]
    chart = charts.line(
        [(at, rate) for at, rate, _ in over["points"]],
        x_unit="seconds since the first row began",
        y_unit=f"tokens/s, over {over['width_s']:g} s each,",
        label="Throughput over time",
    )
    with_start = throughput["tokens_per_s_with_start"]
    out = [chart or _missing("over time", "finished_at")]
    if with_start:
        out.append(f"<p>{_n(with_start)} tokens/s over the whole run, start-up included.</p>")
    if throughput["workers"]:
        rows = [
            (w["worker"], _n(w["rows"]), _n(w["tokens"]), _n(w["tokens_per_s"]), _seconds(w["seconds"]))
            for w in throughput["workers"]
        ]
        out.append(_table(("worker", "rows", "tokens", "tokens/s", "time"), rows))
    return "".join(out)


def _reasons(figures: Mapping[str, Any]) -> str:
    total = figures["samples"] or 1
    items = [(name, n, f"{_n(n)} ({100 * n / total:.1f} %)") for name, n in figures["finish_reasons"].items()]
    extra = []
    if figures.get("stopped_by"):
        extra.append("stopped by " + ", ".join(f"{cause!r} ({_n(n)})" for cause, n in figures["stopped_by"].items()))
    if figures["tokens_per_forward"]:
        extra.append(f"{figures['tokens_per_forward']:.3g} tokens per forward pass")
    if figures["draft_acceptance"]:
        extra.append(f"{100 * figures['draft_acceptance']:.1f} % of drafted tokens kept")
    if figures.get("draft_failures"):
        extra.append(f"{_n(figures['draft_failures'])} times a drafter failed and a row went on without a draft")
    if figures.get("replay_mismatches"):
        extra.append(
            f"{_n(figures['replay_mismatches'])} tokens of resumed rows this engine would have chosen otherwise"
        )
    if figures["attempts"] > 1 or figures["deaths"]:
        extra.append(
            f"{figures['attempts']} starts, {figures['deaths']} engine deaths, "
            f"{_n(figures['rows_rerun'])} rows run again"
        )
    return charts.shares(items) + "".join(f"<p>{escape(line)}</p>" for line in extra)


def _drafters(figures: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Drafter by drafter, if some row had one: what it did, how deep its drafts were kept, why it was chosen."""
    some = figures.get("drafters") or ()
    if not any(one["drafter"] != "none" for one in some):
        return ""
    head = (
        "drafter", "samples", "forwards", "tokens per forward", "drafted", "kept", "failures", "seconds in the drafter",
        "seconds of verification",
    )  # fmt: skip
    rows = [
        (
            one["drafter"], _n(one["samples"]), _n(one["forwards"]), _n(one["tokens_per_forward"]), _n(one["drafted"]),
            "-" if one["acceptance"] is None else f"{100 * one['acceptance']:.1f} %", _n(one.get("draft_failures")),
            _n(one["draft_s"]), _n(one.get("verify_s")),
        )
        for one in some
    ]  # fmt: skip
    depths = [
        (one["drafter"], [(depth, rate) for depth, (rate, _) in enumerate(one["acceptance_by_depth"], 1)])
        for one in some
        if one.get("acceptance_by_depth")
    ]
    plot = charts.curves(
        depths, x_unit="depth in the tree", y_unit="kept, of the forwards that got there,", label="Acceptance by depth"
    )
    workers = facts.get("workers") or ()
    said = [f"{worker['worker']}: {worker['drafting']}" for worker in workers if worker.get("drafting")]
    return _table(head, rows) + plot + "".join(f"<p class='note'>{escape(line)}</p>" for line in said[:8])


def _distributions(figures: Mapping[str, Any]) -> str:
    out, lines = [], []
    for name, label, unit in DISTRIBUTIONS:
        one = figures["distributions"].get(name)
        if not one:
            continue
        lines.append((f"{label} [{unit}]", *(_n(one[key]) for key in ("mean", "p50", "p90", "p99", "max"))))
        out.append(charts.bars(one["bars"], x_unit=unit, label=label))
    if not lines:
        return _missing("latency and lengths", "prompt_tokens, output_tokens, first_token_s, total_s")
    return _table(("", "mean", "median", "90 %", "99 %", "max"), lines) + f'<div class="grid2">{"".join(out)}</div>'


def _errors(figures: Mapping[str, Any]) -> str:
    if not figures["errors"]:
        return "<p>none</p>"
    rows = []
    for kind in figures["error_kinds"]:
        samples = "; ".join(f"{one['id']}: {one['message']}" for one in kind["samples"])
        rows.append((kind["stage"], kind["type"], _n(kind["count"]), samples))
    return _table(("stage", "type", "rows", "for example"), rows)


def _plan(figures: Mapping[str, Any]) -> str:
    rows = [
        (
            line["quantity"].replace("_", " "),
            _n(line["plan"]),
            "" if line["low"] is None else f"{_n(line['low'])} to {_n(line['high'])}",
            _n(line["fact"]),
            {True: "inside", False: "outside", None: ""}[line["inside"]],
        )
        for line in figures["plan"]
    ]
    return _table(("", "plan", "interval", "fact", ""), rows) if rows else ""


def _browser(figures: Mapping[str, Any]) -> str:
    rows = [*figures["first_rows"], *figures["error_rows"]]
    left = figures["error_rows_left_out"]
    note = f"the first {len(figures['first_rows'])} rows and every error" + (f" but {left}" if left else "")
    data = json.dumps(rows, ensure_ascii=False, default=str).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    return (
        f'<p>{note}</p><div class="tools"><input id="search" type="search" placeholder="search" aria-label="search">'
        '<label><input id="only-errors" type="checkbox"> errors only</label><span id="pages"></span></div>'
        '<div id="rows"><noscript>This list needs JavaScript; the rows are in the Parquet files.</noscript></div>'
        f'<script type="application/json" id="data">{data}</script>'
    )


def _settings(facts: Mapping[str, Any]) -> str:
    out = []
    times = [facts.get("started_at"), facts.get("finished_at")]
    if all(times):
        out.append(f"<p>{_moment(times[0])} to {_moment(times[1])}</p>")
    known = [(name, facts[name]) for name in ("engine", "versions") if facts.get(name)]
    for name, values in known:
        out += [f"<h3>{name}</h3>", _table((), [(str(k), str(v)) for k, v in values.items() if v is not None])]
    if facts.get("job"):
        text = json.dumps(facts["job"], indent=2, ensure_ascii=False, default=str)
        out.append(f"<h3>job</h3><details><summary>every setting</summary><pre>{escape(text)}</pre></details>")
    return "".join(out)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>" if head else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}{body}</table></div>'


def _missing(what: str, columns: str) -> str:
    return f"<p class='note'>{what}: not recorded. The columns {columns} in output.columns hold it.</p>"


def _many(figures: Mapping[str, Any]) -> bool:
    return bool(figures["rows"]) and figures["samples"] != figures["rows"]


def _n(x: float | None) -> str:
    if x is None:
        return "-"
    return f"{x:,.0f}" if float(x).is_integer() or abs(x) >= 1000 else f"{x:.3g}"


def _seconds(x: float | None) -> str:
    if x is None:
        return "-"
    if x < 120:
        return f"{x:.3g} s"
    return f"{x / 60:.1f} min" if x < 7200 else f"{x / 3600:.1f} h"


def _moment(at: Any) -> str:
    return datetime.fromtimestamp(float(at), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _asset(name: str) -> str:
    return (resources.files("raydecode.report") / name).read_text(encoding="utf-8")
