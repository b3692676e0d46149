"""`python -m shfcas.cli`, where the script `shfcas` is not on the path."""

import sys

from shfcas.cli import main

sys.exit(main())
