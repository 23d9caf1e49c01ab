"""The trainable LLaMA: NF4 base, LoRA, attention, loss."""
