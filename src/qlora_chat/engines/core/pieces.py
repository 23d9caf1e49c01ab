"""From the thread that makes an answer to the one that reads it.

Scope: the end of a queue that every engine's stream shares. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue

from qlora_chat.engines import EngineError, Piece

Pieces = SimpleQueue[Piece | EngineError]
"""One answer's pieces as they are made; the last one has `finish`, or is an error instead."""


def handed_out(pieces: Pieces) -> Iterator[Piece]:
    """Each piece as soon as it is there, to the last. EngineError if generation fails."""
    while True:
        piece = pieces.get()
        if isinstance(piece, EngineError):
            raise piece
        yield piece
        if piece.finish is not None:
            return
