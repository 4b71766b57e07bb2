"""`python -m segue.experiments`: the same as the command `segue`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
