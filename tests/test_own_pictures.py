"""Images of the user's own files: every format is read, and a file that is not an image is reported before training."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from own_files_cases import LENGTHS, load, photos, picture, total, written
from PIL import Image

from adalink_jax.data import FeatureConverter
from adalink_jax.errors import UserError

MADE = {
    "grey": picture("L"), "palette": picture("P"), "alpha": picture("RGBA"), "cmyk": picture("CMYK", form="JPEG"),
    "sixteen_bits": picture("I;16"), "one_pixel": picture(size=(1, 1)), "webp": picture(form="WEBP"), "bmp": picture(form="BMP"),
    "animated": picture(form="GIF", save_all=True, append_images=[Image.new("RGB", (6, 5), "red")]),
    "long": picture("L", size=(20_000, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_pictures_of_any_form_become_the_model_s(name, tmp_path):
    path = photos(tmp_path, "p", MADE[name])
    task = load(path, targets="{text}", image="{photo}", images=str(tmp_path / "photos"), group="{text}")
    batch = FeatureConverter(LENGTHS, (8, 16, 3))(list(task.examples("train"))[:2])
    assert batch["images"].shape == (2, 8, 16, 3) and np.abs(batch["images"]).max() <= 1


def test_sixteen_bits_are_scaled_not_cut():
    from adalink_jax.data.images import decode_image

    out = io.BytesIO()
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(out, "PNG")
    assert decode_image(out.getvalue(), (4, 4, 1), "it") == pytest.approx(0, abs=0.01)


def test_a_photo_is_turned_as_its_camera_says():
    from adalink_jax.data.images import decode_image

    image, out = Image.new("L", (4, 2)), io.BytesIO()
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    image.save(out, "PNG", exif=exif)
    assert decode_image(out.getvalue(), (4, 2, 1), "it")[0, 1, 0] == 1


BROKEN = {
    "cut_jpeg": (picture(size=(64, 64), form="JPEG")[:300], "is damaged, or not a picture"),
    "text": (b"not a picture", "is damaged, or not a picture"),
    "nothing": (b"", "is damaged, or not a picture"),
    "html": (b"<html>404</html>", "is damaged, or not a picture"),
    "floating_point": (picture("F", form="TIFF"), "is damaged, or not a picture"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_a_picture_is_reported_before_training(name, tmp_path):
    content, message = BROKEN[name]
    path = photos(tmp_path, "p.jpg", content)
    with pytest.raises(UserError, match=message) as error:
        load(path, targets="{text}", image="{photo}", images=str(tmp_path / "photos"), group="{text}")
    assert "p.jpg" in str(error.value)


def test_a_picture_of_400_million_pixels_is_refused(tmp_path):
    path = photos(tmp_path, "p.png", picture("1", size=(20_000, 20_000)))
    with pytest.raises(UserError, match="too large"):
        load(path, targets="{text}", image="{photo}", images=str(tmp_path / "photos"), group="{text}")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "photos/../../secret.png"])
def test_a_picture_outside_the_folder_is_not_read(name, tmp_path):
    written(tmp_path, "secret.png", picture())
    path = photos(tmp_path, "p.png", picture())
    path.write_text(path.read_text().replace("t7,p.png", f"t7,{name}"))
    with pytest.raises(UserError, match=r"its picture .* is outside .* \(IMAGES\)"):
        load(path, targets="{text}", image="{photo}", images=str(tmp_path / "photos"), group="{text}")


def test_a_missing_picture_is_a_row_that_does_not_parse(tmp_path):
    path = photos(tmp_path, "p.png", picture())
    path.write_text(path.read_text().replace("t7,p.png", "t7,gone.png"))
    settings = {"targets": "{text}", "image": "{photo}", "images": str(tmp_path / "photos"), "group": "{text}"}
    with pytest.raises(UserError, match="line 9 of .*there is no picture gone.png in"):
        load(path, **settings)
    assert total(load(path, **settings, limits={"unparsed": 0.1})) == 39


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_pictures_are_read_in_an_archive(kind, tmp_path):
    path = photos(tmp_path, "p.png", picture(size=(3, 3)))
    archive = tmp_path / f"photos.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.write(tmp_path / "photos/p.png", "deep/er/p.png")
    else:
        with tarfile.open(archive, "w") as file:
            file.add(tmp_path / "photos/p.png", "deep/er/p.png")
    task = load(path, targets="{text}", image="{photo}", images=str(archive), group="{text}")
    assert next(iter(task.examples("train")))["image"] == picture(size=(3, 3))


def test_a_folder_of_images_by_class_and_by_split(tmp_path):
    for i in range(30):
        for kind in ("cat", "dog"):
            size = (4 + i, 5 if kind == "cat" else 6)
            written(tmp_path, f"plain/{kind}/{i}.png", picture(size=size))
            written(tmp_path, f"split/{('train', 'val', 'test')[i % 3]}/{kind}/{i}.png", picture(size=size))
    written(tmp_path, "plain/.hidden/x.png", b"")
    settings = {"inputs": "what is this?", "targets": "{label}", "image": "{image}"}
    plain = load(tmp_path / "plain", **settings)
    assert total(plain) == 60 and {row["references"][0] for row in plain.examples("train")} == {"cat", "dog"}
    split = load(tmp_path / "split", **settings, split="split")
    assert [len(split.splits[name]) for name in ("train", "validation", "test")] == [20, 20, 20]
