"""The conversations in the sidebar: found, opened, renamed, tagged, deleted with time to undo, exported and imported.

Scope: from HTTP to the history. Whose conversations a browser may see, its owner says; an id proves nothing.
"""
