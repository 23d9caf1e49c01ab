"""`python -m qlora_chat` is `qlora-chat`."""

from qlora_chat.cli import main

main()
