"""The torch engine: hosts every method, on any decoder-only model of transformers.

TorchEngine   engine.py     the loop with a model
TorchLane     lane.py       one flat ragged call per step
attend        attention.py  ragged attention whose bits depend on the row alone
Cache         cache.py      contiguous keys and values per slot
pack          linear.py     dense layers whose rows do not depend on their number
check_family  family.py     what this engine cannot run, before weights load
probe         promise.py    which promise this device keeps
"""

from raydecode.engine.torch.engine import TorchEngine

__all__ = ["TorchEngine"]
