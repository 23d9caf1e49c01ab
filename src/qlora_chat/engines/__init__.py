"""Engines behind one protocol: in process (core, eager, cpu, cuda) or on other machines (remote)."""

from qlora_chat.engines.protocol import (
    COMPILED,
    NO_LOGPROBS,
    AdapterHost,
    Engine,
    EngineError,
    Finish,
    OutOfMemory,
    Piece,
    ReplayableEngine,
    Stream,
    TokenLogprobs,
)

__all__ = [
    "COMPILED",
    "NO_LOGPROBS",
    "AdapterHost",
    "Engine",
    "EngineError",
    "Finish",
    "OutOfMemory",
    "Piece",
    "ReplayableEngine",
    "Stream",
    "TokenLogprobs",
]
