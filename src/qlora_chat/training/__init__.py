"""Fine-tuning: dialogues -> QLoRA -> adapter, with a run that can be broken off at any moment and gone on with.

Scope: the second flow of the program; train.py holds all of it on one screen. Importing this module imports no torch.
Knows nothing of pages, engines or chats; what it makes is a PEFT adapter folder.
"""

from qlora_chat.errors import UserError


class TrainError(UserError, RuntimeError):
    """A run cannot begin or go on; the message says what arrived, what was expected, and what to do next."""
