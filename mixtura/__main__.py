"""`python -m mixtura` is the command line."""

import sys

from mixtura.cli import main

sys.exit(main())
