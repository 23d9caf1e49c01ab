"""The other end of LOGGING_URL: takes records, keeps them once, counts and plots them, hands them out again.

Scope: what arrives over HTTP and what becomes of it. Knows no engine, no page of the chat and no training; it reads
both payload versions as any receiver would, from the bytes alone.
"""
