"""`python -m adalink_jax.train` is `adalink train`."""

import sys

from adalink_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
