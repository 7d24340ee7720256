"""The exact bytes of every token id, by undoing what each tokenizer family does to bytes.

    family          a token is written as                        rule here
    byte-level BPE  one printable character per byte (GPT-2)     map back; a token with another character is its UTF-8
    SentencePiece   "\\u2581" for a space, "<0xNN>" for a byte      replace; a byte token is that byte
    WordPiece       "##" for "goes on", else a space before      best effort: the original white space is lost
    suffix BPE      "</w>" for "a word ends here"                the suffix becomes a space
    others          -                                            decode(anchor + id) without decode(anchor)

The family is read from the tokenizer's own decoder, not guessed from its name, and the fallbacks within the first two
are those of the `tokenizers` library, so that joined bytes equal its decoded text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Set
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

META_SPACE = "\u2581"


def token_bytes(tokenizer: PreTrainedTokenizerBase, size: int, special_ids: Set[int]) -> tuple[bytes, ...]:
    """Bytes for ids 0..size-1; b"" for special ids and for ids that the tokenizer does not have."""
    rule = _rule(tokenizer)
    known = len(tokenizer)
    names = tokenizer.convert_ids_to_tokens(list(range(known)))
    added = tokenizer.added_tokens_decoder

    def one(token_id: int) -> bytes:
        name = names[token_id] if token_id < known else None
        if name is None or token_id in special_ids:
            return b""
        return rule(token_id, name, token_id in added)

    return tuple(one(token_id) for token_id in range(size))


ByteRule = Callable[[int, str, bool], bytes]


def _rule(tokenizer: PreTrainedTokenizerBase) -> ByteRule:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _anchored(tokenizer)
    steps = list(_steps(json.loads(backend.decoder.__getstate__()))) if backend.decoder is not None else []
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        to_byte = {character: byte for byte, character in byte_characters().items()}

        def byte_level(_: int, name: str, __: bool) -> bytes:
            mapped = [to_byte.get(character) for character in name]
            return name.encode() if None in mapped else bytes(mapped)  # type: ignore[arg-type]

        return byte_level
    if "Metaspace" in kinds or _replaces_meta_space(steps):
        fallback = "ByteFallback" in kinds
        return lambda _, name, __: _sentencepiece(name, fallback)
    if "WordPiece" in kinds:
        prefix = next(step for step in steps if step["type"] == "WordPiece")["prefix"]
        return lambda _, name, __: (name.removeprefix(prefix) if name.startswith(prefix) else f" {name}").encode()
    if "BPEDecoder" in kinds:
        suffix = next(step for step in steps if step["type"] == "BPEDecoder")["suffix"]
        return lambda _, name, __: name.replace(suffix, " ").encode()
    return _anchored(tokenizer)


def _sentencepiece(name: str, fallback: bool) -> bytes:
    if fallback and len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        try:
            return bytes([int(name[3:5], 16)])
        except ValueError:
            pass
    return name.replace(META_SPACE, " ").encode()


def _anchored(tokenizer: PreTrainedTokenizerBase) -> ByteRule:
    """Decode each id behind an anchor, so that what depends on "first in the text" falls on the anchor. 6 s per
    million ids where the tables above take 2: the last resort."""
    anchor = tokenizer.encode("a", add_special_tokens=False)
    before = tokenizer.decode(anchor, clean_up_tokenization_spaces=False)

    def rule(token_id: int, name: str, _: bool) -> bytes:
        both = tokenizer.decode([*anchor, token_id], clean_up_tokenization_spaces=False)
        return (both.removeprefix(before) if both.startswith(before) else name).encode()

    return rule


def _steps(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _replaces_meta_space(steps: list[dict[str, Any]]) -> bool:
    return any(
        step["type"] == "Replace" and step["content"] == " " and META_SPACE in step["pattern"].get("String", "")
        for step in steps
    )


def byte_characters() -> dict[int, str]:
    """GPT-2's table: byte -> printable character. Printable Latin-1 stands for itself, the 68 others for U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    table = {byte: chr(byte) for byte in printable}
    for place, byte in enumerate(byte for byte in range(256) if byte not in printable):
        table[byte] = chr(256 + place)
    return table
