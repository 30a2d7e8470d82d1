"""The command `python -m pgha.chaos image`, which makes the image for nodes in containers."""

import sys

from pgha.chaos._containers.image import main

if __name__ == "__main__":
    sys.exit(main())
