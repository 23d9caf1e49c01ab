"""`python chatbot.py` opens the page: it is `qlora-chat serve`, and takes the same options."""

import sys

try:
    from qlora_chat.cli import main
except ModuleNotFoundError as missing:
    sys.exit(f"chatbot.py: {missing.name} is not installed here; type: make chat   (or: pip install -e . && python chatbot.py)")

if __name__ == "__main__":
    sys.argv.insert(1, "serve")
    main()
