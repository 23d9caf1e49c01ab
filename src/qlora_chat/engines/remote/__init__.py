"""Answers from other machines: any server with OpenAI's /v1/completions, behind the Engine protocol.

    engine -> answer -> pool (which server) -> server (one request) -> sse (its bytes)

Scope: our token ids and stops in, pieces out. Importing this package imports neither torch nor an HTTP client.
"""
