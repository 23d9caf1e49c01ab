"""Dialogues for training: finding files, parsing records, batches of token ids."""
