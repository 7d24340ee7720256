"""The torch engine: hosts every method, on transformers' decoders and on T5, BART and Marian.

TorchEngine   engine.py     the loop with a model
served        options.py    what may be said of it, and what `compile: auto` comes to
TorchLane     lane.py       one flat ragged call per step
Seq2SeqLane   seq2seq.py    the same for models with an encoder
Sites         sites.py      where hidden states are read and interventions act
Layout        layout.py     which products the attention of one call takes
attend        attention.py  ragged attention whose bits depend on the row alone
Cache         cache.py      keys and values in pages that slots may share
pack          linear.py     dense layers whose rows do not depend on their number
native        native.py     kernels of our own, built by the machine's compiler (`compile`, native.cpp)
PanelLinear   panels.py     dense layers for them, bfloat16 weights in 16 bits, computed in float32
Paths         paths.py      which columns they read for each node
fuse          fused.py      a layer of the Llama form as one call
keep_freed_memory  heap.py the steps' memory stays with the process
check_family  family.py     what this engine cannot run, before weights load
probe         promise.py    which promise this device keeps
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydecode.engine.torch.engine import TorchEngine

__all__ = ["TorchEngine"]


def __getattr__(name: str) -> Any:
    """On demand: who only chooses an engine waits for no transformers."""
    if name == "TorchEngine":
        from raydecode.engine.torch.engine import TorchEngine

        return TorchEngine
    raise AttributeError(name)
