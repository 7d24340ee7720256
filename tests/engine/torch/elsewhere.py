"""A pretended accelerator, for tests without one: its tensors say that they are on `meta` and hold their numbers.

Rules are those of CUDA: an operator whose tensors lie in two places raises, except copies, scalars of no dimension and
index lists. Every number that comes back to the host is counted, for each of them would stop the device's queue.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

HOST, DEVICE = torch.device("cpu"), torch.device("meta")
MIXED = {"aten::index.Tensor", "aten::index_put_", "aten::index_put", "aten::copy_", "aten::to.other"}


class There(Tensor):
    """A tensor of the pretended device; `here`: its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        assert not isinstance(here, There)
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.here = here
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"There({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: a tensor of the pretended device is used outside `Elsewhere`")


class Elsewhere(TorchDispatchMode):
    """While it is open, device="meta" is the pretended device. fetched: operator -> transfers to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: Counter[str] = Counter()
        self._lists = _Lists(self)

    def __enter__(self) -> Elsewhere:
        super().__enter__()
        self._lists.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._lists.__exit__(*error)
        super().__exit__(*error)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """The pretended device does not exist for a while."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, shape = tree_flatten((args, dict(kwargs or {})))
        tensors = [x for x in flat if isinstance(x, Tensor)]
        there = any(isinstance(x, There) for x in tensors)
        name = func.name()
        if name == "aten::_has_compatible_shallow_copy_type":
            return False  # modules then take new parameters
        if there and name not in MIXED and any(x.dim() for x in tensors if not isinstance(x, There)):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cpu and {DEVICE}")
        target = next((x for x in flat if isinstance(x, torch.device)), None)
        if name == "aten::to.other":
            target = args[1].device
        if target is not None:
            there = target == DEVICE
        here = not there or name in ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::item")
        if name == "aten::copy_":
            here = not isinstance(args[0], There)
        if here and isinstance(args[1] if name == "aten::copy_" else next(iter(tensors), None), There):
            self.fetched[name] += 1
        plain = [x.here if isinstance(x, There) else HOST if isinstance(x, torch.device) else x for x in flat]
        plain_args, plain_kwargs = tree_unflatten(plain, shape)
        out = func(*plain_args, **plain_kwargs)
        if here:
            return out
        same = {id(x.here): x for x in flat if isinstance(x, There)}  # an operator in place returns what it was given
        return tree_map_only(Tensor, lambda x: same[id(x)] if id(x) in same else There(x), out)


class _Lists(TorchFunctionMode):
    """What torch does below the dispatcher: lists to tensors and back."""

    def __init__(self, mode: Elsewhere) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return There(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], There):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(x, dtype=torch.int64) if isinstance(x, list) else x for x in index)
            args = (args[0], index, *args[2:])
        if func is Tensor.tolist and isinstance(args[0], There):
            self._mode.fetched["tolist"] += 1
            return args[0].here.tolist()
        if func is Tensor.numpy and isinstance(args[0], There):
            raise TypeError(f"can't convert a tensor on {DEVICE} to numpy")
        return func(*args, **kwargs)
