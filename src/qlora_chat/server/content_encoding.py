"""Compressed request bodies: gzip is read, everything else is refused by name.

Scope: bytes and their limit. A body is decompressed at most up to its limit and one byte, however much it would become.
"""

from __future__ import annotations

import zlib

from starlette.datastructures import Headers

from qlora_chat.server.request_body import Refused

GZIP = ("gzip", "x-gzip")
GZIP_HEADER = 31
"""zlib's window bits for a stream with gzip's header."""


def decoded(body: bytes, headers: Headers, size: int) -> bytes:
    """The body without its Content-Encoding. Refused with 415 (another than gzip), 400 (damaged) or 413 (more than `size`)."""
    encodings = [each.strip().lower() for value in headers.getlist("content-encoding") for each in value.split(",")]
    encodings = [each for each in encodings if each not in ("", "identity")]
    if not encodings or not body:
        return body
    if len(encodings) > 1 or encodings[0] not in GZIP:
        name = ", ".join(encodings)[:80]
        raise Refused(
            415, f"This server reads no body with Content-Encoding {name!a}; send gzip or none.", {"accept-encoding": "gzip"}
        )
    unpacker = zlib.decompressobj(GZIP_HEADER)
    try:
        plain = unpacker.decompress(body, size + 1)
    except zlib.error:
        raise Refused(400, "The body is not gzip, though its Content-Encoding says so.") from None
    if len(plain) > size:
        raise Refused(413, f"The request is larger than {size:,} bytes, decompressed. Shorten it, or send it in parts.")
    if not unpacker.eof or unpacker.unused_data:
        raise Refused(400, "The body is not one whole gzip stream, though its Content-Encoding says so.")
    return plain
