"""Fill .carry/ for train_demo.py on a machine with a card and no network: the data, and a reduced bitsandbytes.

    python3 demo/carry_demo.py DATA.jsonl.xz [MORE ...] bitsandbytes-*.whl [--cuda 130]

Of the wheel (43 MB) one CUDA version's library and the CPU's are unpacked into .carry/site (4 MB), for PYTHONPATH. The
folder is ignored by git: the data is third-party.
"""

from __future__ import annotations

import argparse
import shutil
import zipfile
from pathlib import Path

CARRY = Path(__file__).parents[1] / ".carry"


def unpack(wheel: Path, site: Path, cuda: str) -> None:
    """Extract everything but the libraries for other CUDA versions."""
    libraries = (f"libbitsandbytes_cuda{cuda}.so", "libbitsandbytes_cpu.so")
    with zipfile.ZipFile(wheel) as files:
        for name in files.namelist():
            if not name.endswith(".so") or name.endswith(libraries):
                files.extract(name, site)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=Path, nargs="+", help="data, and wheels to unpack")
    parser.add_argument("--cuda", default="130", help="as in torch.version.cuda, without the point")
    chosen = parser.parse_args()
    CARRY.mkdir(exist_ok=True)
    for path in chosen.files:
        if path.suffix == ".whl":
            unpack(path, CARRY / "site", chosen.cuda)
        else:
            shutil.copy(path, CARRY / path.name)
    size = sum(path.stat().st_size for path in CARRY.rglob("*") if path.is_file())
    print(f"{CARRY} holds {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
