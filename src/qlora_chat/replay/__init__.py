"""Replays a recorded answer and reports the first difference.

Scope: version 2 records and the engine. Knows no store, no page, and no file format but the record's JSON.
"""
