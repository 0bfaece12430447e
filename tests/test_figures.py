"""The figures that several notebooks draw keep what their docstrings promise."""

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
import torch
from conftest import random_ids, reference_model
from nbclient import NotebookClient

import figure_helpers
import gpt2_helpers as gpt2
from figure_helpers import attention_weights
from timing_helpers import COLUMNS, timing


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def colour(ax, value):
    image = ax.images[0]
    return plt.matplotlib.colors.to_hex(image.cmap(image.norm(value))).upper()


def test_a_matrix_runs_from_white_to_the_colour_of_its_component(ax):
    figure_helpers.show_matrix(ax, torch.tensor([[0.0, 2.0]]), "", component="attention")
    assert colour(ax, 0.0) == "#FFFFFF"
    assert colour(ax, 2.0) == figure_helpers.COLOURS["attention"]


def test_a_signed_matrix_is_white_at_zero(ax):
    figure_helpers.show_matrix(ax, torch.tensor([[-1.0, 2.0]]), "", signed=True)
    assert ax.images[0].norm(0.0) == 0.5
    assert ax.images[0].norm(2.0) == 1.0 and ax.images[0].norm(-2.0) == 0.0


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_what_is_not_finite_takes_no_part(ax, value):
    figure_helpers.show_matrix(ax, torch.tensor([[value, 3.0], [1.0, value]]), "", numbers=".1f")
    assert ax.images[0].norm.vmax == 3.0
    assert [text.get_color() for text in ax.texts] == ["black", "white", "black", "black"]
    figure_helpers.show_matrix(ax, torch.full((2, 2), value), "")


@pytest.mark.parametrize("token", ["$$", "$^$", "$x$"])
def test_a_token_with_dollars_is_no_formula(ax, token):
    """`$$` is a token of GPT-2's, and in Matplotlib the beginning of a formula."""
    figure_helpers.show_matrix(ax, torch.ones(1, 1), "", [token], [token])
    ax.figure.canvas.draw()
    for label in [*ax.get_xticklabels(), *ax.get_yticklabels()]:
        assert label.get_text() == token and not label.get_parse_math()


def test_stacked_bars_lie_end_to_end_and_small_parts_carry_no_number(ax):
    bars = {"one": {"a": 60.0, "b": 38.5, "c": 1.5}, "two": {"a": 10.0}}
    figure_helpers.stacked_bars(ax, bars, "%", {"a": "#000000", "b": "#FFFFFF", "c": "#FF0000"})
    edges = [(bar.get_x(), bar.get_width()) for bar in ax.patches]
    assert edges == [(0, 60.0), (60.0, 38.5), (98.5, 1.5), (0, 10.0)]
    assert [text.get_text() for text in ax.texts] == ["60.0", "38.5", "10.0"]
    assert [text.get_color() for text in ax.texts] == ["white", "black", "white"]


@pytest.mark.parametrize("tie_weights", [True, False])
def test_the_picture_of_the_model_shows_its_own_numbers(ax, tie_weights):
    config = gpt2.GPT2Config(n_layer=7, n_head=6, tie_weights=tie_weights)
    figure_helpers.draw_model(ax, config)
    shown = " ".join(text.get_text() for text in ax.texts)
    assert "7 times: 49.62 M" in shown and "6 heads" in shown
    assert shown.count("38.60 M") == (1 if tie_weights else 2)


def test_a_figure_shows_each_row():
    """Place, range, mark, colour and text of three rows, the slowest below."""
    created = timing("creating", "cpu", [1.0])
    small = timing("forward", "cpu", [0.4, 0.123456, 0.2, 0.9, 0.15], 1, 256)
    other = small | {"device": "cuda", "machine": "a GPU"}
    other |= {"batch_size": 8, "seq_len": 1024, "source": "reported", "note": "more than"}
    medium = other | {"model": "gpt2-medium", "dtype": "bfloat16", "seq_len": 512}
    medium |= {"source": "computed", "note": ""}
    fig = figure_helpers.draw_timings(pd.DataFrame([small, other, medium, created]), ["forward"])
    ax = fig.axes[0]
    assert ax.get_xscale() == "log"

    large = (8, 1024)
    scale = gpt2.forward_flops(gpt2.GPT2Config(), *large) / gpt2.forward_flops(
        gpt2.GPT2Config(), 1, 256
    )
    sizes = gpt2.GPT2_CONFIGS["gpt2-medium"]
    scale_medium = gpt2.forward_flops(sizes, *large) / gpt2.forward_flops(sizes, 8, 512)
    marks = [line for line in ax.lines if line.get_marker() != "None"]
    ranges = [line for line in ax.lines if line.get_marker() == "None"]
    marks.sort(key=lambda mark: mark.get_ydata()[0])
    assert [mark.get_marker() for mark in marks] == ["D", "|", "o"]
    assert [mark.get_xdata()[0] for mark in marks] == [0.2, 0.2 * scale_medium, 0.2 * scale]
    grey, green = figure_helpers.COLOURS["other"], figure_helpers.COLOURS["attention"]
    assert [mark.get_color() for mark in marks] == [green, green, grey]
    assert [mark.get_markerfacecolor() for mark in marks] == [green, "white", "white"]
    assert len({mark.get_ydata()[0] for mark in marks}) == 3
    assert sorted(line.get_xdata()[1] for line in ranges) == [0.9, 0.9 * scale_medium, 0.9 * scale]
    texts = [text.get_text().strip() for text in ax.texts]
    assert texts[0] == "forward, one pass of 8 x 1024" and "more than 0.2 s" in texts
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[:2] == ["a GPU", "a GPU, gpt2-medium, bfloat16, 8 x 512"]
    plt.close(fig)


def test_a_figure_of_nothing():
    with pytest.raises(ValueError, match="no row is of one of the experiments creating, forward"):
        figure_helpers.draw_timings(pd.DataFrame(columns=list(COLUMNS)))


@pytest.mark.parametrize("backend", ["Agg", "TkAgg", "module://matplotlib_inline.backend_inline"])
def test_figures_appear_whatever_the_backend(backend, monkeypatch):
    """Container images set MPLBACKEND=Agg, under which `plt.show()` shows nothing."""
    monkeypatch.setenv("MPLBACKEND", backend)
    code = "import matplotlib.pyplot as plt\nfrom figure_helpers import set_style\nset_style()"
    cells = [code, "plt.plot([1, 2])\nplt.show()"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    assert notebook.cells[0].outputs == []
    (output,) = notebook.cells[1].outputs
    assert "image/png" in output.data


def test_the_style_does_without_a_notebook():
    figure_helpers.set_style()
    assert plt.rcParams["font.size"] == 13


def test_attention_weights_are_those_of_transformers(config):
    reference = reference_model(config)
    model = gpt2.load_openai_weights(gpt2.GPT2(config), reference.state_dict())
    ids = random_ids(config)
    theirs = reference(ids, output_attentions=True).attentions  # L x [B, H, T, T]
    ours = []
    for block in model.blocks:
        block.attn.register_forward_hook(
            lambda attn, inputs, output: ours.append(attention_weights(attn, inputs[0]))
        )
    model(ids)
    assert len(ours) == len(theirs) == config.n_layer
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-6)
