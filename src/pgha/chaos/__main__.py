"""`python -m pgha.chaos image`: make the image of nodes in containers."""

import sys

from pgha.chaos._containers.image import main

if __name__ == "__main__":
    sys.exit(main())
