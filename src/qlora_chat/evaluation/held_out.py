"""Held-out text -> ids to measure a model on.

Scope: dialogues in every form that `train` takes, with the tokens under its loss counting, and plain text (.txt;
everything counts). Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qlora_chat.models import Notify
from qlora_chat.models.loss import HeldOut, Passage
from qlora_chat.models.tokenizer import ModelTokenizer
from qlora_chat.prompt import PromptFormat, training_text
from qlora_chat.training.data import find_data
from qlora_chat.training.dialogues import read_dialogues


class HeldOutError(ValueError):
    """Text that cannot be measured on; the message says what arrived and what to give."""

    for_people = True


def read_held_out(
    name: str, tokenizer: ModelTokenizer, window: int, most: int, form: PromptFormat, notify: Notify = lambda _: None
) -> HeldOut:
    """Passages of at most `window` tokens until about `most` tokens count, of a file, a folder or a dataset's Hub id.

    HeldOutError for a .txt that cannot be read or where nothing counts, TrainError for records that are no dialogues.
    """
    passages: list[Passage] = []
    counted = 0
    for each in _plain(Path(name), tokenizer, window) if name.endswith(".txt") else _told(name, tokenizer, form, notify):
        passage = Passage(each.ids[: window + 1], each.counted[: window + 1])
        passages.append(passage)
        counted += len(passage.rows)
        if counted >= most:
            break
    if not counted:
        raise HeldOutError(f"{name} holds no text to measure on; give dialogues with answers as `train` takes them, or a .txt")
    return HeldOut(tuple(each for each in passages if each.rows))


def _told(name: str, tokenizer: ModelTokenizer, form: PromptFormat, notify: Notify) -> Iterator[Passage]:
    """Dialogues as training renders them; what is under its loss with `--loss answers` counts."""
    read = read_dialogues(find_data(name, notify), skip_bad=None)
    end = tokenizer.token_id("</s>")
    for conversation in read.conversations:
        text = training_text(conversation, form, tokenizer, end, "answers")
        yield Passage(text.ids, text.learnt)


def _plain(path: Path, tokenizer: ModelTokenizer, window: int) -> Iterator[Passage]:
    """Windows side by side, each begun with BOS; every token counts but the first of a window."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise HeldOutError(f"{path} cannot be read as text ({problem})") from problem
    ids = tokenizer.encode(text)
    lead = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    step = window + 1 - len(lead)
    for begin in range(0, len(ids), step):
        part = (*lead, *ids[begin : begin + step])
        yield Passage(part, (False, *[True] * (len(part) - 1)))
