"""Predicted against measured time of a run: `train --check`, then the run itself.

    python bench/training_time.py --recipe demo --data examples/dialogues.jsonl --steps 10 --batch 16

Prints both, and their ratio. Arguments are those of `qlora-chat train`, without --out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Check, train, compare."""
    command = [sys.executable, "-m", "qlora_chat", "train", *sys.argv[1:]]
    checked = subprocess.run([*command, "--check", "--json"], stdout=subprocess.PIPE, check=True)
    predicted = json.loads(checked.stdout)["predicted_seconds"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        subprocess.run([*command, "--out", str(out)], check=True)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    measured = max(line["seconds"] for line in lines if "seconds" in line)
    print(f"predicted {predicted:.1f} s, measured {measured:.1f} s until the last step: {predicted / measured:.2f}")


if __name__ == "__main__":
    main()
