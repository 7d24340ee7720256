"""vLLM behind the engine contract, in process: for rows whose methods vLLM has itself.

    VllmEngine(folder, slots=64)      engine.py   the contract: submit, step, cancel, wait
    refuse(spec), map_chain(chain)    params.py   which specs it can host, without importing vLLM
    available()                       start.py    why vLLM cannot be used on this machine, without importing it

One engine per process: vLLM keeps process-wide state, and a third engine in one process fails inside it.
"""

from raydecode.engine.vllm.engine import VllmEngine
from raydecode.engine.vllm.params import refuse
from raydecode.engine.vllm.start import available

__all__ = ["VllmEngine", "available", "refuse"]
