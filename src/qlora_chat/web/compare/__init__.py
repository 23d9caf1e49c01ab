"""The compare view: one question to several models and settings side by side, a vote, and the answer to go on with."""
