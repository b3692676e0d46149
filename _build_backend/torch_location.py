"""Location of the torch package to compile against; as a script, prints it for CMake.

Build isolation hides the target environment from ``sys.path``, but ``sysconfig`` still knows its site-packages.
Compiling against this torch, without importing it, is fast and downloads nothing.
"""

from __future__ import annotations

import re
import site
import sys
import sysconfig
from pathlib import Path

MINIMUM = (2, 11)


def find_torch() -> Path | None:
    """Returns the directory of the first torch package that is new enough and has the stable ABI headers."""
    places = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if site.ENABLE_USER_SITE:
        places.append(site.getusersitepackages())
    for place in places:
        torch = Path(place) / "torch"
        headers = torch / "include" / "torch" / "csrc" / "stable"
        if headers.is_dir() and _release(torch_version(torch)) >= MINIMUM:
            return torch
    return None


def torch_version(torch: Path) -> str:
    """Returns the version in ``torch/version.py``, such as ``2.13.0+cpu``."""
    match = re.search(r"^__version__ = ['\"](.+)['\"]", (torch / "version.py").read_text(), re.MULTILINE)
    return match.group(1) if match else "0.0"


def _release(version: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


if __name__ == "__main__":
    found = find_torch()
    if found is None:
        sys.exit("torch: expected version 2.11 or later with stable ABI headers, got none; install torch")
    print(f"{found.as_posix()};{torch_version(found)}", end="")
