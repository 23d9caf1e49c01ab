"""`python chatbot.py` opens the page: it is `qlora-chat serve`, and takes the same options."""

import sys

try:
    from qlora_chat.cli import main
except ModuleNotFoundError as missing:
    sys.exit("chatbot.py: %s is not installed in this Python; type: make chat   (or: pip install -e . && python chatbot.py)" % missing.name)

if __name__ == "__main__":
    sys.argv.insert(1, "serve")
    main()
