"""`python -m shfcas`, where the script `shfcas` is not on the path."""

import sys

from shfcas.cli import main

if __name__ == "__main__":  # not in the processes that a command starts
    sys.exit(main())
