"""The counts of .ci/structure on a small package."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / ".ci" / "structure"
FILES = {
    "__init__.py": "",
    "alone.py": "import os\n\ndef wide(a, b, c, d, e, f): ...\n\ndef _private(a, b, c, d, e, f, g): ...\n",
    "one/__init__.py": "",
    "one/first.py": "def load():\n    from shfcas.one import second\n",
    "one/second.py": "from .first import load\n\nclass Thing:\n    def __init__(self, a, b, c, d, e, *, f): ...\n",
    "two/__init__.py": "from shfcas.one.first import load\n",
}


def count(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True)


def test_counts_of_a_small_package(tmp_path: Path) -> None:
    for name, text in FILES.items():
        path = tmp_path / "shfcas" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    rows = dict(line.split("  ", 1) for line in count(tmp_path).stdout.splitlines())
    assert {name.strip(): value.strip() for name, value in rows.items()} == {
        "top-level packages": "2",
        "modules in the root": "2",
        "modules": "6",
        "import cycles": "1",
        "modules in import cycles": "2",
        "largest file": "5 lines, shfcas/alone.py",
        "longest parameter list": "7 parameters, shfcas.alone._private",
        "public functions with more than 5 positional parameters": "1",
    }


def test_a_folder_without_the_package_is_an_error(tmp_path: Path) -> None:
    result = count(tmp_path)
    assert result.returncode == 1 and "expected a checkout" in result.stderr
