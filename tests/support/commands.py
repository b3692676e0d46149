"""Commands one after another in one process, given as a JSON list of their arguments; saves starting it for each."""

import json
import sys

from shfcas.cli import main

if __name__ == "__main__":
    sys.exit(next((code for code in map(main, json.loads(sys.argv[1])) if code), 0))
