"""Pictures that can be read: nothing overlaps or is cut off, every axis is named, and no
table that mixes sets is drawn.
"""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from prompteol_utils import plots
from prompteol_utils.data import load_corpus, load_mini_sts

SENTENCES = load_corpus()[::7]


@pytest.fixture
def ax():
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    yield ax
    plt.close(figure)


def letters(sentences):
    return np.asarray(
        [[sentence.lower().count(chr(97 + i)) for i in range(26)] for sentence in sentences], float
    )


def scores(origin="senteval", tasks=("sts12", "stsb"), prompts=("prompteol", "mean"), **more):
    rows = [
        (task, prompt, 40.0 + 10 * i + 3 * k)
        for i, task in enumerate(tasks)
        for k, prompt in enumerate(prompts)
    ]
    frame = pd.DataFrame(rows, columns=["task", "prompt", "spearman"])
    return frame.assign(
        **(
            {
                "model": "m",
                "origin": origin,
                "text_form": "natural",
                "weight_origin": "w",
                "split": "test",
            }
            | more
        )
    )


PUBLISHED = pd.DataFrame(
    {"system": ["BERT avg."] * 3, "task": ["sts12", "stsb", "avg"], "score": [30.87, 47.29, 52.57]}
)


def matrix():
    x = letters(SENTENCES)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def layers():
    return pd.concat([scores(tasks=("stsb",)).assign(layer=k) for k in range(8)]).assign(
        spearman=lambda f: 50 + (f["layer"] - 4) ** 2 * -1.5
    )


DRAWINGS = {
    "similarity_heatmap": lambda ax: plots.similarity_heatmap(ax, matrix(), SENTENCES),
    "sentence_map": lambda ax: plots.sentence_map(
        ax, letters(SENTENCES)[:, [0, 4]], SENTENCES, ["a", "b", "c", "d"] * (len(SENTENCES) // 4)
    ),
    "score_bars": lambda ax: plots.score_bars(ax, scores(), paper=PUBLISHED),
    "layer_curve": lambda ax: plots.layer_curve(ax, layers()),
    "histogram": lambda ax: plots.histogram(
        ax,
        {"grades": load_mini_sts("dev").gold, "others": load_mini_sts("test").gold},
        "grade (0 to 5)",
        "Grades",
        {"middle": 2.5},
    ),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_is_named_whole_and_changes_nothing_global(name, ax):
    before = dict(mpl.rcParams)
    assert DRAWINGS[name](ax) is ax
    assert dict(mpl.rcParams) == before
    assert (
        ax.get_title() and ax.get_xlabel() and (ax.get_ylabel() or name == "similarity_heatmap")
    )  # there the labels are sentences
    figure = ax.figure
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    inside = figure.bbox.padded(2)
    ticks = [
        tick.label1 for axis in (ax.xaxis, ax.yaxis) for tick in axis._update_ticks()
    ]  # those that are drawn
    parts = [ax.title, ax.xaxis.label, ax.yaxis.label, *ticks, *ax.texts, ax.get_legend()]
    for part in parts:
        if (
            part is None
            or not part.get_visible()
            or (hasattr(part, "get_text") and not part.get_text())
        ):
            continue
        box = part.get_window_extent(renderer)
        assert inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1), (
            f"{part} is cut off"
        )


@pytest.mark.parametrize("name", ["score_bars", "layer_curve", "sentence_map", "histogram"])
def test_the_legend_hides_nothing(name, ax):
    DRAWINGS[name](ax)
    ax.figure.draw_without_rendering()
    renderer = ax.figure.canvas.get_renderer()
    legend = ax.get_legend().get_window_extent(renderer)
    others = [ax.bbox, ax.xaxis.label.get_window_extent(renderer)]
    others += [
        label.get_window_extent(renderer) for label in ax.get_xticklabels() if label.get_text()
    ]
    assert not any(legend.overlaps(other) for other in others)


def test_labels_of_the_map_do_not_overlap(ax):
    """Points in a cramped row, where labels at the same side would lie on each other."""
    points = np.column_stack([np.linspace(0, 1, 6), [0, 0.01, 0, 0.01, 0, 0.01]])
    plots.sentence_map(ax, points, SENTENCES[:6])
    ax.figure.draw_without_rendering()
    boxes = [mpl.text.Text.get_window_extent(text) for text in ax.texts]
    assert len(boxes) == 6
    assert not [
        (i, j)
        for i in range(6)
        for j in range(i)
        if mpl.transforms.Bbox.intersection(boxes[i], boxes[j]) is not None
    ]


def test_bars_are_the_numbers_of_the_table(ax):
    plots.score_bars(ax, scores(), paper=PUBLISHED)
    assert [[bar.get_height() for bar in group] for group in ax.containers] == [[40, 50], [43, 53]]
    assert [text.get_text() for text in ax.texts] == ["40.0", "50.0", "43.0", "53.0"]
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "sts12\nsenteval",
        "stsb\nsenteval",
    ]
    (lines,) = ax.collections
    assert [segment[0, 1] for segment in lines.get_segments()] == [30.87, 47.29]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "prompteol",
        "mean",
        "BERT avg. (published)",
    ]


def test_a_missing_bar_is_a_gap(ax):
    plots.score_bars(ax, scores().iloc[:3])
    assert [len(group) for group in ax.containers] == [2, 1]
    assert ax.containers[1][0].get_x() == pytest.approx(0, abs=0.05)


def test_curves_are_the_numbers_of_the_table_and_the_ring_is_at_the_best(ax):
    plots.layer_curve(ax, layers().sample(frac=1, random_state=0))
    first, ring = ax.lines[:2]
    assert first.get_xdata().tolist() == list(range(8)) and first.get_ydata()[4] == 50
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (4, 50)
    assert "stsb (senteval)" in ax.get_ylabel()


def test_a_histogram_shows_percent_of_each_sample(ax):
    plots.histogram(ax, {"few": [0.1, 0.2], "many": np.linspace(0, 1, 50)}, "x", "t", bins=10)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "few (mean 0.15)",
        "many (mean 0.50)",
    ]
    assert max(ax.patches[0].get_xy()[:, 1]) == pytest.approx(50)
    counts = np.histogram(np.linspace(0, 1, 50), 10, (0, 1))[0]
    assert max(ax.patches[1].get_xy()[:, 1]) == pytest.approx(100 * counts.max() / 50)


def test_methods_differ_without_their_colours(ax):
    plots.histogram(ax, {"few": [0.1, 0.2], "many": np.linspace(0, 1, 50)}, "x", "t")
    assert [patch.get_fill() for patch in ax.patches] == [False, False]  # fills would mix
    assert len({patch.get_linestyle() for patch in ax.patches}) == 2
    methods = list(plots.METHOD_COLOURS)
    bars = plots.score_bars(plt.figure().subplots(), scores(tasks=("stsb",), prompts=methods))
    assert len({bar.get_hatch() for bar in bars.patches}) == len(methods)


def test_mixed_sets_are_refused(ax):
    mixed = pd.concat([scores(), scores(origin="mini", prompts=("means",))])
    with pytest.raises(ValueError, match="origin is mixed"):
        plots.score_bars(ax, mixed)
    with pytest.raises(ValueError, match="text_form is mixed"):
        plots.score_bars(
            ax, pd.concat([scores(), scores(text_form="tokenised lower case", prompts=("means",))])
        )
    with pytest.raises(ValueError, match="origin is mixed"):
        plots.layer_curve(
            ax,
            pd.concat(
                [layers(), layers().query("prompt == 'mean'").assign(origin="hub", prompt="x")]
            ).drop(columns="task"),
        )
    with pytest.raises(ValueError, match="a layer curve shows one task, got sts12, stsb"):
        plots.layer_curve(ax, pd.concat([layers(), layers().assign(task="sts12")]))


def test_the_text_form_may_differ_where_the_picture_is_about_it(ax):
    both = pd.concat(
        [
            scores(prompts=("prompteol",)),
            scores(prompts=("prompteol",), text_form="tokenised lower case"),
        ]
    )
    plots.score_bars(ax, both, by="text_form")
    assert len(ax.containers) == 2


@pytest.mark.parametrize(("column", "value"), [("origin", "mini"), ("split", "dev")])
def test_published_scores_never_stand_beside_another_set(column, value, ax):
    with pytest.raises(ValueError, match=f"{column} of sts12 is '{value}': draw them apart"):
        plots.score_bars(ax, scores(**{column: value}), paper=PUBLISHED)
    ax.clear()
    plots.score_bars(
        ax, scores(**{column: value}), paper=PUBLISHED[PUBLISHED["task"] == "avg"]
    )  # another task: left out
    assert not ax.collections


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (
            lambda ax: plots.score_bars(ax, scores().drop(columns="prompt")),
            "lacks the column prompt; it has task",
        ),
        (lambda ax: plots.score_bars(ax, scores().iloc[:0]), "no rows"),
        (
            lambda ax: plots.score_bars(ax, pd.concat([scores(), scores()])),
            "two rows share .*sts12.*prompteol",
        ),
        (
            lambda ax: plots.score_bars(ax, scores(prompts=map(str, range(9)))),
            "9 different prompt in one picture; at most 8",
        ),
        (
            lambda ax: plots.score_bars(ax, scores(), paper=pd.concat([PUBLISHED, PUBLISHED])),
            "two published rows share",
        ),
        (
            lambda ax: plots.similarity_heatmap(ax, np.eye(3), ["a", "b"]),
            r"matrix \(2, 2\).*got shape \(3, 3\)",
        ),
        (
            lambda ax: plots.sentence_map(ax, np.zeros((2, 3)), ["a", "b"]),
            r"points \(2, 2\).*got shape \(2, 3\)",
        ),
        (lambda ax: plots.sentence_map(ax, np.zeros((2, 2)), ["a", "b"], ["x"]), "as many groups"),
        (lambda ax: plots.histogram(ax, [], "x", "t"), "empty or not finite"),
        (
            lambda ax: plots.histogram(ax, {"a": [1, np.nan]}, "x", "t"),
            "sample 'a' of a histogram is empty or not finite",
        ),
    ],
)
def test_a_table_that_cannot_be_drawn_says_why(draw, says, ax):
    with pytest.raises(ValueError, match=says):
        draw(ax)


def test_a_method_has_one_colour_in_every_figure():
    frames = [
        pd.DataFrame({"prompt": names, "task": "stsb", "spearman": range(10, 10 + len(names))})
        for names in (["mean", "prompteol"], ["another", "prompteol", "last", "mean"])
    ]
    colours = []
    for frame in frames:
        ax = plots.score_bars(plt.figure().subplots(), frame)
        colours.append(
            {bars.get_label(): bars.patches[0].get_facecolor() for bars in ax.containers}
        )
    for name in ("mean", "prompteol"):
        assert colours[0][name] == colours[1][name]
    assert len(set(colours[1].values())) == 4, "and no other name takes it"


def test_two_dtypes_of_a_model_are_not_one_figure():
    frame = pd.DataFrame(
        {"prompt": ["mean", "last"], "dtype": ["float32", "bfloat16"], "model": "m"}
    ).assign(task="stsb", spearman=50.0)
    with pytest.raises(ValueError, match="dtype is mixed"):
        plots.score_bars(plt.figure().subplots(), frame)
    plots.score_bars(plt.figure().subplots(), frame, by="dtype")


def test_score_against_cost_joins_the_methods_that_none_beats():
    frame = pd.DataFrame({"cost": [10, 20, 30, 80], "score": [60, 70, 65, 72]}, index=list("abcd"))
    _, ax = plt.subplots()
    plots.score_against_cost(ax, frame, front=["a", "b", "d"], title="Cost")
    (line,) = ax.lines
    assert line.get_xydata().tolist() == [[10, 60], [20, 70], [80, 72]]
    assert {text.get_text() for text in ax.texts} == set("abcd")
    assert ax.get_xscale() == "log" and "milliseconds" in ax.get_xlabel()
    assert [len(dots.get_offsets()) for dots in ax.collections] == [1, 3]
    with pytest.raises(ValueError, match="lacks the column score"):
        plots.score_against_cost(ax, frame[["cost"]])
