"""Pictures become the patches that `transformers`' Pix2StructImageProcessor makes of them, with headers too."""

import io
import sys
import types

import numpy as np
import pytest
from PIL import Image, ImageFont
from pix2struct_references import processor

from adalink_jax.data import FeatureConverter
from adalink_jax.data.images import decode_image, picture_array
from adalink_jax.data.patches import Patches
from adalink_jax.errors import UserError

TOLERANCE = 1e-4  # of patches, whose spread is 1, so of a hundredth of a grey level: torch computes the filter's weights in float32
SIZES = [(317, 203), (40, 900), (900, 40), (16, 16), (5, 3), (3000, 2), (1200, 1700)]


def drawn(size, seed=0):
    """Stripes and noise, in which every filter and every shift shows."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    waves = 96 * np.sin(x[..., None] / [3.0, 5.0, 11.0]) + 31 * np.cos(y[..., None] / [2.0, 7.0, 4.0])
    noise = np.random.default_rng(seed).integers(0, 30, waves.shape)
    return Image.fromarray((waves + 112 + noise).clip(0, 255).astype(np.uint8))


def theirs(image, most, size, **options):
    settings = {"max_patches": most, "patch_size": {"height": size, "width": size}}
    return processor(**settings)(image, return_tensors="np", **options)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("most, side", [(100, 16), (37, 4)])
def test_patches_rows_columns_and_mask(size, most, side):
    image = drawn(size)
    expected = theirs(image, most, side)
    found = picture_array(image, (most, 2 + 3 * side**2), "it", Patches(side))
    np.testing.assert_array_equal(found[:, :2], expected["flattened_patches"][0, :, :2])
    np.testing.assert_allclose(found, expected["flattened_patches"][0], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(found[:, 0] > 0, expected["attention_mask"][0] > 0)


@pytest.mark.parametrize("text", ["Which bar is the highest?", "a long question " * 12])
def test_a_text_is_drawn_above_the_picture(tmp_path, monkeypatch, text):
    """The reference would download its font."""
    font, image = tmp_path / "font.ttf", drawn((317, 203))
    font.write_bytes(ImageFont.load_default(10).path.getvalue())
    download = types.SimpleNamespace(hf_hub_download=lambda *names: str(font))
    monkeypatch.setattr(sys.modules[type(processor()).__module__], "hf_api", lambda: download)
    expected = theirs(image, 100, 16, is_vqa=True, header_text=text)["flattened_patches"][0]
    plain, from_file, pillow = (
        picture_array(image, (100, 770), "it", patches)
        for patches in (Patches(), *(Patches(header_font=name).for_text(text) for name in (str(font), "pillow")))
    )
    np.testing.assert_allclose(from_file, expected, rtol=0, atol=TOLERANCE)
    assert np.abs(plain - from_file).max() > 0.1 and np.abs(plain - pillow).max() > 0.1


def test_a_text_without_a_font_is_refused(tmp_path):
    assert Patches().for_text("") == Patches()
    with pytest.raises(UserError, match="there is 'why.'; set HEADER_FONT"):
        Patches().for_text("why?")
    (tmp_path / "x.ttf").write_text("no font")
    with pytest.raises(UserError, match="HEADER_FONT = .*x.ttf' is not a TrueType font"):
        Patches(header_font=str(tmp_path / "x.ttf")).for_text("why?")


def test_one_colour_grey_and_transparent_pictures():
    """One colour has no spread; grey has one channel; transparent pixels are white."""
    flat = picture_array(Image.new("RGB", (40, 30), "red"), (20, 50), "it", Patches(4))
    expected = theirs(Image.new("RGB", (40, 30), "red"), 20, 4)["flattened_patches"][0]
    np.testing.assert_allclose(flat, expected, rtol=1e-4, atol=1e-4)
    grey = drawn((30, 20)).convert("L")
    found = picture_array(grey, (20, 18), "it", Patches(4))
    of_three = picture_array(grey.convert("RGB"), (20, 50), "it", Patches(4))
    np.testing.assert_allclose(found[:, 2:], of_three[:, 2::3], atol=TOLERANCE)
    clear = drawn((30, 20)).convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    file = io.BytesIO()
    clear.save(file, "PNG")
    white = picture_array(Image.new("RGB", (30, 20), "white"), (20, 50), "it", Patches(4))
    np.testing.assert_array_equal(decode_image(file.getvalue(), (20, 50), "it", Patches(4)), white)


def test_people_are_shown_the_picture_again():
    image = drawn((64, 32))
    shown = Patches(4).shown(picture_array(image, (128, 50), "it", Patches(4)))
    pixels = np.asarray(image, np.float32)
    assert shown.shape == (32, 64, 3) and (shown.min(), shown.max()) == (-1, 1)
    assert np.corrcoef(shown.ravel(), pixels.ravel())[0, 1] > 0.999
    assert not Patches(4).shown(np.zeros((9, 50), np.float32)).any()


def test_features_have_the_text_in_the_picture_and_no_ids_of_it():
    file = io.BytesIO()
    drawn((64, 32)).save(file, "PNG")
    example = {"inputs": [5, 1], "targets": [7, 1], "image": file.getvalue(), "inputs_pretokenized": "why?"}
    converter = lambda font: FeatureConverter(
        {"inputs": 4, "targets": 3}, (20, 50), preparation=Patches(4, header_font=font), reads_text=False
    )
    batch = converter("pillow")([example], 2)
    assert batch.keys() == {
        "images", "image_present", "decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights",
    }  # fmt: skip
    expected = decode_image(file.getvalue(), (20, 50), "it", Patches(4, header_font="pillow").for_text("why?"))
    np.testing.assert_array_equal(batch["images"], [expected, np.zeros_like(expected)])
    with pytest.raises(UserError, match="set HEADER_FONT"):
        converter(None)([example])
    with pytest.raises(UserError, match="has ids but no text"):
        converter("pillow")([{name: x for name, x in example.items() if name != "inputs_pretokenized"}])
