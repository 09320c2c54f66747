"""``python -m bishare``, and the console script ``bishare``."""

import sys

from bishare.cli import main

if __name__ == "__main__":
    sys.exit(main())
