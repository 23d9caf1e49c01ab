"""The other end of LOGGING_URL: takes records, stores each once, counts and plots them, exports them.

Scope: records from their arrival over HTTP on. Knows no engine, no page of the chat and no training; it reads both payload
versions as any receiver would, from the bytes alone.
"""
