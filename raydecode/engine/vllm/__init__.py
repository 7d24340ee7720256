"""vLLM behind the engine contract, in process: its own samplers where they are what is asked, else ours inside it.

    VllmEngine(folder, slots=64)      engine.py      the contract: submit, step, cancel, wait
    refuse(spec), plan(chain)         params.py      which specs it can host and how, without importing vLLM
    available()                       start.py       why vLLM cannot be used on this machine, without importing it
    OwnRows                           own.py         our chain and draw on rows of vLLM's batch; imports no vLLM
    Processor, Plugin                 processor.py   the logits processor that vLLM loads

One engine per process: vLLM keeps process-wide state, and a third engine in one process fails inside it.
"""

from raydecode.engine.vllm.engine import VllmEngine
from raydecode.engine.vllm.params import refuse
from raydecode.engine.vllm.start import available

__all__ = ["VllmEngine", "available", "refuse"]
