"""What can be wrong with a model: one error class for the whole room.

A `ModelError` is always the user's business (a wrong name, a missing file, too little memory), never a bug of ours;
it names the source, what was found, and the next step.
"""

from __future__ import annotations

from raydecode.errors import UserError


class ModelError(UserError):
    """A model that cannot be found, read, trusted or held in memory."""
