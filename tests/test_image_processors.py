"""Pictures become the pixels that `transformers`' image processors make of them, or the processor's field is refused by name."""

import io
import json
import pathlib
import re
import zipfile

import numpy as np
import pytest
from etils import epath
from PIL import Image

transformers = pytest.importorskip("transformers")

from adalink_jax import ViTConfig  # noqa: E402
from adalink_jax.checkpoints.families import image_processors  # noqa: E402
from adalink_jax.data import FeatureConverter, train_batches  # noqa: E402
from adalink_jax.data.images import Preparation, counting_transparent, decode_image, transparency_note  # noqa: E402
from adalink_jax.errors import CheckpointError, UserError  # noqa: E402

PHOTOGRAPHS = pathlib.Path(__file__).parents[1] / "../shared/data/vqa_daquar/images.zip"
# transformers' class, and the class in the environment without torchvision.
CLASSES = {"ViT": "vit", "Siglip": "siglip", "Blip": "blip-2", "CLIP": "siglip", "DeiT": "vit", "Bit": "vit"}
RESOLUTIONS = [(224, 224), (96, 120)]


def processor(name, backend="pil", **fields):
    kind = {"pil": f"{name}ImageProcessorPil", "torchvision": f"{name}ImageProcessor"}[backend]
    return getattr(transformers, kind)(**fields)


def synthetic(mode="RGB", size=(317, 203)):
    """Stripes and noise, in which every filter and every shift shows."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    waves = 96 * np.sin(x[..., None] / [3.0, 5.0, 11.0]) + 31 * np.cos(y[..., None] / [2.0, 7.0, 4.0])
    noise = np.random.default_rng(0).integers(0, 30, waves.shape)
    return Image.fromarray((waves + 112 + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def photographs():
    """Real photographs, landscape and portrait: as bytes of files."""
    if not PHOTOGRAPHS.exists():
        pytest.skip(f"there are no photographs in {PHOTOGRAPHS}")
    with zipfile.ZipFile(PHOTOGRAPHS) as archive:
        files = [archive.read(f"image{i}.jpg") for i in (1, 2, 77, 500)]
    with Image.open(io.BytesIO(files[0])) as picture:
        turned = picture.rotate(90, expand=True)
    return [*files, png(turned)]


def png(picture, **options):
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


def described(folder, reference, model_type="vit"):
    """What a folder with this processor says, as fields of `ViTConfig`."""
    reference.save_pretrained(folder)
    return image_processors.settings(epath.Path(folder), str(folder), {"model_type": model_type})


def ours(encoded, size, settings):
    config = ViTConfig(size, 1, 8, 2, 8, 1, **settings)
    preparation = Preparation(config.resample, config.keep_aspect, config.crop_pct)
    return np.asarray(config.normalized(decode_image(encoded, (*size, 3), "it", preparation)))


def theirs(encoded, reference):
    with Image.open(io.BytesIO(encoded)) as picture:
        out = reference(picture, return_tensors="np")["pixel_values"]
    return out[0].transpose(1, 2, 0)


def at(name, size):
    """A class's sizes for another resolution."""
    height, width = size
    crop = {"crop_size": {"height": height, "width": width}}
    if name == "DeiT":
        return crop | {"size": {"height": round(height * 8 / 7), "width": round(width * 8 / 7)}}
    if name in ("CLIP", "Bit"):
        return crop | {"size": {"shortest_edge": min(size)}}
    return {"size": {"height": height, "width": width}}


@pytest.mark.parametrize("size", RESOLUTIONS)
@pytest.mark.parametrize("source", ["synthetic", "photographs"])
@pytest.mark.parametrize("name", CLASSES)
def test_pixels_are_the_processor_s(name, source, size, tmp_path):
    settings = described(tmp_path, processor(name), CLASSES[name])
    reference = processor(name, **at(name, size))
    files = photographs() if source == "photographs" else [png(synthetic()), png(synthetic(size=(90, 130)))]
    for encoded in files:
        np.testing.assert_allclose(ours(encoded, size, settings), theirs(encoded, reference), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", CLASSES)
def test_pixels_are_within_two_levels_of_the_torchvision_processor_s(name, tmp_path):
    pytest.importorskip("torchvision")
    settings = described(tmp_path, processor(name, "torchvision"))
    encoded = png(synthetic())
    difference = ours(encoded, (224, 224), settings) - theirs(
        encoded, processor(name, "torchvision", **at(name, (224, 224)))
    )
    assert np.abs(difference).max() < 3 / 255 / 0.26


FIELDS = {
    **{f"resample_{i}": ("ViT", {"resample": i}) for i in range(6)},
    "factor": ("ViT", {"rescale_factor": 1 / 127.5}), "not_rescaled": ("Blip", {"do_rescale": False}),
    "not_normalized": ("Siglip", {"do_normalize": False}), "bytes": ("ViT", {"do_normalize": False, "do_rescale": False}),
    "one_mean": ("ViT", {"image_mean": 0.3, "image_std": 0.7}), "means": ("CLIP", {"image_mean": [0.1, 0.2, 0.3]}),
    "one_size": ("ViT", {"size": 224}), "pair": ("ViT", {"size": [224, 224]}), "cut": ("ViT", {"size": 256, "do_center_crop": True, "crop_size": 224}),
    "shortest": ("Siglip", {"size": 250, "do_center_crop": True, "crop_size": 224}),
    "wide_crop": ("CLIP", {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 300}}),
    "large_crop": ("CLIP", {"size": {"shortest_edge": 300}, "crop_size": {"height": 224, "width": 224}}),
    "not_cut": ("CLIP", {"size": {"height": 224, "width": 224}, "do_center_crop": False}),
    "not_converted": ("CLIP", {"do_convert_rgb": False}), "none": ("ViT", {"do_normalize": None, "size_divisor": None}),
}  # fmt: skip


@pytest.mark.parametrize("case", FIELDS)
def test_each_field_has_its_effect(case, tmp_path):
    name, fields = FIELDS[case]
    stated = {"image_processor_type": f"{name}ImageProcessor", **fields}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    settings = image_processors.settings(epath.Path(tmp_path), "it", {"model_type": "vit"})
    reference = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for encoded in (png(synthetic()), png(synthetic(size=(150, 240)))):
        expected = theirs(encoded, reference)
        np.testing.assert_allclose(ours(encoded, expected.shape[:2], settings), expected, rtol=2e-6, atol=2e-6)


REFUSED = {
    "do_resize": {"do_resize": False}, "do_pad": {"do_pad": True}, "resample": {"resample": 9}, "resample ": {"resample": None}, "size  ": {"size": None},
    "image_processor_type": {"image_processor_type": "ConvNextImageProcessor"}, "size_divisor": {"size_divisor": 32},
    "size": {"size": {"shortest_edge": 224}}, "size ": {"size": {"max_height": 9, "max_width": 9}},
    "crop_size": {"do_center_crop": True, "size": 256, "crop_size": {"height": 224, "width": 112}},
    "crop_size ": {"do_center_crop": True, "size": 200}, "image_std": {"image_std": [0.5, 0, 0.5]}, "rescale_factor": {"rescale_factor": "x"},
    "image_mean": {"image_mean": "x"},
}  # fmt: skip


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_is_not_reproduced_is_refused_by_name(field, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(REFUSED[field]))
    with pytest.raises(CheckpointError, match=f"it/preprocessor_config.json has {field.strip()} = "):
        image_processors.settings(epath.Path(tmp_path), "it", {"model_type": "vit"})


def test_the_file_of_transformers_5_decides(tmp_path):
    assert image_processors.settings(epath.Path(tmp_path), "it", {"model_type": "vit"}) == {}
    old = {"image_processor_type": "ViTFeatureExtractor", "resample": 2}
    new = {"image_processor": {"image_processor_type": "ViTImageProcessorFast", "resample": 1}, "processor_class": "X"}
    resample = lambda: image_processors.settings(epath.Path(tmp_path), "it", {"model_type": "vit"})["resample"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    (tmp_path / "processor_config.json").write_text('{"processor_class": "X"}')
    assert resample() == "bilinear"
    (tmp_path / "processor_config.json").write_text(json.dumps(new))
    assert resample() == "lanczos" and transformers.AutoImageProcessor.from_pretrained(tmp_path).resample == 1
    (tmp_path / "processor_config.json").write_text(json.dumps(new)[:-9])
    with pytest.raises(CheckpointError, match="it/processor_config.json is damaged"):
        resample()


def test_settings_of_the_model_are_checked():
    for wrong in ({"resample": "cubic"}, {"background": "pink"}, {"crop_pct": 0.0}):
        with pytest.raises(UserError, match=f"ViTConfig.{next(iter(wrong))} is "):
            ViTConfig((8, 8), 4, 8, 2, 8, 1, **wrong)


# --- transparency ---


def inks():
    """Black ink on a transparent ground, whose stored colour differs."""
    files = {}
    for name, mode, ground in (
        ("black", "RGBA", (0, 0, 0, 0)),
        ("magenta", "RGBA", (255, 0, 255, 0)),
        ("LA", "LA", (0, 0)),
    ):
        picture = Image.new(mode, (16, 16), ground)
        picture.paste((0, 255) if mode == "LA" else (0, 0, 0, 255), (4, 4, 12, 12))
        files[name] = png(picture)
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([0, 0, 0, 10, 10, 10])
    palette.paste(1, (4, 4, 12, 12))
    files["palette"] = png(palette, transparency=0)
    deep = np.zeros((16, 16), np.uint16)
    deep[4:12, 4:12] = 2570
    files["sixteen_bits"] = png(Image.fromarray(deep), transparency=0)
    return files


@pytest.mark.parametrize("name", inks())
@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_composed_on_white_and_counted(name, channels):
    encoded = inks()[name]
    shown = lambda background: decode_image(encoded, (16, 16, channels), "it", Preparation(background=background))
    with counting_transparent() as seen:
        white = (shown("white") + 1) * 127.5
    assert white[0, 0].min() > 254.99 and white[8, 8].max() < 10.01 and len(seen) == 1
    assert shown("black")[0, 0].max() == -1
    assert name != "magenta" or channels == 1 or shown(None)[0, 0].tolist() == [1, -1, 1]
    assert transparency_note(seen, Preparation()).startswith(
        "1 picture has transparent pixels; they were composed on white"
    )


def test_half_transparent_pixels_are_the_processor_s_and_opaque_ones_are_not_counted(tmp_path):
    picture = synthetic("RGBA")
    with counting_transparent() as seen:
        decode_image(png(picture), (224, 224, 3), "it")
    assert not seen and not transparency_note(seen, Preparation())
    picture.putalpha(synthetic("L"))
    settings = described(tmp_path, processor("Siglip"))
    np.testing.assert_allclose(
        ours(png(picture), (224, 224), settings), theirs(png(picture), processor("Siglip")), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_s_pictures_are_counted_in_its_workers_too(workers, tmp_path):
    from own_files_cases import LENGTHS, load, photos

    from adalink_jax.data import DatasetConfig

    path = photos(tmp_path, "p.png", inks()["black"])
    settings = {"targets": "{text}", "image": "{photo}", "images": str(tmp_path / "photos"), "group": "{text}"}
    task = load(path, **settings, workers=workers)
    with counting_transparent() as seen:
        batch = next(train_batches(task, DatasetConfig(task.name, LENGTHS, 8), FeatureConverter(LENGTHS, (16, 16, 1))))
    assert len(seen) == 1 and batch["images"].max() == 1 and "transparent" not in batch


def test_a_tall_picture_that_would_fill_the_memory_is_refused():
    with pytest.raises(UserError, match="it is too large .* pixels when its shorter edge fits"):
        decode_image(png(Image.new("L", (2, 60_000))), (224, 224, 3), "it", Preparation(keep_aspect=True))


def test_commands_report_transparent_pictures_and_a_cache_records_the_preparation(tmp_path, capsys):
    from own_files_cases import photos

    from adalink_jax.cli.main import main

    path = photos(tmp_path, "p.png", inks()["magenta"])
    macros = {
        "DATA": str(path), "INPUTS": "{text}", "TARGETS": "{text}", "IMAGE": "{photo}", "IMAGES": str(tmp_path / "photos"), "GROUP": "{text}",
        "VOCABULARY": "bytes", "MIXTURE_OR_TASK_NAME": "mine", "TASK_FEATURE_LENGTHS": {"inputs": 8, "targets": 4}, "METRIC": "exact_match",
        "INITIAL_CHECKPOINT_PATH": "bundled:pali_nano_raw", "VISION_CACHE": str(tmp_path / "vision"), "MODEL_DIR": str(tmp_path / "run"),
    }  # fmt: skip
    files = [
        f"--gin_file=gin/{name}.gin"
        for name in ("models/pali_nano", "adapters/adalink", "tasks/files", "runs/finetune")
    ]
    command = ["cache-vision", *files, *(f"--gin.{name}={value!r}" for name, value in macros.items())]
    assert main(command) == 0
    assert "1 picture has transparent pixels; they were composed on white" in capsys.readouterr().out
    for other, named in (
        ("ViTConfig.background=None", r"\(settings preparation.background: white there, None here\);"),
        (
            "ViTConfig.resample='box'",
            r"\(settings preparation.resample: bicubic there, box here; settings vision.resample: ",
        ),
    ):
        assert main([*command, f"--gin.{other}"]) == 2
        assert re.search(f"holds features of another tower {named}", capsys.readouterr().err)
