"""What a talking command opens before it talks, and closes afterwards."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from qlora_chat.settings import EngineSettings, LogSettings, ModelSettings

if TYPE_CHECKING:
    from qlora_chat.chat import Chat
    from qlora_chat.delivery.sender import LogSender


def open_chat(chosen: ModelSettings, log: LogSender | None, where: EngineSettings | None = None) -> Chat:
    """Load the model, or go to the servers that have it, and put a chat around it."""
    from qlora_chat.chat import Chat
    from qlora_chat.engines import open_engine
    from qlora_chat.history.memory import MemoryHistory
    from qlora_chat.prompt import prompt_format

    engine = open_engine(chosen, notify, where)
    return Chat(engine, prompt_format(engine.info.prompt_format), MemoryHistory(), log)


class Log:
    """The sender, where LOGGING_URL is set; closing it sends what is queued."""

    def __init__(self, logging: LogSettings) -> None:
        self.sender: LogSender | None = None
        if logging.url:
            from qlora_chat.delivery.sender import LogSender

            self.sender = LogSender(logging.url, notify)

    def close(self) -> None:
        """Send what is queued."""
        if self.sender:
            self.sender.close()


def notify(line: str) -> None:
    """A line for the person who started the program."""
    print(line, file=sys.stderr, flush=True)
