"""The style of figures: legends and labels fit."""

import pytest

from adalink_jax.reports import style


@pytest.mark.parametrize("length, columns", [(5, 4), (25, 2)])
def test_a_legend_is_no_wider_than_its_figure(length, columns):
    figure, axes = style.panels(2)
    for number in range(6):
        axes[0].plot([0, 1], [0, number], label=f"{number}" + "m" * length)
    style.legend(figure, axes)
    figure.draw_without_rendering()
    [drawn] = figure.legends
    assert drawn.get_window_extent().width <= figure.bbox.width
    assert len({round(text.get_window_extent().x0) for text in drawn.get_texts()}) == columns


def test_a_label_of_a_y_axis_is_no_longer_than_its_panel_is_high():
    figure, axes = style.panels(4)
    for axis in axes:
        axis.set(title="cola", xlabel="learning rate", ylabel=style.upright("matthews_corrcoef on validation"))
    figure.draw_without_rendering()
    for axis in axes:
        assert axis.yaxis.label.get_window_extent().height <= axis.get_window_extent().height
