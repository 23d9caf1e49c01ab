"""Fine-tuning: dialogues -> QLoRA -> adapter, with a run that can be broken off at any moment and gone on with.

Scope: the second flow of the program; train.py holds all of it on one screen. Importing this module imports no torch.
Knows nothing of pages, engines or chats; what it makes is a PEFT adapter folder.
"""


class TrainError(RuntimeError):
    """A run cannot begin or go on; the message says what arrived, what was expected, and what to do next."""

    for_people = True
