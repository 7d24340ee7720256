"""vLLM behind the engine contract, in process: its own samplers where they are what is asked, else ours inside it.

    VllmEngine(folder, slots=64)      engine.py      the contract: submit, step, cancel, wait
    refuse(spec), plan(chain)         params.py      which specs it can host and how, without importing vLLM
    available()                       start.py       why vLLM cannot be used on this machine, without importing it
    OwnRows                           own.py         our chain and draw on rows of vLLM's batch; imports no vLLM
    Processor, Plugin                 processor.py   the logits processor that vLLM loads
    DraftRows                         draft.py       our drafters on rows of vLLM's batch; imports no vLLM
    Proposer                          proposer.py    the drafter that vLLM loads
    Verifier                          verifier.py    drafts verified by the row's chain and keyed noise

One engine per process: vLLM keeps process-wide state, and a third engine in one process fails inside it.
"""

from raydecode.engine.vllm.draft import DRAFTS
from raydecode.engine.vllm.engine import VllmEngine
from raydecode.engine.vllm.params import refuse
from raydecode.engine.vllm.start import available

__all__ = ["DRAFTS", "VllmEngine", "available", "refuse"]
