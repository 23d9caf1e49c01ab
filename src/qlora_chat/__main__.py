"""The program `qlora-chat`, and `python -m qlora_chat`: Ctrl-C is one line from the first moment on."""

import sys


def main() -> None:
    """Run the command line; its modules are imported inside, where Ctrl-C is caught."""
    try:
        from qlora_chat.cli import main as run

        run()
    except KeyboardInterrupt:
        print("qlora-chat: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
