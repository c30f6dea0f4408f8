"""Asks pip-audit for known holes, and fails where it could not look most packages up.

    python tests/helpers/audit.py pip-audit [OPTIONS]

pip-audit itself says "No known vulnerabilities found" and exits with 0 also where the package index has no
advisories at all, as many mirrors have none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

LEAST_KNOWN = 0.5  # of the packages; a build such as torch's +cpu is not on PyPI, and so never known


def judge(packages: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """(exit code, what to print) of pip-audit's ``dependencies``, a package each."""
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    holes = []
    for each in packages:
        for hole in each.get("vulns", ()):
            mended = ", ".join(hole["fix_versions"]) or "no version yet"
            holes.append(f"{each['name']} {each['version']}: {hole['id']}, mended in {mended}")
    known = len(packages) - len(unknown)
    lines = [*holes, f"{len(holes)} known holes in {known} packages"]
    if unknown:
        lines.append(f"packages not looked up ({len(unknown)}): {', '.join(unknown)}")
    if known < LEAST_KNOWN * len(packages):
        lines.append(
            "the package index here knows too few of them, so nothing is proven; run this on PyPI itself"
        )
        return 1, lines
    return int(bool(holes)), lines


def main() -> None:
    command = [*sys.argv[1:], "--format=json", "--progress-spinner=off"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        sys.exit(f"pip-audit gave no answer; it ended with exit code {done.returncode}")
    code, lines = judge(packages)
    print("\n".join(lines))
    sys.exit(code)


if __name__ == "__main__":
    main()
