"""How a Hugging Face folder says that its images are prepared, in the terms of `ViTConfig`.

`transformers` reads `image_processor` of `processor_config.json`, or else `preprocessor_config.json`; what the file leaves out
has the default of the processor's class. Every field is translated or refused: none is ignored that would change a pixel.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from etils import epath
from PIL import Image

from adalink_jax.errors import CheckpointError
from adalink_jax.files.places import is_there
from adalink_jax.files.typed_json import Form, as_form, parse_object, read_text
from adalink_jax.typed_values import shown, wrong

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
    "Gemma3": {"resample": Image.Resampling.BILINEAR},
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
    "paligemma": "Siglip",
    "t5gemma2": "Gemma3",
}
_WITHOUT_EFFECT = (  # on the pixels; RGB images are the same whether they are converted to RGB or not
    "do_convert_rgb", "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "use_fast", "backend",
    "data_format", "input_data_format", "return_tensors", "device", "disable_grouping", "image_seq_length", "pad_size",
)  # fmt: skip

_Number = Annotated[float, pydantic.Field(allow_inf_nan=False)]
_Edge = Annotated[int, pydantic.Field(ge=1, lt=2**31)]
_Edges = _Edge | Annotated[list[_Edge], pydantic.Field(min_length=2, max_length=2)] | dict[str, _Edge]
_Channels = _Number | Annotated[list[_Number], pydantic.Field(min_length=1, max_length=3)]
_TYPES: Mapping[str, Any] = {  # of the fields that are read; None as in transformers
    "do_resize": bool | None, "size": _Edges, "default_to_square": bool, "resample": int,
    "do_center_crop": bool | None, "crop_size": _Edges | None, "do_rescale": bool | None,
    "rescale_factor": Annotated[_Number | None, pydantic.Field(gt=0)], "do_normalize": bool | None,
    "image_mean": _Channels | None, "image_std": _Channels | None, "do_pad": bool | None,
    "image_processor_type": str | None, "feature_extractor_type": str | None,
}  # fmt: skip


class _Processor(Form):
    """`processor_config.json`."""

    image_processor: dict[str, Any] | None = None


def settings(folder: epath.Path, path: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """`SETTINGS`, as fields of `ViTConfig`; {} if the folder has no image processor.

    Args:
      folder: the folder.
      path: the folder as the user gave it, for errors.
      config: the contents of `config.json`, whose `model_type` decides the class if the processor's file does not.

    Raises:
      CheckpointError: for a damaged file, and a field that this package does not implement.
    """
    name, stated = stated_fields(folder, path)
    if stated is None:
        return {}
    place = f"{path}/{name}"
    fields: dict[str, Any] = {**_BASE, **_class_defaults(stated, config, place), **stated}
    for field, value in fields.items():
        if field not in (*_BASE, *_WITHOUT_EFFECT) and not field.startswith("_") and value not in (None, False, [], {}):
            raise _refused(place, field, value)
    for field, annotation in _TYPES.items():
        if field in fields and wrong(fields[field], annotation):
            raise _refused(place, field, fields[field])
    for field, wanted in (("do_resize", True), ("do_pad", False)):
        if bool(fields[field]) is not wanted:
            raise _refused(place, field, fields[field])
    try:
        resample = Image.Resampling(fields["resample"]).name.lower()
    except ValueError as e:
        raise _refused(place, "resample", fields["resample"]) from e
    return _normalisation(fields, place) | {"resample": resample} | _geometry(fields, place)


def stated_fields(folder: epath.Path, path: str) -> tuple[str, Mapping[str, Any] | None]:
    """The file that decides, and its fields; None if there is no such file."""
    for name in FILES:
        if not is_there(folder / name):
            continue
        stated = parse_object(read_text(folder / name, error=CheckpointError), f"{path}/{name}", error=CheckpointError)
        if name == FILES[0]:
            stated = as_form(stated, _Processor, f"{path}/{name}", error=CheckpointError).image_processor
        if stated is not None:
            return name, stated
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
    if factor is None:
        raise _refused(place, "rescale_factor", factor)
    scale = 255.0 * factor
    scale = 1.0 if math.isclose(scale, 1.0, rel_tol=1e-9) else scale
    stated = {"image_mean": fields["image_mean"], "image_std": fields["image_std"]} if fields["do_normalize"] else {}
    channels = []
    for field, value in ({"image_mean": 0.0, "image_std": 1.0} | stated).items():
        values = [value] * 3 if isinstance(value, (int, float)) else value
        if values is None or (field == "image_std" and 0 in values):
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
    if not isinstance(value, dict):
        raise _refused(place, field, value)
    return value


def _refused(place: str, field: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"{place} has {field} = {shown(value)}, which this package does not reproduce; use a folder whose processor scales images to "
        f"one size (stretched, or by the shortest edge with a central crop)."
    )
