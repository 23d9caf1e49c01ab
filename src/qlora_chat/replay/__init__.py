"""Makes a recorded answer again, and says exactly what differs.

Scope: version 2 records and the engine. Knows no store, no page and no file formats but the record's JSON.
"""
