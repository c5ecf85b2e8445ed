"""Confusion matrices: what is counted where, and that they are drawn whatever the names are."""

import io

import pytest
from PIL import Image

from adalink_jax.training.confusion import confusion, draw


def test_rows_are_true_classes_and_other_answers_have_a_column():
    targets = ["bad", "bad", "good", "good", "good", "bad"]
    matrix = confusion(targets, ["bad", "good", "good", "goo", "", "bad"])
    assert matrix.classes == ("bad", "good") and matrix.counts.tolist() == [[2, 1, 0], [0, 1, 2]]


def test_numbers_stand_in_their_own_order():
    names = [str(i) for i in range(12)] * 2
    assert confusion(names, names).classes == tuple(names[:12])
    assert confusion(names, names).counts[10, 10] == 2


@pytest.mark.parametrize("targets", [["a"] * 9, [str(i) for i in range(31)] * 9, [f"name {i}" for i in range(9)]])
def test_one_class_many_and_free_answers_have_no_matrix(targets):
    assert confusion(targets, targets) is None


@pytest.mark.parametrize("count", [2, 5, 30])
@pytest.mark.parametrize(
    "name", ["{}", "$x_{{1}}$ <b> the name of a class that is far too long for any line \n {}", "\u4f60\u597d\t{}"]
)
def test_it_is_drawn_for_any_names(name, count):
    names = [name.format(i) for i in range(count)] * 3
    image = Image.open(
        io.BytesIO(draw(confusion(names, names[1:] + ["other things"]), "validation, step 5: accuracy 0.1"))
    )
    assert image.format == "PNG" and min(image.size) > 200
