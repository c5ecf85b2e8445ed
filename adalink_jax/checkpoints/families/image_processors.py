"""How a Hugging Face folder says that its images are prepared, in the terms of `ViTConfig`.

`transformers` reads `image_processor` of `processor_config.json`, or else `preprocessor_config.json`; what the file leaves out
has the default of the processor's class. Every field is translated or refused: none is ignored that would change a pixel.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath
from PIL import Image

from adalink_jax.errors import CheckpointError

FILES = ("processor_config.json", "preprocessor_config.json")
SETTINGS = ("pixel_mean", "pixel_std", "resample", "keep_aspect", "crop_pct")
_HALF = [0.5, 0.5, 0.5]
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_SHORTEST = {"size": {"shortest_edge": 224}, "default_to_square": False, "do_center_crop": True}
_BASE: Mapping[str, Any] = {
    "do_resize": True, "size": {"height": 224, "width": 224}, "default_to_square": True, "resample": Image.Resampling.BICUBIC,
    "do_center_crop": False, "crop_size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": _HALF, "image_std": _HALF, "do_pad": False,
}  # fmt: skip
_CLASSES: Mapping[str, Mapping[str, Any]] = {  # the defaults of transformers' classes
    "ViT": {"resample": Image.Resampling.BILINEAR},
    "Siglip": {"default_to_square": False},
    "Blip": _CLIP | {"size": {"height": 384, "width": 384}},
    "CLIP": _CLIP | _SHORTEST,
    "Bit": _CLIP | _SHORTEST,
    "DeiT": {"size": {"height": 256, "width": 256}, "do_center_crop": True},
}
_CLASS_OF_MODEL = {
    "vit": "ViT",
    "siglip": "Siglip",
    "siglip_vision_model": "Siglip",
    "blip-2": "Blip",
    "instructblip": "Blip",
}
_WITHOUT_EFFECT = (  # on the pixels; RGB images are the same whether they are converted to RGB or not
    "do_convert_rgb", "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "use_fast", "backend",
    "data_format", "input_data_format", "return_tensors", "device", "disable_grouping", "image_seq_length", "pad_size",
)  # fmt: skip


def settings(folder: epath.Path, path: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """`SETTINGS`, as fields of `ViTConfig`; {} if the folder has no image processor.

    Args:
      folder: the folder.
      path: the folder as the user gave it, for errors.
      config: the contents of `config.json`, whose `model_type` decides the class if the processor's file does not.

    Raises:
      CheckpointError: for a damaged file, and a field that this package does not implement.
    """
    name, stated = _read(folder, path)
    if stated is None:
        return {}
    place = f"{path}/{name}"
    fields: dict[str, Any] = {**_BASE, **_class_defaults(stated, config, place), **stated}
    for field, value in fields.items():
        if field not in (*_BASE, *_WITHOUT_EFFECT) and not field.startswith("_") and value not in (None, False, [], {}):
            raise _refused(place, field, value)
    for field, wanted in (("do_resize", True), ("do_pad", False)):
        if bool(fields[field]) is not wanted:
            raise _refused(place, field, fields[field])
    try:
        resample = Image.Resampling(fields["resample"]).name.lower()
    except ValueError as e:
        raise _refused(place, "resample", fields["resample"]) from e
    return _normalisation(fields, place) | {"resample": resample} | _geometry(fields, place)


def _read(folder: epath.Path, path: str) -> tuple[str, Mapping[str, Any] | None]:
    """The file that decides, and its fields; None if there is no such file."""
    for name in FILES:
        if not (folder / name).exists():
            continue
        try:
            stated = json.loads((folder / name).read_text())
            stated = stated.get("image_processor") if name == FILES[0] else stated
            if stated is not None:
                return name, dict(stated)
        except (ValueError, TypeError, AttributeError) as e:
            raise CheckpointError(f"{path}/{name} is damaged or cut short ({e}); copy it again.") from e
    return "", None


def _class_defaults(stated: Mapping[str, Any], config: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    named = stated.get("image_processor_type") or stated.get("feature_extractor_type")
    if named is None:
        named = f"{_CLASS_OF_MODEL.get(config['model_type'])}ImageProcessor"
    kind = str(named).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    defaults = _CLASSES.get(kind.removesuffix("ImageProcessor"))
    if defaults is None or not kind.endswith("ImageProcessor"):
        raise _refused(place, "image_processor_type", named)
    return defaults


def _normalisation(fields: Mapping[str, Any], place: str) -> dict[str, Any]:
    """(bytes * rescale_factor - mean) / std, in terms of pixels in [0, 1]."""
    factor = fields["rescale_factor"] if fields["do_rescale"] else 1.0
    if not isinstance(factor, (int, float)) or factor <= 0:
        raise _refused(place, "rescale_factor", factor)
    scale = 255.0 * factor
    scale = 1.0 if math.isclose(scale, 1.0, rel_tol=1e-9) else scale
    stated = {"image_mean": fields["image_mean"], "image_std": fields["image_std"]} if fields["do_normalize"] else {}
    channels = []
    for field, value in ({"image_mean": 0.0, "image_std": 1.0} | stated).items():
        values = [value] * 3 if isinstance(value, (int, float)) else value
        if not isinstance(values, list) or not all(isinstance(x, (int, float)) for x in values):
            raise _refused(place, field, value)
        if field == "image_std" and 0 in values:
            raise _refused(place, field, value)
        channels.append(tuple(x / scale for x in values))
    usual = all(x == 0.5 for x in (*channels[0], *channels[1]))  # images are in [-1, 1] here
    return {"pixel_mean": None if usual else channels[0], "pixel_std": None if usual else channels[1]}


def _geometry(fields: Mapping[str, Any], place: str) -> dict[str, Any]:
    """How edges become those of the model, whatever its resolution."""
    size = _edges(fields, "size", square=fields["default_to_square"], place=place)
    crop = _edges(fields, "crop_size", square=True, place=place) if fields["do_center_crop"] else None
    keep_aspect = set(size) == {"shortest_edge"}
    if keep_aspect and crop is None or not keep_aspect and set(size) != {"height", "width"}:
        raise _refused(place, "size", size)
    if crop is None:
        return {"keep_aspect": False, "crop_pct": 1.0}
    if set(crop) != {"height", "width"}:
        raise _refused(place, "crop_size", crop)
    short = min(crop.values())
    shares = {short / size["shortest_edge"]} if keep_aspect else {crop[edge] / size[edge] for edge in crop}
    if len(shares) != 1 or (share := shares.pop()) > 1:
        raise _refused(place, "crop_size", crop)
    return {"keep_aspect": keep_aspect, "crop_pct": share}


def _edges(fields: Mapping[str, Any], field: str, square: bool, place: str) -> dict[str, int]:
    """`size` or `crop_size` as transformers reads it: a dict, `[height, width]`, or one number."""
    value = fields[field]
    if isinstance(value, int):
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    elif isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if not isinstance(value, dict) or not all(isinstance(edge, int) and edge > 0 for edge in value.values()):
        raise _refused(place, field, value)
    return value


def _refused(place: str, field: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"{place} has {field} = {value!r}, which this package does not reproduce; use a folder whose processor scales images to "
        f"one size (stretched, or by the shortest edge with a central crop)."
    )
