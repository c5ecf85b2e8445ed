"""Contact sheets draw any text that a model outputs."""

import io

import numpy as np
import pytest
from PIL import Image

from adalink_jax.training.contact_sheet import contact_sheet


@pytest.mark.parametrize("text", ["$o $o $ $ $o $", "a_b^{c} \\frac{1}", "写真です", "", "long words " * 60])
def test_any_text_is_drawn(text):
    sample = {"image": np.zeros((8, 16, 1), np.float32), "inputs": text, "target": "two $", "prediction": text}
    with Image.open(io.BytesIO(contact_sheet([sample] * 5, f"task {text}", [text] * 5))) as picture:
        assert picture.width > 1000 and picture.height > 300
