"""Fine-tuning: dialogues -> QLoRA -> adapter, in a run that can be interrupted at any moment and resumed.

Scope: the program's second flow; train.py shows all of it. Importing this module imports no torch. Knows nothing of
pages, engines or chats; its result is a PEFT adapter folder.
"""

from qlora_chat.errors import UserError


class TrainError(UserError, RuntimeError):
    """A run cannot start or continue; the message says what arrived, what was expected, and what to do next."""
