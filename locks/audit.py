"""`make audit`: known vulnerabilities of the pinned packages, as pip-audit finds them.

usage: audit.py SERVICE LIST..., with the Python that pip-audit is installed for.

Exit code 0: every package was checked, and none has an advisory. 1: some have one. 2: something could not be checked, so the
result promises nothing. pip-audit alone exits with 0 if the service knows none of the packages, and with a traceback if it
cannot be reached. Knows nothing of hashes: pip checks those.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLEAN, VULNERABLE, UNCHECKED = 0, 1, 2


def main(arguments: Sequence[str]) -> int:
    """Check the lists, print what was found, and return the exit code."""
    service, *lists = arguments
    found = _report(service, lists)
    if isinstance(found, str):
        print(f"Nothing was checked: the advisories of {service!r} cannot be read ({found}).", file=sys.stderr)
        print(
            "Run `make audit` again where that service can be reached, or choose another: SERVICE=osv or pypi.", file=sys.stderr
        )
        return UNCHECKED
    skipped = [each for each in found if "skip_reason" in each]
    for each in skipped:
        print(f"{each['name']} was not checked: {each['skip_reason']}", file=sys.stderr)
    vulnerable = [each for each in found if each.get("vulns")]
    for each in vulnerable:
        for advisory in each["vulns"]:
            fixed = ", ".join(advisory["fix_versions"]) or "no version yet"
            print(f"{each['name']} {each['version']}: {advisory['id']}, fixed in {fixed}")
    print(f"{len(found) - len(skipped)} packages checked, {len(vulnerable)} with advisories, {len(skipped)} not checked")
    missing = sorted(_names(lists) - {_normal(each["name"]) for each in found})
    if missing:
        print(f"not reported by pip-audit, because they are for other systems or Pythons: {', '.join(missing)}")
    return VULNERABLE if vulnerable else UNCHECKED if skipped or len(found) == 0 else CLEAN


def _report(service: str, lists: Sequence[str]) -> list[dict[str, Any]] | str:
    """Packages with their advisories, or the reason why there are none."""
    files = [part for each in lists for part in ("--requirement", each)]
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service, "--disable-pip", "--require-hashes",
               "--progress-spinner", "off", "--format", "json", *files]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(ended.stdout)["dependencies"]
    except (ValueError, KeyError):
        return (ended.stderr.strip().splitlines() or [f"pip-audit ended with {ended.returncode}"])[-1]


def _names(lists: Sequence[str]) -> set[str]:
    return {_normal(name) for each in lists for name in re.findall(r"^([\w.-]+)==", Path(each).read_text(), re.MULTILINE)}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
