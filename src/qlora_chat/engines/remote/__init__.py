"""Answers from other machines: any server that speaks OpenAI's /v1/completions, behind the Engine protocol.

    engine -> answer -> pool (which server) -> server (what it takes) -> wire

Scope: our ids and stops in, pieces out. Importing this package imports neither torch nor an HTTP client.
"""
