"""Data files -> dialogues, with every record validated, and the counts of all that was left out or changed.

Scope: the records of files.py, which dialogue_formats parses. A bad record is reported by file and line. Knows no tokenizer and
no weights.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from qlora_chat.chat_templates.format import TemplateFormat
from qlora_chat.chat_templates.text_reader import TextReader as ChatTextReader
from qlora_chat.dialogue_formats import BadRecord
from qlora_chat.dialogue_formats.dialogue import SURROGATES, UNANSWERED, Dialogue, parse_dialogue
from qlora_chat.dialogue_formats.formats import TEXT
from qlora_chat.models import Notify
from qlora_chat.prompt import ChatFormat
from qlora_chat.text import replace_surrogates
from qlora_chat.training import TrainError
from qlora_chat.training.data import files as data_files
from qlora_chat.training.data.files import read_file, read_records
from qlora_chat.training.data.sources import DataFile, file_names, find_data
from qlora_chat.training.data.tally import BadRecords, Tally

NO_ANSWER = "without an answer"
NOTHING_LEARNED = "whose answers are all marked as not to be learned"
ALSO_HELD_OUT = "that stand in a held-out file as well"
ADDED = "got the text that the chat template writes in front"
DUPLICATES = "repeat an earlier one; all copies are on one side of the split"
"""Reasons, as a summary writes them after the number of dialogues."""

TextReader = Callable[[str], Dialogue | None]
"""Reads a text that a model's own template wrote; None for another text."""


@dataclass(frozen=True)
class Dialogues:
    """Dialogues that were read, and counts of everything left out or changed."""

    train: tuple[Dialogue, ...]
    digest: str
    """sha256 over the files' contents, in order."""
    files: tuple[str, ...] = ()
    held_out: tuple[Dialogue, ...] = ()
    """Of files that are held out as a whole."""
    bad: BadRecords = field(default_factory=BadRecords)
    left_out: Tally = field(default_factory=Tally)
    changed: Tally = field(default_factory=Tally)

    @property
    def formats(self) -> Counter[str]:
        """Number of dialogues by format."""
        return Counter(each.format for each in (*self.train, *self.held_out))

    def summary(self) -> list[str]:
        """Lines for the user: the dialogues by format, then everything left out or changed, with counts and examples."""
        formats = ", ".join(f"{count:,} as {name}" for name, count in self.formats.items())
        held_out = f", {len(self.held_out):,} of them in held-out files" if self.held_out else ""
        count = self.formats.total()
        changed = [f"  {each}" for each in self.changed.lines()]
        left_out = [f"  left out: {each}" for each in (*self.bad.lines(), *self.left_out.lines())]
        return [f"{count:,} {'dialogue' if count == 1 else 'dialogues'} ({formats}){held_out}", *left_out, *changed]


def load_dialogues(names: Iterable[str], notify: Notify, *, skip_bad: bool | None = False) -> Dialogues:
    """Read the dialogues of all names, in order; a folder stands for its files. TrainError lists bad records by line.

    skip_bad leaves bad records out; None for a command without --skip-bad, whose error must not suggest it.
    """
    files = [file for name in names for file in find_data(name, notify)]
    digest, bad = hashlib.sha256(), BadRecords()
    parsed = [(each, file.is_held_out) for file, each in _parsed(files, digest.update, bad)]
    if bad.tally.total() and not skip_bad:
        raise TrainError(_problem_report(bad, can_skip=skip_bad is not None))
    train = tuple(each for each, is_held_out in parsed if not is_held_out)
    held_out = tuple(each for each, is_held_out in parsed if is_held_out)
    if not any(each.learned or each.format == TEXT for each in (*train, *held_out)):
        answered = any(len(each.conversation.messages) > 1 for each in (*train, *held_out))
        what = "no dialogue with an answer that is to be learned" if answered else "no dialogue with an answer"
        raise TrainError(f"{what} in {', '.join(file_names(files))}")
    return Dialogues(train, digest.hexdigest(), file_names(files), held_out, bad)


def _parsed(files: Sequence[DataFile], digest: Callable[[bytes], None], bad: BadRecords) -> Iterator[tuple[DataFile, Dialogue]]:
    room = data_files.MAX_BYTES
    for file in files:
        data = read_file(file.path, room)
        room -= len(data)
        digest(data)
        for where, record in read_records(file.path, data, bad.add):
            try:
                dialogue = replace(parse_dialogue(record), where=where)
            except BadRecord as problem:
                bad.add(where, str(problem))
            else:
                yield file, dialogue


def text_reader(template: ChatFormat) -> TextReader:
    """The reader of texts in a prompt format; Guanaco's need none, because dialogue_formats knows their markers."""
    reader = ChatTextReader.of(template) if isinstance(template, TemplateFormat) else None
    if reader is None:
        return lambda text: None
    return partial(_read_text, reader)


def _read_text(reader: ChatTextReader, text: str) -> Dialogue | None:
    found = reader.read(replace_surrogates(text))
    if found is None:
        return None
    changes = {SURROGATES: replace_surrogates(text) != text, UNANSWERED: found.unanswered, ADDED: found.added}
    return Dialogue(TEXT, found.conversation, changes=tuple(each for each, happened in changes.items() if happened))


def usable_dialogues(dialogues: Dialogues, read_text: TextReader, *, skip_bad: bool) -> Dialogues:
    """The dialogues of which something is learned, once texts are read in the model's format; everything else is counted.

    A dialogue that is held out is not learned as well. TrainError lists texts in another format.
    """
    bad, left_out, changed = dialogues.bad, Tally(), Tally()
    held_out = tuple(_usable(dialogues.held_out, read_text, bad, left_out, changed))
    contents = {content_of(each) for each in held_out}
    train = []
    for each in _usable(dialogues.train, read_text, bad, left_out, changed):
        if contents and content_of(each) in contents:
            left_out.add(ALSO_HELD_OUT, each.where)
        else:
            train.append(each)
    if bad.tally.total() and not skip_bad:
        raise TrainError(_problem_report(bad, can_skip=True))
    if not train and not held_out:
        reasons = "; ".join((*bad.lines(), *left_out.lines()))
        raise TrainError(f"no dialogue is left of {', '.join(dialogues.files)} ({reasons})")
    _count_duplicates(train, changed)
    return replace(dialogues, train=tuple(train), held_out=held_out, left_out=left_out, changed=changed)


def content_of(dialogue: Dialogue) -> tuple[str | None, ...]:
    """System text and messages: equal for two copies of a dialogue."""
    conversation = dialogue.conversation
    return (conversation.system, *(each.content for each in conversation.messages))


def _usable(
    dialogues: Iterable[Dialogue], read_text: TextReader, bad: BadRecords, left_out: Tally, changed: Tally
) -> Iterator[Dialogue]:
    for each in dialogues:
        found = _in_format(each, read_text)
        if found is None:
            bad.add(each.where, "'text' is neither in the model's chat template nor has it '### Human:' and '### Assistant:'")
        elif not found.conversation.messages:
            left_out.add(NO_ANSWER, each.where)
        elif not found.learned:
            left_out.add(NOTHING_LEARNED, each.where)
        else:
            for change in found.changes:
                changed.add(change, each.where)
            yield replace(found, text=None)


def _in_format(dialogue: Dialogue, read_text: TextReader) -> Dialogue | None:
    if dialogue.text is None:
        return dialogue
    if (found := read_text(dialogue.text)) is not None:
        return replace(found, where=dialogue.where)
    return None if dialogue.format == TEXT else dialogue


def _count_duplicates(dialogues: Iterable[Dialogue], changed: Tally) -> None:
    seen: set[int] = set()
    for each in dialogues:
        content = hash(content_of(each))
        if content in seen:
            changed.add(DUPLICATES, each.where)
        seen.add(content)


def _problem_report(bad: BadRecords, *, can_skip: bool) -> str:
    shown = "\n".join(f"  {each}" for each in bad.first)
    count = bad.tally.total()
    more = count - len(bad.first)
    rest = f"\n  and {more:,} more" if more else ""
    records = "1 record" if count == 1 else f"{count:,} records"
    advice = "fix them, or leave them out with --skip-bad" if can_skip else "fix them"
    return f"{records} cannot be used; {advice}\n{shown}{rest}"
