"""The compiled loop of decoding: caches change in their place, and what nobody reads is not computed."""

import re

import jax
import pytest
from helpers import init, random_batch, tiny_t5

from adalink_jax import T5, AdaLinkAdapter, AdaptedModel
from adalink_jax.models.decoding import BeamSearch, Sampling

ROWS, INPUTS, OUTPUTS, HEADS, WIDTH, VOCABULARY = 3, 13, 11, 5, 7, 97


def program(decoding, whole=False, **settings):
    """The compiled program's computations by name, of decoding with a tiny T5 to ids or to ids and scores."""
    config = tiny_t5(num_heads=HEADS, head_dim=WIDTH, vocab_size=VOCABULARY, **settings)
    model = AdaptedModel(T5(config), AdaLinkAdapter(rank=2))
    batch = random_batch(model.backbone, ROWS, INPUTS, OUTPUTS, seed=0)
    params = init(model, batch)

    def run(params, batch):
        decoded = model.apply({"params": params}, batch, OUTPUTS, decoding, method="generate")
        return decoded if whole else decoded.ids

    text = jax.jit(run).lower(params, batch).compile().as_text()
    return dict(re.findall(r"^(?:ENTRY )?%(\S+) \([^\n]*\{\n(.*?)\n\}", text, re.M | re.S))


def loop(computations):
    """All computations of the loop over tokens, the outermost one."""
    bodies = {name for text in computations.values() for name in re.findall(r" while\(.*body=%([\w.-]+)", text)}
    tokens = next(name for name in bodies if f"s32[{ROWS}," in computations[name])

    def below(name):
        yield computations[name]
        for inner in re.findall(r"(?:calls|body|condition|to_apply)=%([\w.-]+)", computations[name]):
            yield from below(inner)

    return "\n".join(below(tokens))


def moved(text, length, rows=ROWS):
    """Copies and transposes of a layer's keys or values of `length` positions."""
    shapes = re.findall(r"f32\[([\d,]+)\]\S* (?:copy|transpose)\(", text)
    whole = sorted(map(str, (rows, HEADS, length, WIDTH)))
    return [shape for shape in shapes if sorted(x for x in shape.split(",") if x not in ("1", "2")) == whole]


@pytest.mark.parametrize("scanned", [False, True])
def test_no_cache_is_copied_or_transposed_in_the_loop(scanned):
    text = loop(program(Sampling(), scan_layers=scanned))
    assert "dynamic-update-slice(" in text
    assert not moved(text, OUTPUTS)
    assert not moved(text, INPUTS)


@pytest.mark.parametrize("scanned", [False, True])
def test_the_decodes_of_an_input_share_its_keys(scanned):
    text = loop(program(BeamSearch(4), scan_layers=scanned))
    assert f"f32[{ROWS * 4},{HEADS},{OUTPUTS},{WIDTH}]" in text
    assert f"[{ROWS * 4},{HEADS},{INPUTS},{WIDTH}]" not in text
    assert not moved(text, INPUTS)


def test_log_probabilities_are_computed_where_the_scores_are_read():
    over_vocabulary = re.compile(rf"f32\[{ROWS},(?:1,)?{VOCABULARY}\]\S* exponential\(")
    assert over_vocabulary.search(loop(program(Sampling(), whole=True)))
    assert not over_vocabulary.search(loop(program(Sampling())))
