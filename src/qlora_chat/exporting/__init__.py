"""A model for another server: files, chat template, and the command that serves them.

Scope: folders. Merging itself is in models. Knows no engine and no page.
"""
