"""Text, ids and bytes: the byte law on tokenizers of each family, chats, ends."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from raydecode.errors import RowError
from raydecode.models import ModelError, Vocabulary, load_tokenizer
from raydecode.models.token_bytes import byte_characters
from tests.models.tiny import TEXTS, byte_level_tokenizer, sentencepiece_tokenizer, wordpiece_tokenizer

Tiny = Callable[[str], Path]
BYTE_LEVEL = Vocabulary(byte_level_tokenizer())
SENTENCEPIECE = Vocabulary(sentencepiece_tokenizer())
USER = [{"role": "user", "content": "Hi\n\n1."}]


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_byte_level_tokens_join_to_the_text(text: str) -> None:
    ids = BYTE_LEVEL.encode(text)
    plain = [i for i in ids if i not in BYTE_LEVEL.special_ids]
    assert BYTE_LEVEL.decode(plain) == BYTE_LEVEL.tokenizer.decode(plain, clean_up_tokenization_spaces=False).encode()
    if len(plain) == len(ids):
        assert BYTE_LEVEL.decode(ids) == text.encode()


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_sentencepiece_tokens_join_to_the_text(text: str) -> None:
    ids = SENTENCEPIECE.encode(text, special=False)
    if any(i in SENTENCEPIECE.special_ids for i in ids) or "\u2581" in text:
        return  # the text spells a special token, or the character that stands for a space
    space = b" " if text else b""
    assert SENTENCEPIECE.decode(ids) == space + text.encode()
    assert SENTENCEPIECE.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_a_sentencepiece_continuation_keeps_its_space() -> None:
    before, both = SENTENCEPIECE.encode("The", special=False), SENTENCEPIECE.encode("The quick", special=False)
    assert both[: len(before)] == before
    assert SENTENCEPIECE.decode(both[len(before) :]) == b" quick"


def test_byte_tokens_are_bytes() -> None:
    vocab = SENTENCEPIECE.tokenizer.get_vocab()
    assert [SENTENCEPIECE.token_bytes[vocab[f"<0x{byte:02X}>"]] for byte in range(256)] == [
        bytes([byte]) for byte in range(256)
    ]
    names = BYTE_LEVEL.tokenizer.get_vocab()
    assert all(BYTE_LEVEL.token_bytes[names[name]] == bytes([byte]) for byte, name in byte_characters().items())


def test_the_table_is_the_one_of_the_tokenizers_library() -> None:
    from tokenizers import pre_tokenizers

    assert set(byte_characters().values()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert len(set(byte_characters().values())) == 256


@pytest.mark.parametrize("text", TEXTS)
def test_the_quickstart_model_keeps_the_byte_law(smollm_vocabulary: Vocabulary, text: str) -> None:
    ids = smollm_vocabulary.encode(text)
    assert smollm_vocabulary.decode(ids) == text.encode()
    assert smollm_vocabulary.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@given(ids=st.lists(st.integers(0, 49_151), max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_ids_keep_the_byte_law_up_to_broken_characters(smollm_vocabulary: Vocabulary, ids: list[int]) -> None:
    plain = [i for i in ids if i not in smollm_vocabulary.special_ids]
    shown = smollm_vocabulary.tokenizer.decode(plain, clean_up_tokenization_spaces=False)
    assert smollm_vocabulary.decode(plain).decode(errors="replace") == shown


def test_wordpiece_is_best_effort() -> None:
    words = Vocabulary(wordpiece_tokenizer())
    assert words.decode(words.encode("the quick")).split() == [b"the", b"quick"]


def test_a_tokenizer_without_decoder_is_asked_token_by_token() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "bc": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
    assert words.token_bytes == (b"", b" a", b" bc")


def test_special_ids_have_no_bytes_and_added_words_do() -> None:
    vocab = BYTE_LEVEL.tokenizer.get_vocab()
    assert BYTE_LEVEL.special_ids == {vocab["<|endoftext|>"], vocab["<|im_start|>"], vocab["<|im_end|>"]}
    assert all(BYTE_LEVEL.token_bytes[i] == b"" for i in BYTE_LEVEL.special_ids)
    assert BYTE_LEVEL.token_bytes[vocab["<think>"]] == b"<think>"


def test_a_padded_embedding_has_ids_without_bytes() -> None:
    tokenizer = byte_level_tokenizer()
    padded = Vocabulary(tokenizer, size=len(tokenizer) + 5)
    assert len(padded) == len(padded.token_bytes) == len(tokenizer) + 5
    assert padded.unused_ids == set(range(len(tokenizer), len(tokenizer) + 5))
    assert padded.decode(padded.unused_ids) == b""


def test_a_bos_is_added_once_and_an_end_never() -> None:
    bos = SENTENCEPIECE.tokenizer.bos_token_id
    assert SENTENCEPIECE.encode("The")[0] == bos
    assert bos not in SENTENCEPIECE.encode("The", special=False)
    from tokenizers.processors import TemplateProcessing

    tokenizer = sentencepiece_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    appending = Vocabulary(tokenizer)
    assert appending.encode("The") == SENTENCEPIECE.encode("The")
    assert appending.encode("The</s>")[-1] == tokenizer.eos_token_id  # the prompt itself ends so


def test_a_chat_ends_where_the_assistant_begins() -> None:
    ids = BYTE_LEVEL.render_chat(USER)
    text = "<|endoftext|><|im_start|>user\nHi\n\n1.<|im_end|>\n<|im_start|>assistant\n"
    assert BYTE_LEVEL.tokenizer.decode(ids) == text
    assert ids.count(BYTE_LEVEL.tokenizer.bos_token_id) == 1
    begun = BYTE_LEVEL.render_chat([*USER, {"role": "assistant", "content": "Well"}], continue_last=True)
    assert BYTE_LEVEL.tokenizer.decode(begun) == text + "Well"


def test_a_chat_template_that_writes_bos_beside_a_tokenizer_that_adds_it() -> None:
    tokenizer = sentencepiece_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    ids = Vocabulary(tokenizer).render_chat([{"role": "user", "content": "The"}])
    assert ids.count(tokenizer.bos_token_id) == 1


def test_ends_come_from_tokenizer_template_and_generation_config(tiny_folder: Tiny) -> None:
    vocab = BYTE_LEVEL.tokenizer.get_vocab()
    assert BYTE_LEVEL.eos_ids == {vocab["<|endoftext|>"], vocab["<|im_end|>"]}
    assert Vocabulary(byte_level_tokenizer(), eos_ids=[5]).eos_ids == BYTE_LEVEL.eos_ids | {5}
    plain = byte_level_tokenizer()
    plain.chat_template = None
    assert Vocabulary(plain).eos_ids == {vocab["<|endoftext|>"]}
    of = Vocabulary.of(tiny_folder("llama"))
    assert of.eos_ids >= BYTE_LEVEL.eos_ids
    assert len(of) == len(BYTE_LEVEL)


def test_what_a_template_cannot_do_is_said() -> None:
    with pytest.raises(ModelError, match="no chat template"):
        SENTENCEPIECE.render_chat(USER)
    with pytest.raises(ModelError, match="no place for tools"):
        BYTE_LEVEL.render_chat(USER, tools=[{"type": "function", "function": {"name": "f"}}])
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RowError, match="roles must alternate") as refusal:
        Vocabulary(tokenizer).render_chat(USER)
    assert (refusal.value.stage, refusal.value.kind) == ("prompt", "chat_template")


def test_tools_reach_a_template_that_takes_them() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{% for t in tools %}{{ t.function.name }}{% endfor %}"
    ids = Vocabulary(tokenizer).render_chat(USER, tools=[{"type": "function", "function": {"name": "weather"}}])
    assert tokenizer.decode(ids) == "weather"


def test_the_quickstart_chat(smollm_vocabulary: Vocabulary) -> None:
    ids = smollm_vocabulary.render_chat(USER)
    assert smollm_vocabulary.tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi\n\n1.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm_vocabulary.eos_ids == {2}


def test_no_special_token_is_added_to_plain_prompts_of_the_quickstart_model(smollm: Path) -> None:
    tokenizer = load_tokenizer(smollm)
    assert tokenizer.encode("The") == tokenizer.encode("The", add_special_tokens=False)


def test_half_a_surrogate_pair_is_the_rows_fault() -> None:
    with pytest.raises(RowError, match="character 2 is half a surrogate pair"):
        BYTE_LEVEL.encode("ab\ud83d")
