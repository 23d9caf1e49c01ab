"""Errors whose message is written for the person who reads it, and the causes of others.

Scope: the one base class that the command line, the page and the API look for. Knows nothing of what went wrong.
"""

from __future__ import annotations


class UserError(Exception):
    """An error that a person can act on: the message says what arrived, what was expected and what to do next.

    Anything else that reaches the command line is a defect and shows its traceback.
    """


def causes(problem: BaseException) -> list[BaseException]:
    """The exception and those that it wraps, as causes, contexts or members of a group."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [problem]
    while waiting:
        each = waiting.pop(0)
        if each is None or any(each is other for other in found):
            continue
        found.append(each)
        members = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        waiting += [each.__cause__, each.__context__, *members]
    return found
