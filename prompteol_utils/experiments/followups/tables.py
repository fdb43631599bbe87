"""Records of the methods as tables: scores by layer, two columns a method, what a budget buys."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from prompteol_utils.evaluation.significance import Difference

LAYERS = ("published", "same published", "best", "same best", "best over published")


def curves(records: pd.DataFrame, model: str, task: str = "stsb", split: str = "dev"):
    """Scores by layer.

    Args:
        records: Those of kind "followup", from a store.
        model: Of which model.
        task: On which set.
        split: Of it; of several samples the largest that each method has.

    Returns:
        method, layer (1 to the depth), spearman, origin, n.
    """
    rows = _of(records, model, task, split).sort_values("n", kind="stable")
    rows = rows.drop_duplicates("method", keep="last")
    found = rows[["method", "by_layer", "origin", "n"]].explode("by_layer", ignore_index=True)
    found["layer"] = found.groupby("method").cumcount() + 1
    found["spearman"] = found.pop("by_layer").astype(float)
    return found


def summary(records: pd.DataFrame, model: str, task: str = "stsb") -> pd.DataFrame:
    """What each method scores at its authors' layer and at the layer that is best on dev.

    Args:
        records: As for `curves`.
        model: Of which model.
        task: On which test set; of several samples of it the largest that each method has.

    Returns:
        One row a method: passes, ms (CPU milliseconds a sentence, rewriting included), layer (its
        authors'), published (score there), best_layer (on dev), best (test score there), dev (dev
        score there), n. The last three are NaN where a method was not measured on dev.
    """
    rows = []
    devs = _of(records, model, "stsb", "dev")
    for method, tested in _of(records, model, task, "test").groupby("method", sort=False):
        one = tested.sort_values("n").iloc[-1]
        dev = devs[devs["method"] == method].sort_values("n", kind="stable")
        best = int(np.argmax(dev.iloc[-1]["by_layer"])) + 1 if len(dev) else 0
        seconds = one["cpu_seconds"] + np.nan_to_num(one.get("rewriting_cpu_seconds", 0.0))
        rows.append(
            {
                "method": method,
                "passes": one["passes"],
                "ms": 1000 * seconds / one["sentences"],
                "layer": one["published_layer"],
                "published": one["spearman"],
                "best_layer": best or np.nan,
                "best": one["by_layer"][best - 1] if best else np.nan,
                "dev": dev.iloc[-1]["by_layer"][best - 1] if best else np.nan,
                "n": one["n"],
            }
        )
    return pd.DataFrame(rows).set_index("method")


def gains(
    differences: pd.DataFrame, model: str, layers: str = "same best", baseline: str = "prompteol"
) -> pd.Series:
    """What each method gains over a baseline, in words with the interval.

    Args:
        differences: Records of kind "followup_difference".
        model: Of which model.
        layers: Which layers are compared, one of `LAYERS`.
        baseline: Over which method.

    Returns:
        `Difference` by method.

    Raises:
        ValueError: Unknown kind of layers.
    """
    if layers not in LAYERS:
        raise ValueError(f"unknown layers {layers!r}; allowed: {', '.join(LAYERS)}")
    wanted = {"model": model, "layers": layers, "baseline": baseline}
    rows = differences[(differences[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    rows = rows.sort_values("n", kind="stable").groupby("method", sort=False).last()
    found = {
        method: Difference(*(row[name] for name in ("points", "low", "high", "level", "n")))
        for method, row in rows.iterrows()
    }
    return pd.Series(found, dtype=object)


def pareto_front(cost: pd.Series, score: pd.Series, tolerance: float = 0.15) -> pd.Series:
    """Which methods no other one beats: none is as cheap and better, or as good and cheaper.

    Args:
        cost: By method.
        score: By method.
        tolerance: Costs that differ by no more than this share are equal: timings scatter.

    Returns:
        bool by method.
    """
    beaten = []
    for one in cost.index:
        as_cheap = cost <= cost[one] * (1 + tolerance)
        cheaper = cost < cost[one] / (1 + tolerance)
        better = score > score[one]
        beaten.append(bool((as_cheap & better | cheaper & (score >= score[one])).any()))
    return ~pd.Series(beaten, index=cost.index)


def recommended(
    gained: Mapping[str, pd.Series], passes: Mapping[str, float], budget: float
) -> tuple[str, float]:
    """The method whose gain is highest where it is lowest: over the models that were measured.

    Args:
        gained: From a model to its `gains`; only methods that every model has take part.
        passes: From a method to its passes.
        budget: Passes at most.

    Returns:
        Its name and that gain; ("prompteol", 0.0) where no method gains on every model.
    """
    points = pd.DataFrame({name: one.map(lambda gap: gap.points) for name, one in gained.items()})
    worst = points.dropna().min(axis=1)
    worst = worst[[passes[method] <= budget for method in worst.index]]
    if not len(worst) or worst.max() <= 0:
        return "prompteol", 0.0
    return worst.idxmax(), float(worst.max())


def _of(records: pd.DataFrame, model: str, task: str, split: str) -> pd.DataFrame:
    wanted = {"kind": "followup", "model": model, "task": task, "split": split}
    rows = records[(records[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    if not len(rows):
        known = ", ".join(dict.fromkeys(records["model"]))
        raise ValueError(f"no record of {model} on {task} {split}; measured models: {known}")
    return rows
