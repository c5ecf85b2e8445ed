"""`adalink` where the bundled tasks have other numbers of scenes, as a program: python small_digits.py SCENES COMMAND ...

SCENES: JSON, split -> number of scenes. Reading, decoding and drawing all scenes takes most of a short run. In a test's own
process the fixture `few_scenes` of conftest.py does the same; `helpers.adalink_here` starts this program.
"""

import json
import sys

from adalink_jax.data import digits

SCENES = {"train": 1_000, "validation": 20, "test": 40}

if __name__ == "__main__":
    from adalink_jax.cli.main import main

    digits.SCENES.update(json.loads(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
