"""Figures: one style, one colour for each component, and what more than one notebook draws."""

import math
import re
import sys

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LinearSegmentedColormap, to_rgb

from gpt2_helpers import GPT2_CONFIGS, forward_flops, parameter_counts

COLOURS = {  # Okabe and Ito's palette: told apart by colour-blind readers, one colour a component
    "token": "#0072B2",
    "position": "#E69F00",
    "attention": "#009E73",
    "feed-forward": "#D55E00",
    "residual": "#CC79A7",
    "other": "#7F7F7F",
}


def set_style():
    """Figures that can be read from the last row, on a white ground in light and dark themes.

    In a notebook they appear under their cell, whatever MPLBACKEND says: many container images set
    it to Agg, which shows nothing.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None and hasattr(shell, "kernel"):
        shell.run_line_magic("matplotlib", "inline")
    plt.rcParams.update(
        {
            "figure.figsize": (9, 4),
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 13,
            "axes.titlesize": 14,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 2.5,
        }
    )


def show_matrix(
    ax,
    matrix,
    title,
    rows=None,
    columns=None,
    numbers=None,
    signed=False,
    limit=None,
    component="token",
):
    """Draw `matrix` [R, C] as a heat map, from white to the colour of a component.

    `rows` and `columns` label its sides (lists of strings, in which a dollar is a dollar).
    `numbers`, a format such as ".2f", writes every value into its cell in place of a colour bar.
    `signed` puts white at zero, between blue and red. `limit` is the value of the darkest colour,
    the largest one by default. Cells that are not finite are grey.
    """
    matrix = torch.as_tensor(matrix).detach().float().cpu()  # [R, C]
    finite = matrix[matrix.isfinite()]
    limit = limit or (finite.abs().max().item() if len(finite) else 0) or 1.0
    shades = LinearSegmentedColormap.from_list(component, ["white", COLOURS[component]])
    cmap, low = ("RdBu_r", -limit) if signed else (shades, 0.0)
    image = ax.imshow(matrix, cmap=cmap, vmin=low, vmax=limit, aspect="auto")
    ax.set_facecolor("#d0d0d0")
    if numbers is None:
        ax.figure.colorbar(image, ax=ax, fraction=0.046)
    ax.set_title(title)
    if rows is not None:
        ax.set_yticks(range(len(rows)), rows, parse_math=False)
    if columns is not None:
        ax.set_xticks(range(len(columns)), columns, parse_math=False)
        if max(map(len, columns)) > 3:
            plt.setp(ax.get_xticklabels(), rotation=45, ha="right")
    ax.spines[:].set_visible(False)
    if numbers:
        for r, row in enumerate(matrix.tolist()):
            for c, value in enumerate(row):
                ink = "white" if 0.6 * limit < abs(value) < math.inf else "black"
                ax.text(c, r, f"{value:{numbers}}", ha="center", va="center", color=ink)


def attention_weights(attn, X):
    """How `attn`, a MultiHeadAttention, weights its tokens when it reads X [B, T, E]: [B, H, T, T].

    Row t of a head sums to 1. The kernel that the layer uses never stores these weights.
    """
    B, T, _ = X.shape
    q, k, _ = attn.qkv(X).view(B, T, 3, attn.n_head, -1).permute(2, 0, 3, 1, 4)  # [B, H, T, D] each
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # [B, H, T, T]
    later = torch.ones(T, T, dtype=torch.bool, device=X.device).triu(diagonal=1)  # [T, T]
    return scores.masked_fill(later, -torch.inf).softmax(dim=-1)  # [B, H, T, T]


def stacked_bars(ax, bars, unit, colours):
    """One horizontal bar per entry of `bars` ({name: {part: amount}}), its parts side by side.

    Parts of more than 4 % of the longest bar carry their amount; `colours` maps part to colour.
    """
    longest = max(sum(parts.values()) for parts in bars.values())
    for row, parts in enumerate(bars.values()):
        left = 0
        for part, amount in parts.items():
            ax.barh(row, amount, left=left, color=colours[part], edgecolor="white")
            if amount > 0.04 * longest:
                light = sum(to_rgb(colours[part])) > 1.8
                ink = "black" if light else "white"
                ax.text(
                    left + amount / 2, row, f"{amount:.1f}", ha="center", va="center", color=ink
                )
            left += amount
    ax.set_yticks(range(len(bars)), bars)
    ax.invert_yaxis()
    ax.set_xlabel(unit)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[part]) for part in colours]
    ax.legend(
        handles, colours, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False
    )


def draw_model(ax, config):
    """Draw the path from ids to logits: the parts, the residual stream (thick), the shapes."""
    millions = {part: f"{count / 1e6:.2f} M" for part, count in parameter_counts(config).items()}
    stream, grey = COLOURS["residual"], "#b0b0b0"
    ax.add_patch(plt.Rectangle((4.0, 0.15), 6.9, 4.25, facecolor="#f0f0f0", edgecolor=grey))

    ax.plot((2.9, 11.1), (3.4, 3.4), color=stream, linewidth=5, solid_capstyle="butt")
    for corners in [  # the arrows, each along its corners
        [(0.75, 2.4), (1.1, 3.1)],
        [(0.75, 2.0), (1.1, 1.6)],
        [(2.9, 1.3), (3.5, 1.3), (3.5, 3.15)],
        [(4.3, 3.4), (4.3, 1.3), (4.6, 1.3)],
        [(5.4, 1.3), (5.7, 1.3)],
        [(7.1, 1.3), (7.35, 1.3), (7.35, 3.15)],
        [(7.75, 3.4), (7.75, 1.3), (8.0, 1.3)],
        [(8.8, 1.3), (9.05, 1.3)],
        [(10.35, 1.3), (10.6, 1.3), (10.6, 3.15)],
        [(11.1, 3.4), (11.5, 3.4)],
        [(12.3, 3.4), (12.6, 3.4)],
        [(14.2, 3.4), (14.6, 3.4)],
    ]:
        style = {"color": "black", "linewidth": 1.8}
        ax.plot(*zip(*corners[:-1], strict=True), **style)
        ax.annotate("", corners[-1], corners[-2], arrowprops={"arrowstyle": "-|>", **style})
    for x in (3.5, 7.35, 10.6):  # where something is added to the stream
        ax.plot(x, 3.4, "o", markersize=19, mfc="white", mec=stream, mew=2.5)

    unembed = "unembed\n= wte" if config.tie_weights else f"unembed\n{millions['unembed']}"
    for x, y, width, height, text, component in [
        (1.1, 2.6, 1.8, 1.6, f"wte\ntokens\n{millions['wte']}", "token"),
        (1.1, 0.6, 1.8, 1.4, f"wpe\npositions\n{millions['wpe']}", "position"),
        (4.6, 0.8, 0.8, 1.0, "ln_1", "other"),
        (5.7, 0.6, 1.4, 1.4, f"attn\n{config.n_head} heads", "attention"),
        (8.0, 0.8, 0.8, 1.0, "ln_2", "other"),
        (9.05, 0.6, 1.3, 1.4, "mlp\nE→4E→E", "feed-forward"),
        (11.5, 2.9, 0.8, 1.0, "ln_f", "other"),
        (12.6, 2.6, 1.6, 1.6, unembed, "token"),
    ]:
        ax.add_patch(plt.Rectangle((x, y), width, height, facecolor=COLOURS[component]))
        ink = "black" if component == "position" else "white"
        centre = {"ha": "center", "va": "center", "fontsize": 13, "clip_on": True}
        ax.text(x + width / 2, y + height / 2, text, color=ink, **centre)
    for x, y, text in [
        (0.35, 2.2, "ids\n[B, T]"),
        (3.5, 4.0, "[B, T, E]"),
        (4.35, 3.8, "X"),
        (7.85, 3.8, "X_at"),
        (10.58, 3.95, "X_ff"),
        (15.15, 3.4, "logits\n[B, T, V]"),
        (7.45, -0.25, f"this block {config.n_layer} times: {millions['blocks']}"),
        *((x, 3.38, "+") for x in (3.5, 7.35, 10.6)),
    ]:
        ax.text(x, y, text, **centre)
    ax.set(xlim=(-0.1, 15.8), ylim=(-0.6, 4.6))
    ax.axis("off")


THE_THREE = ("creating", "forward", "backpropagation")  # the experiments of notebook 5


def draw_timings(table, experiments=THE_THREE, size=(8, 1024)):
    """A figure of a table of timings, one line per row, on a log axis; returns the figure.

    Grey is a CPU, green another device. A round mark is a measured median, a diamond a reported
    time, a stroke anything else; the thin line is the range, dashed if reported. Where a row has
    another batch than `size`, its times are scaled by the FLOPs of its model, its mark is hollow,
    and its name says the batch.
    """

    def scaled(row):
        batch = row["batch_size"], row["seq_len"]
        if not all(batch) or batch == tuple(size):
            return 1.0
        config = GPT2_CONFIGS[row["model"]]
        return forward_flops(config, *size) / forward_flops(config, *batch)

    rows = table.to_dict("records")
    groups = {e: [row for row in rows if row["experiment"] == e] for e in experiments}
    groups = {experiment: group for experiment, group in groups.items() if group}
    if not groups:
        raise ValueError(f"no row is of one of the experiments {', '.join(experiments)}")
    lines = sum(len(group) + 1 for group in groups.values())
    fig, ax = plt.subplots(figsize=(11, 1 + 0.36 * lines))
    y, ticks, largest = 0, {}, 0.0
    for experiment, group in groups.items():
        what = "one step of" if experiment == "backpropagation" else "one pass of"
        title = f"{what} {size[0]} x {size[1]}" if any(r["seq_len"] for r in group) else "once"
        ax.text(0, y, f" {experiment}, {title}", transform=ax.get_yaxis_transform(), weight="bold")
        for row in sorted(group, key=lambda row: scaled(row) * row["median_s"]):
            y += 1
            scale = scaled(row)
            low, middle, high = (scale * row[k] for k in ("low_s", "median_s", "high_s"))
            colour = COLOURS["other" if row["device"] == "cpu" else "attention"]
            marker = {"measured": "o", "reported": "D"}.get(row["source"], "|")
            face = colour if scale == 1 else "white"
            ax.plot((low, high), (y, y), "--" if marker == "D" else "-", color=colour)
            ax.plot(middle, y, marker, color=colour, markerfacecolor=face, markersize=9, mew=2)
            number = f"{middle:.2g}" if middle < 9.5 else f"{middle:,.0f}"
            ax.text(1.25 * high, y, f"{row['note']} {number} s".strip(), va="center", fontsize=12)
            kind = "" if row["model"] == "gpt2" else f", {row['model']}"
            kind += "" if row["dtype"] == "float32" else f", {row['dtype']}"
            kind += "" if scale == 1 else f", {row['batch_size']} x {row['seq_len']}"
            name = re.sub(r"\((R|TM|tm)\)| CPU(?= @)| with .*", "", row["machine"])
            ticks[y] = (name if len(name) < 38 else name[:36] + " ...") + kind
            largest = max(largest, high)
        y += 1
    ax.set(xscale="log", xlabel="seconds", xlim=(None, 25 * largest), ylim=(y - 0.4, -0.8))
    ax.set_yticks(list(ticks), ticks.values(), fontsize=11)
    return fig
