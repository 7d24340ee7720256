"""The named places inside a transformers decoder where hidden states are read and interventions act.

    input      what the token table gives (transformers' `inputs_embeds`): here vectors can replace tokens
    embedding  the first layer's input (`hidden_states[0]`): after positions, scaling, norms
    layer.i    the output of layer i, counted from 0
    final      the output layer's input: after the final norm (`last_hidden_state`)

Module hooks exist during a call that asks for them and for its sites only; reading copies the wanted rows, so asking
cannot change a bit. Blocks are the parts of a layer that a call may leave out: attention.i and mlp.i; a block that is
left out adds nothing to the residual stream and costs nothing but its norm (a mixture of experts is no such block).

Legend: M nodes of the call (padding behind them), N wanted ones, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raydecode.engine.lane import Hook


class Sites:
    """Found once per model. names: from the inside out; empty for a model whose layers are not one list."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        config: Any = model.config
        self._two = bool(config.is_encoder_decoder)
        """Of two stacks the decoder is meant; the encoder has no sites."""
        if self._two:
            count = getattr(config, "num_decoder_layers", None) or config.decoder_layers
        else:
            count = config.get_text_config(decoder=True).num_hidden_layers
        self._holder, self.layers = _layers(_base(model) if self._two else model, count)
        self.names: tuple[str, ...] = ()
        if self.layers is not None:
            self.names = ("input", "embedding", *(f"layer.{i}" for i in range(count)), "final")
        self._blocks = dict(_blocks(self.layers if self.layers is not None else ()))
        self.blocks: tuple[str, ...] = tuple(self._blocks)

    @contextlib.contextmanager
    def open(
        self, hidden: Collection[str], hooks: Sequence[Hook], wanted: Sequence[int]
    ) -> Iterator[dict[str, Tensor]]:
        """During the block hooks act and sites are read; the dictionary is then full: site -> [N, D]."""
        seen: dict[str, Tensor] = {}
        handles: list[RemovableHandle] = []
        index = torch.tensor(wanted, dtype=torch.int64, device=self.model.device)
        try:
            for site in self.names:
                acting = [hook for hook in hooks if hook.site == site]
                if acting or site in hidden:
                    handles.append(self._watch(site, _visit(site, acting, index, seen if site in hidden else None)))
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def without(self, skip: Collection[str]) -> Iterator[None]:
        """During the block these blocks put out zeros and compute nothing; a layer without both passes its input on."""
        changed: list[tuple[nn.Module, Any]] = []

        def put(module: nn.Module, forward: Any) -> None:
            changed.append((module, module.__dict__.pop("forward", None)))
            if forward is not None:
                module.forward = forward

        try:
            for i, layer in enumerate(self.layers or ()) if skip else ():
                gone = [kind for kind in KINDS if f"{kind}.{i}" in skip]
                if gone == list(KINDS) and _returns_a_tensor(layer):
                    put(layer, _same)
                elif gone:
                    put(layer, None)  # one that was fused runs as its parts
                    for kind in gone:
                        put(self._blocks[f"{kind}.{i}"], _nothing if kind == "mlp" else _nothing_twice)
            yield
        finally:
            for module, before in reversed(changed):
                module.__dict__.pop("forward", None)
                if before is not None:
                    module.forward = before

    def _watch(self, site: str, visit: Callable[[Tensor], Tensor]) -> RemovableHandle:
        if site == "embedding":
            first: nn.Module = self.layers[0]  # type: ignore[index]

            def before(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
                if given:
                    return (visit(given[0]), *given[1:]), named
                return given, {**named, "hidden_states": visit(named["hidden_states"])}

            return first.register_forward_pre_hook(before, with_kwargs=True)
        if site == "input":
            table = (_base(self.model) if self._two else self.model).get_input_embeddings()
            return table.register_forward_hook(lambda m, given, out: visit(out))
        if site == "final":
            return _base(self.model).register_forward_hook(_on_output(visit))
        layer: nn.Module = self.layers[int(site.removeprefix("layer."))]  # type: ignore[index]
        return layer.register_forward_hook(_on_output(visit))

    def head(self, hidden_ND: Tensor, norm: bool) -> Tensor:
        """float32 [N, V]: the model's own output layer with all that it does to logits (scales, soft caps)."""
        from transformers.modeling_outputs import BaseModelOutput

        base = _base(self.model)
        if norm:
            hidden_ND = self.norm(hidden_ND)
        base.forward = lambda *given, **named: _Last(hidden_ND[None])
        try:
            any_id = torch.zeros(1, 1, dtype=torch.int64, device=self.model.device)
            given: dict[str, Any] = {"input_ids": any_id}
            if self._two:
                given = {"decoder_input_ids": any_id, "encoder_outputs": BaseModelOutput(hidden_ND[None])}
            logits: Tensor = self.model(**given, use_cache=False).logits
        finally:
            del base.forward
        return logits[0].float()

    @property
    def norm(self) -> nn.Module:
        """The norm between the last layer and the output layer; the identity where a family has none."""
        norms = [
            child
            for name, child in self._holder.named_children()
            if type(child).__name__.endswith("Norm") and "embed" not in name
        ]
        return norms[-1] if norms else nn.Identity()


class _Last(tuple):
    """What a base model returns, as far as output layers look."""

    def __new__(cls, hidden: Tensor) -> _Last:
        return super().__new__(cls, (hidden,))

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None  # past_key_values, attentions, router logits: not made here


def _visit(
    site: str, acting: Sequence[Hook], wanted: Tensor, seen: dict[str, Tensor] | None
) -> Callable[[Tensor], Tensor]:
    def visit(x_1MD: Tensor) -> Tensor:
        for hook in acting:
            index = torch.tensor(hook.nodes, device=x_1MD.device)
            x_1MD = x_1MD.index_copy(1, index, hook.apply(x_1MD[0, index])[None])
        if seen is not None:
            seen[site] = x_1MD[0, wanted]
        return x_1MD

    return visit


def _on_output(visit: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any, Any], Any]:
    """Layers return a tensor or a tuple that begins with it; base models an output object."""

    def after(module: nn.Module, given: Any, out: Any) -> Any:
        if isinstance(out, Tensor):
            return visit(out)
        if isinstance(out, tuple):
            return (visit(out[0]), *out[1:])
        out.last_hidden_state = visit(out.last_hidden_state)
        return out

    return after


KINDS = ("attention", "mlp")


def _returns_a_tensor(layer: nn.Module) -> bool:
    return inspect.signature(type(layer).forward).return_annotation in (Tensor, "torch.Tensor", "Tensor")


def _same(*given: Any, **named: Any) -> Tensor:
    hidden: Tensor = given[0] if given else named["hidden_states"]
    return hidden


def _nothing(*given: Any, **named: Any) -> Tensor:
    return torch.zeros_like(given[0] if given else named["hidden_states"])


def _nothing_twice(*given: Any, **named: Any) -> tuple[Tensor, None]:
    """As attention returns it: the output, and no weights."""
    return _nothing(*given, **named), None


def _blocks(layers: Iterable[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """name -> module, layer by layer, where a layer has exactly one of the kind."""
    for i, layer in enumerate(layers):
        for kind, ends in zip(KINDS, (("Attention",), ("MLP", "FeedForward")), strict=True):
            found = [child for child in layer.children() if type(child).__name__.endswith(ends)]
            if len(found) == 1:
                yield f"{kind}.{i}", found[0]


def _base(model: Any) -> Any:
    """The module whose output goes to the output layer (OPT's is inside its base model)."""
    return model.get_decoder()


def _layers(model: nn.Module, count: int) -> tuple[nn.Module, nn.ModuleList | None]:
    """The one list of `count` layers of a kind, and the module that holds it."""
    for parent in model.modules():
        for child in parent.children():
            if not isinstance(child, nn.ModuleList) or len(child) != count or len({type(one) for one in child}) > 1:
                continue
            if any("attention" in type(part).__name__.lower() for part in child[0].modules()):
                return parent, child
    return model, None
