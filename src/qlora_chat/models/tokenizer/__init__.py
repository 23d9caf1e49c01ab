"""Tokenizers: reading, converting, and the ids that begin and end a text."""
