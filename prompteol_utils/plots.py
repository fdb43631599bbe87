"""Plotting functions; each draws into the Axes it is given and returns it.

Colours are those of Okabe and Ito, which colour-blind readers tell apart; each method keeps its own
in all figures. Nothing global is changed. Make the Axes with `plt.subplots(layout="constrained")`.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator

from prompteol_utils.results.published import require_comparable

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
# One colour for a method in the whole course; other names take what is left, in order.
METHOD_COLOURS = {
    "prompteol": "#0072B2",
    "mean": "#E69F00",
    "demonstration": "#009E73",
    "fine-tuned": "#D55E00",
    "last": "#CC79A7",
    "means": "#56B4E9",
    "contrastive": "#000000",
}
_DARK = ("#0072B2", "#000000")  # where white letters are legible
# By place in OKABE_ITO, so that a grey print tells methods apart as well.
_MARKERS = "osD^vPX*"
_HATCHES = ("", "//", "..", "\\\\", "xx", "--", "|", "++")
_STYLES = ("-", "--", "-.", ":")
_SCORE = "Spearman's ρ × 100"


def similarity_heatmap(
    ax: Axes,
    matrix: np.ndarray,
    labels: Sequence[str],
    title: str = "Cosine similarity of every two sentences",
) -> Axes:
    """Draw a square matrix of similarities, one row and one column a sentence.

    Args:
        ax: Where to draw; about 0.45 inch a sentence is legible.
        matrix: (n, n), cosines. The colours span its off-diagonal values.
        labels: n sentences; long ones are cut.
        title: Its title.

    Raises:
        ValueError: The matrix is not n x n.
    """
    matrix = np.asarray(matrix, dtype=float)
    n = len(labels)
    if matrix.shape != (n, n) or n < 2:
        raise ValueError(
            f"a heat map of {n} labels needs a matrix ({n}, {n}) of at least two rows, "
            f"got shape {matrix.shape}"
        )
    others = matrix[~np.eye(n, dtype=bool)]
    low, high = float(others.min()), float(others.max())
    image = ax.imshow(matrix, aspect="auto", cmap="cividis", vmin=low, vmax=max(high, low + 1e-6))
    if n <= 16:
        for i, j in np.ndindex(n, n):
            dark = matrix[i, j] < (low + high) / 2
            text = f"{matrix[i, j]:.2f}".replace("0.", ".", 1)
            ax.text(
                j, i, text, ha="center", va="center", fontsize=7, color="white" if dark else "black"
            )
    ax.set_xticks(range(n), range(1, n + 1))
    ax.set_yticks(range(n), [f"{_short(label, 46)}  {i}" for i, label in enumerate(labels, 1)])
    ax.tick_params(labelsize=8, length=0)
    ax.set(title=title, xlabel="sentence number")
    bar = ax.figure.colorbar(
        image, ax=ax, shrink=0.8, extend="max" if matrix.max() > high else "neither"
    )
    bar.set_label("cosine similarity")
    return ax


def sentence_map(
    ax: Axes,
    points: np.ndarray,
    labels: Sequence[str],
    groups: Sequence[str] | None = None,
    title: str = "Sentences in two dimensions",
) -> Axes:
    """Draw sentences as labelled points, coloured by group.

    Args:
        ax: Where to draw.
        points: (n, 2), for example the first two principal components.
        labels: n sentences; long ones are cut, and each label moves to where it covers least.
        groups: n names; None: all the same.
        title: Its title.

    Raises:
        ValueError: Lengths differ, or more groups than colours.
    """
    points = np.asarray(points, dtype=float)
    if points.shape != (len(labels), 2) or (groups is not None and len(groups) != len(labels)):
        raise ValueError(
            f"a map of {len(labels)} labels needs points ({len(labels)}, 2) and as many groups, "
            f"got shape {points.shape}"
        )
    names = _few(dict.fromkeys(groups if groups is not None else []), "groups")
    for name, (colour, marker) in names.items() or [(None, (OKABE_ITO[0], "o"))]:
        at = [i for i in range(len(labels)) if groups is None or groups[i] == name]
        ax.scatter(
            *points[at].T,
            color=colour,
            marker=marker,
            s=45,
            edgecolor="white",
            linewidth=0.6,
            label=name,
            zorder=3,
        )
    ax.margins(0.2, 0.12)
    ax.set(
        title=title,
        xlabel="first direction (no unit)",
        ylabel="second direction (no unit)",
        xticks=[],
        yticks=[],
    )
    if names:
        _legend(ax, len(names))
    _place(ax, points, [_short(label, 34) for label in labels])
    return ax


def score_bars(
    ax: Axes,
    frame: pd.DataFrame,
    by: str = "prompt",
    paper: pd.DataFrame | None = None,
    title: str = "Semantic textual similarity",
) -> Axes:
    """Draw STS scores as bars, grouped by task, and published scores as lines across each group.

    Args:
        ax: Where to draw.
        frame: One row a bar: task, spearman and the column `by`; origin is shown under each task.
        by: What the bars of one task differ in: "prompt", "model", …
        paper: Published rows (`paper_table("sts")`): system, task, score. Tasks that `frame`
            lacks are left out.
        title: Its title.

    Raises:
        ValueError: A column is missing, two rows share a bar, scores are not comparable
            (`require_comparable`), or published scores (SentEval's test sets) would be shown beside
            scores on another set.
    """
    _need(frame, ("task", "spearman", by))
    _one_column(frame, by)
    tasks, series = list(dict.fromkeys(frame["task"])), _few(dict.fromkeys(frame[by]), by)
    width = 0.8 / len(series)
    for k, (name, (colour, _)) in enumerate(series.items()):
        rows = frame[frame[by] == name]
        at = [tasks.index(task) + (k - (len(series) - 1) / 2) * width for task in rows["task"]]
        bars = ax.bar(
            at,
            rows["spearman"],
            width * 0.92,
            color=colour,
            edgecolor="white",
            hatch=_HATCHES[OKABE_ITO.index(colour)],
            label=str(name),
        )
        crowded = len(tasks) * len(series) > 10
        ink = "white" if colour in _DARK else "black"
        # inside the bars, because the lines of published scores run near their tops
        ax.bar_label(
            bars,
            fmt="{:.1f}",
            label_type="center",
            fontsize=8 if crowded else 9,
            rotation=90 if crowded else 0,
            color=ink,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1},
        )
    lines = _published(ax, frame, paper, tasks)
    top = max([*frame["spearman"], *(lines["score"] if len(lines) else [])])
    ax.set_ylim(min(0, frame["spearman"].min() * 1.15), max(top, 1) * 1.15)
    origin = frame.groupby("task")["origin"].first() if "origin" in frame else {}
    ax.set_xticks(
        range(len(tasks)), [f"{task}\n{origin[task]}" if task in origin else task for task in tasks]
    )
    ax.set(
        title=title,
        ylabel=_SCORE,
        xlabel="task, and the set it was measured on" if len(origin) else "task",
    )
    _legend(ax, len(series) + (lines["system"].nunique() if len(lines) else 0))
    return _clean(ax)


def layer_curve(
    ax: Axes,
    frame: pd.DataFrame,
    by: str = "prompt",
    title: str = "Score by the layer that is read",
) -> Axes:
    """Draw scores over layers, one line a value of `by`; a ring marks its best layer.

    Args:
        ax: Where to draw.
        frame: layer (0 is the input embedding), spearman and the column `by`, all of one task.
        by: What the lines differ in.
        title: Its title.

    Raises:
        ValueError: A column is missing, two rows share a point, or scores are not comparable.
    """
    _need(frame, ("layer", "spearman", by))
    _one_column(frame, by, "layer")
    if "task" in frame and frame["task"].nunique() > 1:
        raise ValueError(
            f"a layer curve shows one task, got {', '.join(sorted(frame['task'].unique()))}; "
            "draw one Axes for each"
        )
    for name, (colour, marker) in (series := _few(dict.fromkeys(frame[by]), by)).items():
        line = frame[frame[by] == name].sort_values("layer", ignore_index=True)
        best = line.loc[line["spearman"].idxmax()]
        ax.plot(
            line["layer"],
            line["spearman"],
            color=colour,
            marker=marker,
            markersize=4,
            label=str(name),
        )
        ax.plot(best["layer"], best["spearman"], "o", markersize=11, fillstyle="none", color=colour)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    where = f" on {frame['task'].iloc[0]}" if "task" in frame else ""
    where += f" ({frame['origin'].iloc[0]})" if "origin" in frame else ""
    ax.set(title=title, xlabel="layer (0: input embedding; ring: best)", ylabel=_SCORE + where)
    _legend(ax, len(series))
    ax.grid(axis="x", alpha=0.2)
    return _clean(ax)


def score_against_cost(
    ax: Axes,
    frame: pd.DataFrame,
    front: Sequence[str] = (),
    xlabel: str = "CPU milliseconds per sentence",
    title: str = "Score against cost",
) -> Axes:
    """Draw methods by what they cost and what they score; a line joins those that none beats.

    Args:
        ax: Where to draw.
        frame: One row a method, indexed by its name: cost and score.
        front: The methods that no other one beats in both.
        xlabel: What the cost is, with its unit; the axis is logarithmic.
        title: Its title.

    Raises:
        ValueError: A column is missing.
    """
    _need(frame, ("cost", "score"))
    on = frame.index.isin(front)
    line = frame[on].sort_values("cost")
    ax.step(line["cost"], line["score"], where="post", color="black", linewidth=1.2, label="front")
    for inside, marker, colour in ((False, "o", OKABE_ITO[5]), (True, "D", OKABE_ITO[3])):
        rows = frame[on == inside]
        label = "on the front: no other is as cheap and better" if inside else "beaten"
        ax.scatter(
            rows["cost"], rows["score"], marker=marker, color=colour, edgecolor="black",
            linewidth=0.6, s=45, zorder=3, label=label,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    ax.margins(0.18, 0.1)
    _place(ax, frame[["cost", "score"]].to_numpy(float), list(frame.index))
    ax.set(title=title, xlabel=xlabel, ylabel=_SCORE)
    _legend(ax, 3)
    return _clean(ax)


def histogram(
    ax: Axes,
    values: Sequence[float] | Mapping[str, Sequence[float]],
    xlabel: str,
    title: str,
    marks: Mapping[str, float] | None = None,
    bins: int = 30,
) -> Axes:
    """Draw how values are distributed; several samples share their bins and are scaled to percent.

    Several are drawn as outlines with a line style each, because overlapping fills mix colours.

    Args:
        ax: Where to draw.
        values: Numbers, or names with their numbers.
        xlabel: What the numbers are, with their unit.
        title: Its title.
        marks: Names with values to mark by a vertical line.
        bins: How many.

    Raises:
        ValueError: A sample is empty or not finite.
    """
    samples = {
        name: np.asarray(list(sample), float)
        for name, sample in (values if isinstance(values, Mapping) else {"": values}).items()
    }
    for name, sample in samples.items():
        if not sample.size or not np.isfinite(sample).all():
            raise ValueError(f"the sample {name!r} of a histogram is empty or not finite")
    edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), bins)
    series = _few(samples, "samples").items()
    for (name, (colour, _)), style in zip(series, _STYLES * 2, strict=False):
        sample = samples[name]
        share, mean = np.full(sample.size, 100 / sample.size), f"mean {sample.mean():.2f}"
        label = f"{name} ({mean})" if name else mean
        if len(samples) == 1:
            ax.hist(sample, edges, weights=share, histtype="stepfilled", color=colour, alpha=0.25)
        ax.hist(
            sample,
            edges,
            weights=share,
            histtype="step",
            color=colour,
            linestyle=style,
            linewidth=1.8,
            label=label,
        )
    for (name, value), style in zip((marks or {}).items(), _STYLES * 9, strict=False):
        ax.axvline(
            value, color="black", linestyle=style, linewidth=1.4, label=f"{name}: {value:.2f}"
        )
    ax.set(title=title, xlabel=xlabel, ylabel="share of the sample (%)")
    ax.set_ylim(0, ax.get_ylim()[1])
    _legend(ax, len(samples) + len(marks or {}))
    return _clean(ax)


def _published(
    ax: Axes, frame: pd.DataFrame, paper: pd.DataFrame | None, tasks: list[str]
) -> pd.DataFrame:
    """Lines for the published scores of these tasks; returns their rows."""
    if paper is None:
        return pd.DataFrame()
    _need(paper, ("system", "task", "score"))
    rows = paper[paper["task"].isin(tasks)]
    ours = frame[frame["task"].isin(rows["task"])]
    for column, same in (("origin", ("senteval", "hub")), ("split", ("test",))):
        if column in ours and not (ok := ours[column].isin(same)).all():
            raise ValueError(
                f"published scores are of SentEval's whole test sets; {column} of "
                f"{ours.loc[~ok, 'task'].iloc[0]} is {ours.loc[~ok, column].iloc[0]!r}: "
                "draw them apart"
            )
    if rows.duplicated(["system", "task"]).any():
        raise ValueError("two published rows share system and task; choose those to show")
    for (name, lines), style in zip(rows.groupby("system", sort=False), _STYLES * 9, strict=False):
        at = np.array([tasks.index(task) for task in lines["task"]])
        ax.hlines(
            lines["score"],
            at - 0.44,
            at + 0.44,
            color="black",
            linestyle=style,
            linewidth=1.3,
            label=f"{name} (published)",
        )
        ax.plot(at + 0.44, lines["score"], "D", color="black", markersize=4)
    return rows


def _need(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in frame]:
        raise ValueError(
            f"the table lacks the column {', '.join(missing)}; "
            f"it has {', '.join(map(str, frame.columns))}"
        )
    if not len(frame):
        raise ValueError("the table has no rows to draw")


def _one_column(frame: pd.DataFrame, by: str, *also: str) -> None:
    """Bars and points side by side must be comparable, except in what the figure varies."""
    keys = ["task", by, *also] if "task" in frame else [by, *also]
    if (twice := frame.duplicated(keys)).any():
        raise ValueError(
            f"two rows share {dict(frame.loc[twice, keys].iloc[0])}; choose those to show"
        )
    require_comparable(frame, "task" if "task" in frame else None, shown=[by])


def _few(names: Iterable, what: str) -> dict:
    """A colour and a marker for each name: a method's own, or one that is free."""
    names = list(names)
    if len(names) > len(OKABE_ITO):
        raise ValueError(
            f"{len(names)} different {what} in one picture; "
            f"at most {len(OKABE_ITO)} can be told apart"
        )
    own = {name: METHOD_COLOURS[name] for name in names if name in METHOD_COLOURS}
    free = iter([colour for colour in OKABE_ITO if colour not in own.values()])
    colours = [own.get(name) or next(free) for name in names]
    return {
        name: (one, _MARKERS[OKABE_ITO.index(one)])
        for name, one in zip(names, colours, strict=True)
    }


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0].rstrip(",;:") + " …"


def _legend(ax: Axes, entries: int) -> None:
    """Below the axes, where it can hide nothing; bars and points first, then lines."""
    handles, labels = ax.get_legend_handles_labels()
    if not any(labels):
        return
    ticks = [label.get_text() for label in ax.get_xticklabels()] if len(ax.get_xticks()) else []
    rows = (1.2 if ticks else 0) + 1.4 * any(
        "\n" in tick for tick in ticks
    )  # of tick labels, in heights of a letter
    order = sorted(range(len(handles)), key=lambda i: isinstance(handles[i], LineCollection))
    ax.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=2.6 + rows,
        ncols=min(entries, 3),
        frameon=False,
        fontsize=9,
    )


def _clean(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.2)
    ax.set_axisbelow(True)
    return ax


def _place(ax: Axes, points: np.ndarray, labels: Sequence[str]) -> None:
    """Put each label where it covers least of the points and the labels before it."""
    ax.figure.draw_without_rendering()
    renderer, frame = ax.figure.canvas.get_renderer(), ax.get_window_extent()
    pixels = ax.transData.transform(points)
    taken = [np.array([x - 6, y - 6, x + 6, y + 6]) for x, y in pixels]
    places = [(7 * side, distance) for distance in (0, 7, -7, 14, -14, 21, -21) for side in (1, -1)]
    for point, label in zip(points, labels, strict=True):
        best = None
        for dx, dy in places:
            text = ax.annotate(
                label,
                point,
                (dx, dy),
                textcoords="offset points",
                fontsize=8,
                ha="left" if dx > 0 else "right",
                va="center",
            )
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)  # the letters alone, without the line
            cost = (
                sum(_overlap(box.extents, other) for other in taken)
                + (box.width * box.height - _overlap(box.extents, frame.extents)) * 3
            )
            cost += 2 * abs(dy)  # near its point, if nothing is gained by moving away
            if best is None or cost < best[0]:
                if best:
                    best[1].remove()
                best = (cost, text, box.extents)
            else:
                text.remove()
        taken.append(best[2])


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
