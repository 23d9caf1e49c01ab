"""Errors whose message is written for the person who reads it.

Scope: the one base class that the command line, the page and the API look for. Knows nothing of what went wrong.
"""

from __future__ import annotations


class UserError(Exception):
    """An error that a person can act on: the message says what arrived, what was expected and what to do next.

    Anything else that reaches the command line is a defect and shows its traceback.
    """
