"""The public base models that `adalink init` proposes and lists, by number of parameters."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Base:
    """A base model.

    Attributes:
      path: as INITIAL_CHECKPOINT_PATH takes it.
      model: its gin file.
      vocabulary: see `load_vocabulary`.
      parameters: their number; None if it is not needed.
    """

    path: str
    model: str
    vocabulary: str
    parameters: int | None = None


def _public(repository: str, model: str, parameters: int, chat: bool = False) -> Base:
    path = f"hf://{repository}"
    return Base(path, f"gin/models/{model}.gin", f"chat:{path}" if chat else path, parameters)


# For text the ones that anybody can download are proposed, and the gated ones shown.
FOR_TEXT = (
    _public("google/flan-t5-small", "flan_t5_small", 76_961_152),
    _public("google/flan-t5-base", "flan_t5_base", 247_577_856),
    _public("google/flan-t5-large", "flan_t5_large", 783_150_080),
    _public("google/flan-t5-xl", "flan_t5_xl", 2_849_757_184),
)
GATED_FOR_TEXT = (
    _public("google/t5gemma-s-s-ul2-it", "t5gemma_s", 312_517_632, chat=True),
    _public("google/t5gemma-b-b-ul2-it", "t5gemma_b", 591_490_560, chat=True),
    _public("google/t5gemma-l-l-ul2-it", "t5gemma_l", 1_241_761_792, chat=True),
    _public("google/t5gemma-xl-xl-ul2-it", "t5gemma_xl", 3_766_980_608, chat=True),
)
FOR_PICTURES = (
    _public("google/t5gemma-2-270m-270m", "t5gemma2_270m", 786_029_296),
    _public("google/t5gemma-2-1b-1b", "t5gemma2_1b", 2_115_977_456),
    _public("google/paligemma2-3b-pt-224", "paligemma2_3b_224", 3_032_094_960),
    _public("Salesforce/blip2-flan-t5-xl", "blip2_flan_t5_xl", 3_942_446_592),
    _public("google/t5gemma-2-4b-4b", "t5gemma2_4b", 7_508_928_880),
    _public("google/paligemma2-10b-pt-224", "paligemma2_10b_224", 9_662_409_456),
)
