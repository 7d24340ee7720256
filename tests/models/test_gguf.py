"""GGUF files written here as llama.cpp writes them, converted, and compared with the model they came from."""

import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import LlamaForCausalLM

from raydecode.models import ModelError, Vocabulary, check, load_module, load_tokenizer, load_weights
from raydecode.models.gguf import RULES, convert, folder_of
from tests.models.tiny import TEXTS, byte_level_tokenizer, write_gguf

Tiny = Callable[[str], Path]


@pytest.fixture
def make(tiny_folder: Tiny, tmp_path: Path) -> Callable[..., Path]:
    """Options of `write_gguf` -> a GGUF of the tiny Llama model."""

    def write(**options: object) -> Path:
        file = tmp_path / "tiny.gguf"
        module = LlamaForCausalLM.from_pretrained(tiny_folder("llama"))
        write_gguf(module, byte_level_tokenizer(), file, **options)  # type: ignore[arg-type]
        return file

    return write


def test_a_float32_file_is_exactly_the_model_it_came_from(
    make: Callable[..., Path], tiny_folder: Tiny, cache: Path
) -> None:
    folder = folder_of(make())
    weights, original = load_weights(folder), load_weights(tiny_folder("llama"))
    assert weights.keys() == original.keys()
    assert all(torch.equal(weights[name], original[name]) for name in original)
    ids = torch.arange(20).reshape(1, -1)
    with torch.inference_mode():
        assert torch.equal(load_module(folder)(ids).logits, load_module(tiny_folder("llama"))(ids).logits)
    card = check(folder)
    assert (card.dtype, card.context, card.tied) == ("float32", 128, True)
    assert folder_of(folder.parent.parent.parent / "tiny.gguf") == folder, "the second time it comes from the cache"
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}


@pytest.mark.parametrize(
    ("kind", "stored", "error"), [("F16", torch.float16, 2**-11), ("Q8_0", torch.bfloat16, 2**-7)], ids=str
)
def test_dtypes_are_kept_and_quantised_files_become_bfloat16(
    make: Callable[..., Path], tiny_folder: Tiny, tmp_path: Path, kind: str, stored: torch.dtype, error: float
) -> None:
    convert(make(kind=gguf.GGMLQuantizationType[kind]), tmp_path / "out", {})
    weights, original = load_weights(tmp_path / "out"), load_weights(tiny_folder("llama"))
    for name, tensor in original.items():
        assert weights[name].dtype == stored
        assert (weights[name].float() - tensor).abs().max() <= error * tensor.abs().max()


def test_the_tokenizer_and_its_settings_survive(make: Callable[..., Path], tmp_path: Path) -> None:
    convert(make(), tmp_path / "out", {"source": "test"})
    original, vocabulary = byte_level_tokenizer(), Vocabulary.of(tmp_path / "out")
    vocab = original.get_vocab()
    assert vocabulary.eos_ids == {vocab["<|im_end|>"]}
    assert {vocab["<|im_start|>"], vocab["<|im_end|>"], vocab["<|endoftext|>"]} <= vocabulary.special_ids
    for text in TEXTS:
        assert vocabulary.encode(text) == original.encode(text)
        assert vocabulary.decode(vocabulary.encode(text)) == text.encode()
    chat = [{"role": "user", "content": "1 2"}]
    assert vocabulary.tokenizer.decode(vocabulary.render_chat(chat)).endswith("<|im_start|>assistant\n")
    assert vocabulary.tokenizer.model_max_length == 128


@pytest.mark.parametrize("rule", [rule for rule, does in RULES.items() if does.digits_apart])
def test_digit_rules_split_numbers_first(make: Callable[..., Path], tmp_path: Path, rule: str) -> None:
    convert(make(rule=rule), tmp_path / "out", {})
    split = load_tokenizer(tmp_path / "out").backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in split.pre_tokenize_str("a\n\n1.  42 ½")] == [
        "a", "ĊĊ", "1", ".", "ĠĠ", "4", "2", "Ġ", "Â½",
    ]  # fmt: skip


def test_the_quickstart_tokenizer_follows_llama_cpp(smollm: Path) -> None:
    """Against the rule as llama.cpp states it, two regular expressions one after the other, over awkward texts."""
    expected = load_tokenizer(smollm)
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    expected.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.Split(Regex(gpt2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    found = load_tokenizer(smollm)
    for text in [*TEXTS, "x = [1,  22,\t333]\n    4444\n\n\n5", "٣ Ⅷ 十 1st 2nd", "it's 7'll"]:
        assert found.encode(text) == expected.encode(text), text
    assert found.convert_ids_to_tokens(found.encode("\n\n1.")) == ["ĊĊ", "1", "."]
    assert found.convert_ids_to_tokens(found.encode("  42")) == ["ĠĠ", "4", "2"]


@pytest.mark.parametrize(
    ("rule", "stated", "expected"),
    [
        ("gpt-2", None, False), ("gpt-2", True, True), ("gpt-2", False, False),
        ("llama-bpe", None, True), ("llama-bpe", False, False), ("tekken", None, True), ("qwen2", None, False),
    ],
)  # fmt: skip
def test_bos_as_the_file_says_else_as_llama_cpp_does(
    make: Callable[..., Path], tmp_path: Path, rule: str, stated: bool | None, expected: bool
) -> None:
    convert(make(rule=rule, add_bos=stated), tmp_path / "out", {})
    tokenizer = load_tokenizer(tmp_path / "out")
    ids = tokenizer.encode("The fox")
    assert (ids[0] == tokenizer.bos_token_id) is expected
    assert ids.count(tokenizer.bos_token_id) == expected


def test_llama_3_takes_whole_words_from_the_vocabulary_first(make: Callable[..., Path], tmp_path: Path) -> None:
    convert(make(rule="llama-bpe"), tmp_path / "out", {})
    assert load_tokenizer(tmp_path / "out").backend_tokenizer.model.ignore_merges is True


@pytest.mark.parametrize("rule", ["something-new", None])
def test_an_unknown_rule_is_refused_because_tokens_would_differ_silently(
    make: Callable[..., Path], cache: Path, rule: str | None
) -> None:
    with pytest.raises(ModelError, match=f"splits text by the rule {rule!r}"):
        folder_of(make(rule=rule))


def test_too_little_memory_is_said_before_dequantising(make: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not enough memory to convert tiny.gguf: 0.49 GiB needed, 0.00 GiB avail"):
        convert(make(), tmp_path, {}, available=1)


def test_damaged_missing_and_foreign_files(make: Callable[..., Path], tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        folder_of(tmp_path / "none.gguf")
    file = make()
    content = file.read_bytes()
    for broken in (b"", b"GGUF", b"no gguf at all" * 10, content[: len(content) // 2]):
        file.write_bytes(broken)
        with pytest.raises(ModelError, match="not a complete GGUF"):
            folder_of(file)
    file.write_bytes(content.replace(b"llama", b"abcde"))
    with pytest.raises(ModelError, match="'abcde' model"):
        folder_of(file)
    assert not [path for path in (cache / "models").iterdir() if not path.name.endswith(".lock")]


CONVERTER = "import sys; from raydecode.models import locate; print(locate(sys.argv[1]), flush=True)"


def test_of_two_converters_the_one_at_work_is_killed_and_the_other_finishes(
    make: Callable[..., Path], cache: Path
) -> None:
    file = make()
    command = [sys.executable, "-c", CONVERTER, str(file)]
    runs = {run.pid: run for run in (subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2))}
    deadline = time.monotonic() + 100
    while not (partial := list(cache.glob("models/.*.partial-*"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    (lock,) = cache.glob("models/.*.lock")
    at_work = runs.pop(_holder(lock))
    at_work.kill()
    at_work.communicate()
    (other,) = runs.values()
    folder = Path(other.communicate(timeout=120)[0].strip())
    assert other.returncode == 0
    assert check(folder).parameters > 0
    assert folder_of(file) == folder
    assert len(partial) == 1
    assert sorted(path.name for path in (cache / "models").iterdir()) == [f".{folder.name}.lock", folder.name]


def _holder(lock: Path) -> int:
    """The process that holds the flock: /proc/locks names it by inode; waiting ones are marked with an arrow."""
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "->" not in fields and fields[1] == "FLOCK" and int(fields[5].rsplit(":", 1)[1]) == lock.stat().st_ino:
            return int(fields[4])
    raise AssertionError(f"nobody holds {lock}")
