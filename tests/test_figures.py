"""The figures that several notebooks draw keep what their docstrings promise."""

import matplotlib.pyplot as plt
import pytest
import torch

import gpt2_helpers as gpt2


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def colour(ax, value):
    image = ax.images[0]
    return plt.matplotlib.colors.to_hex(image.cmap(image.norm(value))).upper()


def test_a_matrix_runs_from_white_to_the_colour_of_its_component(ax):
    gpt2.show_matrix(ax, torch.tensor([[0.0, 2.0]]), "", component="attention")
    assert colour(ax, 0.0) == "#FFFFFF"
    assert colour(ax, 2.0) == gpt2.COLOURS["attention"]


def test_a_signed_matrix_is_white_at_zero(ax):
    gpt2.show_matrix(ax, torch.tensor([[-1.0, 2.0]]), "", signed=True)
    assert ax.images[0].norm(0.0) == 0.5
    assert ax.images[0].norm(2.0) == 1.0 and ax.images[0].norm(-2.0) == 0.0


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_what_is_not_finite_takes_no_part(ax, value):
    gpt2.show_matrix(ax, torch.tensor([[value, 3.0], [1.0, value]]), "", numbers=".1f")
    assert ax.images[0].norm.vmax == 3.0
    assert [text.get_color() for text in ax.texts] == ["black", "white", "black", "black"]
    gpt2.show_matrix(ax, torch.full((2, 2), value), "")


def test_stacked_bars_lie_end_to_end_and_small_parts_carry_no_number(ax):
    bars = {"one": {"a": 60.0, "b": 38.5, "c": 1.5}, "two": {"a": 10.0}}
    gpt2.stacked_bars(ax, bars, "%", {"a": "#000000", "b": "#FFFFFF", "c": "#FF0000"})
    edges = [(bar.get_x(), bar.get_width()) for bar in ax.patches]
    assert edges == [(0, 60.0), (60.0, 38.5), (98.5, 1.5), (0, 10.0)]
    assert [text.get_text() for text in ax.texts] == ["60.0", "38.5", "10.0"]
    assert [text.get_color() for text in ax.texts] == ["white", "black", "white"]


@pytest.mark.parametrize("tie_weights", [True, False])
def test_the_picture_of_the_model_shows_its_own_numbers(ax, tie_weights):
    config = gpt2.GPT2Config(n_layer=7, n_head=6, tie_weights=tie_weights)
    gpt2.draw_model(ax, config)
    shown = " ".join(text.get_text() for text in ax.texts)
    assert "7 times: 49.62 M" in shown and "6 heads" in shown
    assert shown.count("38.60 M") == (1 if tie_weights else 2)
