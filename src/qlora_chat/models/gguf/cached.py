"""The path of a GGUF file -> a base in the cache, converted at its first use.

Scope: recognising the file, and the cache's entries. Imports the gguf library only when something has to be converted.
"""

from __future__ import annotations

from pathlib import Path

from qlora_chat.models import ModelError
from qlora_chat.models.cache import Cache, CacheEntry, Record, key_of
from qlora_chat.models.part import ModelPart, file_fingerprint

MAGIC = b"GGUF"


def is_gguf(path: Path) -> bool:
    """True for a file that begins as GGUF does, and for a name that says so where no folder has it."""
    if path.is_dir():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def gguf_part(path: Path, cache: Cache, *, weights: bool = True, contents: str | None = None) -> ModelPart:
    """The base in a GGUF file, dequantised into the cache at its first use; without weights, its config and tokenizer alone.

    Quantised tensors become bf16; others stay as they are stored. `contents` is the file's fingerprint if it is known.
    ModelError for a missing or broken file, for a model that this program does not run, and where the cache has no room.
    """
    path = path.expanduser()
    if not path.is_file():
        raise ModelError(f"--base is {str(path)!r}, but there is no such file; give the path of a .gguf file")
    contents = contents or file_fingerprint(path)
    entry = cache.find("gguf", key_of(path.stem, {"gguf": contents}))
    if entry is None:
        entry = _dequantised(cache, path, contents) if weights else _described(cache, path, contents)
    digests = entry.record.get("weights")
    known = {entry.folder / name: str(digest) for name, digest in digests.items()} if isinstance(digests, dict) else {}
    return ModelPart(path.stem, entry.folder, known_digests=known)


def _dequantised(cache: Cache, path: Path, contents: str) -> CacheEntry:
    from qlora_chat.models.gguf.convert import headers_of, write_base
    from qlora_chat.models.gguf.file import GgufFile

    file = GgufFile(path)
    size = sum(each.bytes for each in headers_of(file).values())

    def write(folder: Path) -> Record:
        return {"converted_from": path.name, "contents": contents, "weights": write_base(file, folder)}

    cache.notify(f"{path.name} is dequantised once into the cache ({size / 1e9:.1f} GB)")
    return cache.write("gguf", key_of(path.stem, {"gguf": contents}), write, size)


def _described(cache: Cache, path: Path, contents: str) -> CacheEntry:
    from qlora_chat.models.gguf.convert import write_description
    from qlora_chat.models.gguf.file import GgufFile

    def write(folder: Path) -> Record:
        write_description(GgufFile(path), folder)
        return {"converted_from": path.name, "contents": contents}

    key = key_of(path.stem, {"gguf": contents, "weights": False})
    return cache.find("gguf", key) or cache.write("gguf", key, write)
