"""A tokenizer as engines need it: ids, exact bytes per id, chat rendering, what ends a text.

Law, for every text and every sequence of ids that are not special:
    b"".join(token_bytes[i] for i in ids) == the UTF-8 of tokenizer.decode(ids, clean_up_tokenization_spaces=False)
with two exceptions, in which the bytes are right and the string is not: a sequence that ends inside a UTF-8 character
(decode writes U+FFFD), and SentencePiece's first space, which decode strips although in a continuation it is text.
Special ids have no bytes: what they show on screen is not part of the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydecode.errors import RowError
from raydecode.models.errors import ModelError
from raydecode.models.token_bytes import token_bytes
from raydecode.models.weights import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_turn|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|return|>",
    "<|endofturn|>", "<|END_OF_TURN_TOKEN|>", "<|user_end|>",
)  # fmt: skip
"""Tokens that end a turn in some chat format; each counts only for a model whose own template writes it."""


class Vocabulary:
    """Text, ids and bytes of one model.

    size:    ids 0..size-1; larger than the tokenizer where the embedding matrix is padded
    eos_ids: ids that end a text; from the arguments, the tokenizer, and the turn ends of its chat template
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, size: int | None = None, eos_ids: Iterable[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.size = max(size or 0, len(tokenizer))
        added = tokenizer.added_tokens_decoder
        self.special_ids = frozenset(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
        self.unused_ids = frozenset(range(len(tokenizer), self.size))
        self.token_bytes: Sequence[bytes] = token_bytes(tokenizer, self.size, self.special_ids)
        self.eos_ids = frozenset(eos_ids) | self._ends()

    @classmethod
    def of(cls, folder: str | Path, *, trust_remote_code: bool = False) -> Vocabulary:
        """The vocabulary of a model folder, with the sizes and end ids of its configuration files."""
        from raydecode.models.card import read_json

        folder = Path(folder)
        config = read_json(folder / "config.json", folder)
        generation = folder / "generation_config.json"
        settings = [config, config.get("text_config") or {}]
        settings += [read_json(generation, folder)] if generation.is_file() else []
        ends = {end for setting in settings for end in _ids(setting.get("eos_token_id"))}
        sizes = [setting["vocab_size"] for setting in settings if isinstance(setting.get("vocab_size"), int)]
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        return cls(tokenizer, size=max(sizes, default=None), eos_ids=ends)

    def __len__(self) -> int:
        return self.size

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a plain prompt.

        special: what this tokenizer adds by itself in front of a prompt (usually BOS or nothing); False for text that
        continues something. An end token that it appends is left out: a prompt is there to be continued.
        Text that is no Unicode (half a surrogate pair, as JSON can spell it) is the row's fault: `RowError`.
        """
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as broken:
                raise RowError("prompt", "unicode", f"character {broken.start} is half a surrogate pair") from broken
        ids = list(self.tokenizer.encode(text, add_special_tokens=special))
        if special and ids and ids[-1] in self.eos_ids:
            bare = self.tokenizer.encode(text, add_special_tokens=False)
            if not bare or bare[-1] != ids[-1]:
                ids.pop()
        return ids

    def render_chat(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        continue_last: bool = False,
        **variables: Any,
    ) -> list[int]:
        """Ids of a conversation by the model's own template, ending where the assistant begins to speak.

        continue_last: the last message is the beginning of the answer and is continued. `variables` go to the template
        (for example `enable_thinking`). The template writes BOS itself, so none is added. A conversation that the
        template rejects is the row's fault: `RowError`.
        """
        from jinja2 import TemplateError

        template = self._template(tools)
        try:
            rendered = self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) if tools else None,
                chat_template=template,
                add_generation_prompt=not continue_last,
                continue_final_message=continue_last,
                tokenize=True,
                return_dict=True,
                **variables,
            )
        except (TemplateError, ValueError, TypeError, KeyError, IndexError, AttributeError) as refusal:
            raise RowError("prompt", "chat_template", f"{type(refusal).__name__}: {refusal}") from refusal
        return list(rendered["input_ids"])

    def decode(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of `ids`; may end inside a UTF-8 character."""
        return b"".join(map(self.token_bytes.__getitem__, ids))

    @property
    def chat(self) -> bool:
        """Whether the model has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def _template(self, tools: object) -> str:
        name = getattr(self.tokenizer, "name_or_path", "") or "this model"
        if not self.chat:
            raise ModelError(
                f"{name} has no chat template",
                field="prompt.messages",
                hint="use prompt.template with plain text, or the instruction-tuned sibling of the model",
            )
        template = self.tokenizer.get_chat_template(tools=list(tools) if isinstance(tools, Sequence) else None)
        if tools and "tools" not in template:
            raise ModelError(
                f"the chat template of {name} has no place for tools; it would drop them silently",
                field="tools",
                hint="describe the tools in the system message, or use a model whose template takes them",
            )
        return template

    def _ends(self) -> set[int]:
        ends = set(_ids(self.tokenizer.eos_token_id))
        template = str(getattr(self.tokenizer, "chat_template", None) or "")
        known = self.tokenizer.get_vocab() if template else {}
        return ends | {known[end] for end in TURN_ENDS if end in template and known.get(end) in self.special_ids}


def _ids(value: int | Sequence[int] | None) -> Sequence[int]:
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)
