"""Table to figure: each function draws on the Axes that it is given and returns it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from prompteol_utils.results import one_origin

# Okabe and Ito's colours, told apart by colour-blind readers; each series also has a marker of its own.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def similarity_heatmap(
    ax: Axes, matrix: np.ndarray, labels: Sequence[str], *, title: str = "Cosine similarity of each pair of sentences"
) -> Axes:
    """Draw a similarity matrix with its sentences.

    Args:
        ax: Where to draw.
        matrix: (n, n) cosines.
        labels: n sentences; long ones are shortened.
        title: Above the figure.

    Returns:
        ax.

    Raises:
        ValueError: The matrix is not (n, n). Built for notebook 00.
    """
    matrix = np.asarray(matrix)
    if matrix.shape != (len(labels), len(labels)):
        raise ValueError(f"a ({len(labels)}, {len(labels)}) matrix is needed for {len(labels)} labels, got {matrix.shape}")
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    image = ax.imshow(matrix, cmap="cividis", vmin=off.min(), vmax=off.max())  # the diagonal is 1 and would use up the range
    ax.set_xticks(range(len(labels)), range(1, len(labels) + 1))
    ax.set_yticks(range(len(labels)), [f"{_short(label, 32)}  {i}" for i, label in enumerate(labels, 1)])
    ax.set_xlabel("number of the sentence")
    ax.set_title(title, loc="right")
    ax.figure.colorbar(image, ax=ax, label="cosine", fraction=0.046, pad=0.03, extend="max")
    return ax


def sentence_map(
    ax: Axes, points: np.ndarray, labels: Sequence[str], groups: Sequence[str], *, title: str = "Sentences on a plane (PCA)"
) -> Axes:
    """Draw sentences as numbered points, one colour and marker per group, the sentences beside them.

    Args:
        ax: Where to draw.
        points: (n, 2).
        labels: n sentences; long ones are shortened.
        groups: n group names.
        title: Above the figure.

    Returns:
        ax.
    """
    points = np.asarray(points)
    for k, group in enumerate(dict.fromkeys(groups)):
        here = np.array([name == group for name in groups])
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        ax.scatter(*points[here].T, color=colour, marker=marker, s=70, label=group, edgecolor="white", zorder=2)
    for i, (x, y) in enumerate(points, 1):
        ax.annotate(str(i), (x, y), xytext=(5, 5), textcoords="offset points", fontsize=10, zorder=3)
    listing = "\n".join(f"{i:>2}  {_short(label, 46)}" for i, label in enumerate(labels, 1))
    ax.text(1.03, 0.98, listing, transform=ax.transAxes, va="top", fontsize=9, linespacing=1.5)
    ax.margins(0.12)
    ax.set(xlabel="first principal component", ylabel="second principal component", title=title)
    ax.legend(loc="best", frameon=False)
    return ax


def score_bars(
    ax: Axes,
    table: pd.DataFrame,
    *,
    x: str = "prompt",
    y: str = "spearman",
    hue: str | None = None,
    title: str = "",
    ylabel: str = "Spearman × 100",
) -> Axes:
    """Draw scores as labelled bars.

    Args:
        ax: Where to draw.
        table: A row per bar; scores on different data or weights are refused.
        x: Column of the bars' names.
        y: Column of their heights.
        hue: Column that splits each bar into several, side by side.
        title: Above the figure.
        ylabel: With its unit.

    Returns:
        ax.

    Raises:
        ValueError: Origins are mixed within one task.
    """
    one_origin(table)
    names, series = list(dict.fromkeys(table[x])), list(dict.fromkeys(table[hue])) if hue else [None]
    width = 0.8 / len(series)
    for k, one in enumerate(series):
        part = (table if one is None else table[table[hue] == one]).set_index(x)[y].reindex(names)
        places = np.arange(len(names)) + (k - (len(series) - 1) / 2) * width
        bars = ax.bar(places, part, width * 0.95, color=COLOURS[k % len(COLOURS)], label=one)
        ax.bar_label(bars, fmt="%.1f", padding=2, fontsize=9)
    ax.set_xticks(
        range(len(names)),
        names,
        rotation=25 if max(map(len, map(str, names))) > 12 else 0,
        ha="right" if max(map(len, map(str, names))) > 12 else "center",
    )
    ax.set(ylabel=ylabel, title=title, ylim=(min(0, table[y].min() * 1.15), max(1.0, table[y].max() * (1.25 if hue else 1.15))))
    ax.spines[["top", "right"]].set_visible(False)
    if hue:
        ax.legend(frameon=False, ncols=len(series), loc="upper left")
    return ax


def layer_curve(
    ax: Axes,
    table: pd.DataFrame,
    *,
    x: str = "layer",
    y: str = "spearman",
    hue: str = "prompt",
    title: str = "",
    xlabel: str = "layer (0: token embeddings)",
) -> Axes:
    """Draw a score against a number (layer, shots, size), one line per series.

    Args:
        ax: Where to draw.
        table: Long form: a row per point; scores on different data or weights are refused.
        x: Column of the horizontal axis.
        y: Column of the vertical axis, Spearman × 100.
        hue: Column that names the line.
        title: Above the figure.
        xlabel: With its unit.

    Returns:
        ax.

    Raises:
        ValueError: Origins are mixed within one task.
    """
    one_origin(table)
    for k, (name, part) in enumerate(table.groupby(hue, sort=False)):
        part = part.sort_values(x)
        ax.plot(part[x], part[y], color=COLOURS[k % len(COLOURS)], marker=MARKERS[k % len(MARKERS)], markersize=5, label=name)
    ax.set(xlabel=xlabel, ylabel="Spearman × 100", title=title)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax


def histogram(
    ax: Axes, values: Sequence[float], *, label: str | None = None, colour: int = 0, bins: int = 40, title: str = "", xlabel: str = ""
) -> Axes:
    """Draw how values are spread; call it again on the same Axes to lay a second series over the first.

    Args:
        ax: Where to draw.
        values: Numbers.
        label: Name of the series.
        colour: Index into `COLOURS`.
        bins: Number of bars.
        title: Above the figure.
        xlabel: With its unit.

    Returns:
        ax.
    """
    ax.hist(values, bins=bins, alpha=0.6, color=COLOURS[colour], label=label)
    ax.set(xlabel=xlabel, ylabel="count", title=title)
    ax.spines[["top", "right"]].set_visible(False)
    if label:
        ax.legend(frameon=False)
    return ax
