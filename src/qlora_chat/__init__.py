"""QLoRA Chat: turn a QLoRA adapter into a chatbot on the hardware you own."""

__version__ = "0.1.0"
