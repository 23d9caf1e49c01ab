"""Carry base and data to a machine with a card and no network, in parts that fit its upload limit.

    python3 demo/carry_smollm2.py pack BASE.gguf out/mix/own.jsonl.xz [MORE ...]      # here, once, in the project's environment
    python3 demo/carry_smollm2.py stage 0        # here: part 0 into .carry/, then carry .carry there and run:
    python3 demo/carry_smollm2.py join           # there: after the last part, everything is in out/carried

`pack` writes out/packed/part-NNN and manifest.json; `stage N` puts one part into .carry/ in place of the last one; `join` moves
it to out/carried/parts, which stays between calls, and unpacks when all are there: files by their names, a folder (a base in
many files) as a folder, and in site/, for PYTHONPATH, the packages that such a machine lacks, copied from this environment. Of
bitsandbytes only one CUDA version's library goes along. `join` needs nothing but Python. The data is third-party: out/ and
.carry/ are ignored by git.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKED, CARRY, CARRIED = ROOT / "out" / "packed", ROOT / ".carry", ROOT / "out" / "carried"
MANIFEST = "manifest.json"
MIB = 2**20
PACKAGES = ("bitsandbytes", "gguf")


class CarryError(Exception):
    """Something is missing or altered; the message says what to do."""


def pack(files: list[Path], part_mib: float, cuda: str) -> list[dict[str, object]]:
    """Write everything as one tar, cut into parts, and return the manifest's rows."""
    shutil.rmtree(PACKED, ignore_errors=True)
    PACKED.mkdir(parents=True)
    whole = PACKED / "whole.tar"
    with tarfile.open(whole, "w", dereference=True) as tar:
        for path in files:
            if not path.exists():
                raise CarryError(f"{path} does not exist")
            tar.add(path, path.name)
        for name in PACKAGES:
            folder = _folder_of(name)
            for each in (folder, *folder.parent.glob(f"{name}-*.dist-info")):
                tar.add(each, f"site/{each.name}", filter=lambda entry: entry if _belongs(entry.name, cuda) else None)
    rows: list[dict[str, object]] = []
    for index, piece in enumerate(_pieces(whole, int(part_mib * MIB))):
        name = f"part-{index:03}"
        (PACKED / name).write_bytes(piece)
        rows.append({"name": name, "bytes": len(piece), "sha256": hashlib.sha256(piece).hexdigest()})
    whole.unlink()
    (PACKED / MANIFEST).write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def _folder_of(package: str) -> Path:
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise CarryError(f"{package} is not installed here; run this with the project's environment")
    return Path(found.submodule_search_locations[0])


def _belongs(name: str, cuda: str) -> bool:
    """Return False for compiled Python, and for libraries of other CUDA versions."""
    return "__pycache__" not in name and (
        not name.endswith(".so") or name.endswith((f"libbitsandbytes_cuda{cuda}.so", "libbitsandbytes_cpu.so"))
    )


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(size):
            yield piece


def stage(index: int) -> Path:
    """Put one part and the manifest into .carry/, instead of what was there."""
    rows = json.loads((PACKED / MANIFEST).read_text())
    if not 0 <= index < len(rows):
        raise CarryError(f"there is no part {index}: `pack` wrote {len(rows)}, from 0 on")
    shutil.rmtree(CARRY, ignore_errors=True)
    CARRY.mkdir()
    shutil.copy(PACKED / MANIFEST, CARRY)
    return Path(shutil.copy(PACKED / rows[index]["name"], CARRY))


def join() -> str:
    """Take over the carried part; unpack when it was the last one. Return what to do next."""
    parts = CARRIED / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    for path in CARRY.iterdir() if CARRY.is_dir() else ():
        shutil.copy(path, parts)
    if not (parts / MANIFEST).is_file():
        raise CarryError("no part was carried here yet: `stage 0` on the other machine, and carry .carry")
    rows = json.loads((parts / MANIFEST).read_text())
    missing = [row["name"] for row in rows if not _is_whole(parts / row["name"], row["sha256"])]
    if missing:
        return f"missing or damaged: {', '.join(missing)}; stage and carry them"
    whole = CARRIED / "whole.tar"
    with whole.open("wb") as file:
        for row in rows:
            file.write((parts / row["name"]).read_bytes())
    with tarfile.open(whole) as tar:
        tar.extractall(CARRIED, filter="data")
    whole.unlink()
    return f"{CARRIED} holds {', '.join(sorted(each.name for each in CARRIED.iterdir() if each.name != 'parts'))}"


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("files", type=Path, nargs="+", help="base (a GGUF file or a folder) and data")
    packing.add_argument("--part-mib", type=float, default=18, help="size of a part: the upload limit less the tree")
    packing.add_argument("--cuda", default="130", help="as in torch.version.cuda, without the point")
    commands.add_parser("stage").add_argument("index", type=int)
    commands.add_parser("join")
    chosen = parser.parse_args()
    try:
        if chosen.command == "pack":
            rows = pack(chosen.files, chosen.part_mib, chosen.cuda)
            size = sum(int(str(row["bytes"])) for row in rows) / MIB
            print(f"{PACKED} holds {len(rows)} parts, {size:.0f} MiB; next: stage 0")
        elif chosen.command == "stage":
            print(f"{stage(chosen.index)} is ready to be carried")
        else:
            print(join())
    except CarryError as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    main()
