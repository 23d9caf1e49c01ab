"""Posting finished turns to LOGGING_URL.

Scope: the payload and the sender. Reads what history records; knows no engine and no page.
"""
