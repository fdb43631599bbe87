"""Make the tables of results from the records: `python -m tools.results_tables`.

A test compares the two, so a table can neither be typed by hand nor go stale.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))
DOCUMENTS, RESULTS = (
    (ROOT / "docs" / "results.md", ROOT / "benchmarks" / "README.md"),
    ROOT / "data" / "results",
)
STS = {"stsb": "STS-B", "sts12": "STS12", "sts13": "STS13", "sts15": "STS15"}
TRANSFER = {
    "mr": "MR",
    "cr": "CR",
    "subj": "SUBJ",
    "mpqa": "MPQA",
    "sst2": "SST-2",
    "trec": "TREC",
    "mrpc": "MRPC",
}
REPRESENTATIONS = {
    "last": "last token, no prompt",
    "mean": "mean of tokens, no prompt",
    "means": '`This sentence : "X" means` (no one-word limit)',
    "prompteol": "**PromptEOL**",
}
NAMES = {"prompteol": "PromptEOL", "mean": "mean of tokens", "last": "last token"}
ORDER = ["fp32", "bf16", "NF4", "int8"]
NOTHING = "No rows yet.\n"
BLOCK = re.compile(r"(<!-- results: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def store(name: str) -> pd.DataFrame:
    """Rows of one file of data/results, what a row says nothing of as None.

    Empty where there is no file.
    """
    from prompteol_utils.results import Store

    rows = Store(RESULTS / f"{name}.jsonl").read()
    return rows.astype(object).where(rows.notna(), None)


def markdown(columns: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A table whose first `left` columns are text and whose others are numbers."""
    rule = ["---"] * left + ["--:"] * (len(columns) - left)
    return "".join("| " + " | ".join(row) + " |\n" for row in ([columns, rule, *rows]))


def plain(rows: pd.DataFrame) -> pd.Series:
    """Which rows are of the model as it came: no demonstration, no adapter, not quantised."""
    return (
        rows["demonstrations"].map(len).eq(0) & rows["quantization"].isna() & rows["adapter"].isna()
    )


def system(row: pd.Series) -> str:
    """What stands before a score: the prompt, demonstrations by their words, and training."""
    words = [one.rpartition("=>")[2] for one in row["demonstrations"]]
    shown = (
        f"{len(words)} demonstration{'s' if len(words) > 1 else ''} ({', '.join(words)})"
        if words
        else ""
    )
    return " + ".join(
        filter(
            None,
            [
                NAMES.get(row["prompt"], row["prompt"]),
                shown,
                f"trained ({row['adapter']})" if row["adapter"] else "",
            ],
        )
    )


def precision(row: pd.Series) -> str:
    """How the weights are kept, as people call it."""
    return {"nf4": "NF4", "int8": "int8"}.get(row["quantization"]) or {
        "float32": "fp32",
        "bfloat16": "bf16",
    }[row["dtype"]]


def cells(found: pd.Series, names: Iterable) -> list[str]:
    """A number a name; a dash where no row is."""
    return [f"{found[name]:.1f}" if pd.notna(found.get(name)) else "–" for name in names]


def prompts() -> str:
    """Representations on STS-B dev, by the encoder and by the plain loop."""
    rows = pd.concat([store("sts"), store("reference")])
    rows = rows[
        rows["model"].eq("smollm2-135m-instruct")
        & rows["split"].eq("dev")
        & rows["dtype"].eq("float32")
        & rows["n"].eq(1500)
    ]
    rows = rows[plain(rows)].astype({"spearman": float})
    scores = rows.pivot_table(index="prompt", columns="engine", values="spearman", aggfunc="last")
    lines = [
        [text, *(f"{scores.loc[name, engine]:.2f}" for engine in ("encoder", "reference"))]
        for name, text in REPRESENTATIONS.items()
    ]
    return markdown(
        ["representation", "STS-B dev", "the plain loop, one sentence at a time"], lines
    )


def sts() -> str:
    """Every system with rows on whole test sets."""
    rows = store("sts")
    rows = rows[
        rows["prompt"].eq("prompteol")
        & rows["split"].eq("test")
        & rows["origin"].eq("senteval")
        & rows["engine"].eq("encoder")
    ]
    rows = rows.assign(
        system=rows.apply(system, axis=1), precision=rows.apply(precision, axis=1)
    ).astype({"spearman": float})
    place = [
        rows["model"],
        rows["precision"].map(ORDER.index),
        rows["adapter"].notna(),
        rows["demonstrations"].map(len),
    ]
    rows = rows.assign(place=list(zip(*place, strict=True))).sort_values("place", kind="stable")
    table = rows.pivot_table(
        index=["model", "precision", "system"],
        columns="task",
        values="spearman",
        aggfunc="last",
        sort=False,
    )
    lines = [[*index, *cells(scores, STS)] for index, scores in table.iterrows()]
    return markdown(["model", "weights", "representation", *STS.values()], lines, left=3)


def search() -> str:
    """What one of 300 demonstrations does, by model."""
    from prompteol_utils import data
    from prompteol_utils.demonstrations import DemonstrationScores, rank

    candidates, lines = data.load_demonstrations(), []
    for file in sorted(RESULTS.glob("search_*.jsonl"), reverse=True):
        trials = DemonstrationScores.recorded(file)
        ranked = rank(trials, candidates)
        n, best, gain = int(ranked["n"].iloc[0]), ranked.iloc[0], ranked["gain"]
        numbers = [
            f"{trials.score([], n):.1f}",
            f"{gain.mean():+.1f}",
            f"{best['gain']:+.1f} ({best['word']})",
            f"{(gain > 0).mean():.0%}",
        ]
        lines.append([trials.about["model"], str(n), *numbers])
    return markdown(
        ["model", "pairs", "no demonstration", "mean gain", "best", "share that helps"], lines
    )


def transfer() -> str:
    """Accuracies of the seven transfer tasks by encoder and solver."""
    rows = store("transfer")
    if rows.empty:
        return NOTHING
    from prompteol_utils.evaluation import summarise

    rows = rows.assign(
        system=rows.apply(system, axis=1), precision=rows.apply(precision, axis=1)
    ).astype({"accuracy": float})
    table = summarise(rows, by=["model", "precision", "system", "solver"])
    lines = [[*index, *cells(scores, [*TRANSFER, "avg"])] for index, scores in table.iterrows()]
    return markdown(
        ["model", "weights", "representation", "solver", *TRANSFER.values(), "mean of 7"],
        lines,
        left=4,
    )


def dtypes() -> str:
    """PromptEOL on STS-B dev in fp32 and in bf16."""
    rows = store("sts")
    rows = rows[
        rows["prompt"].eq("prompteol")
        & rows["split"].eq("dev")
        & rows["n"].eq(1500)
        & rows["engine"].eq("encoder")
    ]
    rows = rows[plain(rows)].astype({"spearman": float})
    table = rows.pivot_table(
        index="model", columns="dtype", values="spearman", aggfunc="last", sort=False
    )
    lines = [
        [model, *(f"{scores[name]:.2f}" for name in ("float32", "bfloat16"))]
        for model, scores in table.iterrows()
    ]
    return markdown(["model", "fp32", "bf16"], lines)


def speed() -> str:
    """Sentences a second by engine and demonstrations.

    In brackets the share of the machine's fp32 peak.
    """
    rows = store("bench").astype({"sentences_per_second": float, "share": float})
    engines = list(dict.fromkeys(rows["engine"]))
    medians = rows.groupby(["model", "shots", "engine"], sort=False)[
        ["sentences_per_second", "share"]
    ].median()
    lines = []
    for model, shots in dict.fromkeys(zip(rows["model"], rows["shots"], strict=True)):
        here = medians.loc[model, shots]
        found = [
            f"{here.loc[e, 'sentences_per_second']:.1f} ({here.loc[e, 'share']:.0%})"
            if e in here.index
            else "–"
            for e in engines
        ]
        lines.append([model, str(shots), *found])
    return markdown(["model", "demonstrations", *engines], lines)


def bench() -> str:
    """Every engine, by what benchmarks/encode.py prints."""
    import encode

    lines = []
    for row in encode.table(encode.ROWS).itertuples():
        speed = [
            f"{row.sentences_per_second:.1f}",
            f"{row.ours_is_faster:.1f}",
            f"{row.useful_tokens_per_second:,.0f}",
        ]
        speed += [f"{row.share:.0%}", f"{row.share_with_attention:.0%}"]
        exact = [f"{row.peak_memory_mb:,.0f}", f"{row.smallest_cosine:.5f}", f"{row.stsb_dev:.2f}"]
        lines.append([row.model, str(row.shots), row.engine, *speed, *exact])
    columns = [
        "model",
        "demonstrations",
        "engine",
        "sentences/s",
        "ours is times as fast",
        "useful tokens/s",
        "share of peak",
    ]
    return markdown(
        [*columns, "… with attention", "peak memory (MB)", "smallest cosine", "STS-B dev"],
        lines,
        left=3,
    )


def profile() -> str:
    """Commits side by side: seconds, and where they go."""
    import profile_encode

    if store("profile").empty:
        return NOTHING
    kinds, lines = [*profile_encode.KINDS, "outside operators"], []
    for row in profile_encode.table(profile_encode.ROWS).to_dict("records"):
        shares = [f"{row[kind]:.0f}%" for kind in kinds]
        lines.append(
            [
                str(row["shots"]),
                f"`{row['revision'][:7]}`",
                f"{row['cpu_seconds']:.2f}",
                f"{row['gflops']:.0f}",
                *shares,
            ]
        )
    return markdown(["demonstrations", "commit", "CPU seconds", "GFLOP/s", *kinds], lines, left=2)


def train() -> str:
    """A training step against the plain loop."""
    rows = store("train_bench").astype({"seconds_a_step": float, "peak_memory_gb": float})
    table = rows.pivot_table(
        index="batch",
        columns="engine",
        values=["seconds_a_step", "peak_memory_gb"],
        aggfunc="median",
    )
    table["times", ""] = table["seconds_a_step", "plain"] / table["seconds_a_step", "chunks"]
    columns = [
        (what, engine)
        for what in ("seconds_a_step", "peak_memory_gb")
        for engine in ("chunks", "plain")
    ]
    lines = [
        [str(batch), *cells(row, [*columns[:2], ("times", ""), *columns[2:]])]
        for batch, row in table.iterrows()
    ]
    return markdown(
        ["batch", "s a step", "plain loop", "times as fast", "peak memory (GB)", "plain loop (GB)"],
        lines,
    )


def scale() -> str:
    """Time and memory against the number of sentences."""
    import scale as bench_scale

    rows = bench_scale.tables(bench_scale.ROWS).get("scale")
    if rows is None:
        return NOTHING
    lines = [
        [
            row.model,
            f"{row.n:,}",
            f"{row.seconds:.1f}",
            f"{row.ms_a_sentence:.2f}",
            f"{row.cpu_ms_a_sentence:.2f}",
            f"{row.off_linear:+.1%}",
            f"{row.memory_above_loaded_mb:.0f}",
        ]
        for row in rows.itertuples()
    ]
    return markdown(
        [
            "model",
            "sentences",
            "seconds",
            "ms a sentence",
            "CPU ms a sentence",
            "off linear",
            "memory above the loaded model (MB)",
        ],
        lines,
    )


def shots() -> str:
    """What demonstrations cost, with the shared prefix run once and run for each sentence."""
    import scale as bench_scale

    rows = bench_scale.tables(bench_scale.ROWS).get("shots_cost")
    if rows is None:
        return NOTHING
    table = rows.pivot_table(index="prefix_cache", columns="shots", values="cpu_ms_a_sentence")
    lines = [
        [text, *cells(table.loc[c], table.columns)]
        for text, c in (("prefix run once", True), ("prefix run for each sentence", False))
    ]
    return markdown(
        ["CPU ms a sentence with … demonstrations", *(f"{k:.0f}" for k in table.columns)], lines
    )


def followups() -> str:
    """Methods after PromptEOL: two layers, the gain at the same layer, the cost of a sentence."""
    from prompteol_utils.experiments.followups import tables
    from prompteol_utils.results import Store

    rows = Store(RESULTS / "followups.jsonl").read()
    records, differences = (
        rows[rows["kind"].eq(kind)] for kind in ("followup", "followup_difference")
    )
    lines = []
    for model in dict.fromkeys(records["model"]):
        gained = tables.gains(differences, model)
        for method, row in tables.summary(records, model).iterrows():
            gap = gained.get(method)
            change = "–" if gap is None else f"{gap.points:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"
            layers = [
                "–" if pd.isna(row[layer]) else f"{row[score]:.1f} ({row[layer]:.0f})"
                for score, layer in (("published", "layer"), ("best", "best_layer"))
            ]
            cost = [f"{row['passes']:g}", f"{row['ms']:.0f}", f"{row['n']:.0f}"]
            lines.append([model, method, *layers, change, *cost])
    columns = ["model", "method", "its authors' layer", "best layer on dev", "against PromptEOL"]
    return markdown([*columns, "passes", "CPU ms", "pairs"], lines, left=2)


def render(text: str) -> str:
    """A document with every block made anew; a block is named after the function that makes it."""
    results = (prompts, sts, search, transfer, followups, dtypes)
    costs = (speed, bench, profile, train, scale, shots)
    makers = {maker.__name__: maker for maker in results + costs}
    return BLOCK.sub(lambda match: f"{match[1]}{makers[match[2]]()}{match[3]}", text)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(render(document.read_text(encoding="utf-8")), encoding="utf-8")
