"""The chromium of this system, and how it is started."""

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")
MACOS = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]


def executable() -> str:
    """Where it is.

    Raises:
        RuntimeError: nowhere.
    """
    for name in (*NAMES, MACOS):
        if path := shutil.which(name):
            return path
    raise RuntimeError(f"none of {', '.join(NAMES)} is installed; `make browser` installs chromium")
