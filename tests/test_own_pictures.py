"""Images of the user's own files: every format is read, and a file that is not an image is reported before training."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
from own_files_cases import LENGTHS, load, photos, picture, total, written
from PIL import Image

from adalink_jax.data import FeatureConverter
from adalink_jax.data.images import Preparation, picture_array
from adalink_jax.data.user_files.image_files import Pictures
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


def test_pictures_given_as_pixels_and_scaled_ones_have_the_same_limit():
    zeros = np.zeros((13_400, 13_400), np.uint8)  # 179 million
    bar = Image.new("L", (1, 40_000))
    for image, preparation in (
        (zeros, Preparation()), (Image.new("1", (12_000, 11_500)), Preparation()), (bar, Preparation(keep_aspect=True)),
    ):  # fmt: skip
        with pytest.raises(UserError, match="Image 3 is too large .*134,217,728 are the limit.*; scale it down"):
            picture_array(image, (64, 64, 3), "Image 3", preparation)
    with pytest.raises(UserError, match="Image 3 is damaged, or not a picture"):
        picture_array(np.zeros((5, 5, 7), np.uint8), (8, 8, 3), "Image 3")


def test_links_that_lead_outside_and_linked_folders_are_not_read(tmp_path):
    written(tmp_path, "secret/s.png", picture())
    path = photos(tmp_path, "p.png", picture())
    os.symlink("../secret/s.png", tmp_path / "photos" / "out.png")
    os.symlink("p.png", tmp_path / "photos" / "inside.png")
    os.symlink("../secret", tmp_path / "photos" / "folder")
    names = Pictures(str(tmp_path / "photos"))
    assert names.problem("inside.png") is None
    for name in ("out.png", "folder/s.png"):
        assert "is outside" in names.problem(name)
    os.symlink("photos", tmp_path / "linked")
    assert Pictures(str(tmp_path / "linked")).problem("p.png") is None
    os.symlink(".", tmp_path / "photos" / "cats")
    with pytest.raises(UserError, match="There is no picture in .*: cats is a link to a folder"):
        load(path, data=str(tmp_path / "photos"), inputs="?", image="{image}")


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


def test_a_pipe_in_the_place_of_a_picture_is_a_bad_row(tmp_path):
    for label in ("cat", "dog"):
        for i in range(20):
            written(tmp_path, f"photos/{label}/{i}.png", picture(size=(6 + i, 5)))
    os.mkfifo(tmp_path / "photos" / "cat" / "pipe.png")
    with pytest.raises(UserError, match="there is no picture cat/pipe.png"):
        load(tmp_path / "photos", inputs="?", image="{image}")
