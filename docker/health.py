"""Health of a container, as the exit status: `python health.py [page] [reward]`.

The page and the reward server have to answer if they are named, or if they are served here.
"""

import sys
import urllib.error
import urllib.request

SERVED = {"page": "http://127.0.0.1:8900/", "reward": "http://127.0.0.1:8901/health"}
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(address: str) -> bool | None:
    """Returns whether a server answers; None if there is none."""
    try:
        with DIRECT.open(address, timeout=5) as reply:
            return bool(reply.status == 200)
    except urllib.error.HTTPError:
        return False
    except urllib.error.URLError as error:
        return None if isinstance(error.reason, ConnectionRefusedError) else False
    except OSError:
        return False


def main(wanted: list[str]) -> int:
    """Prints what does not answer; returns the exit status."""
    found = {name: answers(address) for name, address in SERVED.items()}
    bad = [name for name, state in found.items() if state is False or (state is None and name in wanted)]
    print(", ".join(f"{name} does not answer" for name in bad) or "healthy")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
