"""`python -m lightning_gen`: the command line under a name that no other package can take."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
