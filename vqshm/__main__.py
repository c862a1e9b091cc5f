"""Runs the command line as `python -m vqshm`."""

import sys

from vqshm.cli import main

sys.exit(main())
