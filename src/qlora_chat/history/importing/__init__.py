"""Import of conversations from our own exports, from other tools' exports and from dialogue files.

A file goes through four steps: source.py reads it into records, formats.py finds the tool that wrote a record, that tool's
module turns it into a Draft, and draft.py turns the draft into a conversation that a store accepts. importer.py stores them.

Scope: foreign files, all of which are untrusted. Knows no page and no engine.
"""

from __future__ import annotations


class BadExport(ValueError):
    """A record that cannot be imported; the message says what is wrong with it."""
