"""`python -m adalink_jax` is `adalink`."""

import sys

from adalink_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
