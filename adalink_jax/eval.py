"""`python -m adalink_jax.eval` is `adalink eval`."""

import sys

from adalink_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
