"""LoRA adapters: converting pickled ones, merging through PEFT, and what a merge costs."""
