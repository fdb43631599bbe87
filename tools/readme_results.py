"""README's tables of results, made from the recorded rows: `python tools/readme_results.py` writes them between their markers.

A test compares the two, so a table can neither be typed by hand nor go stale.
"""

import re
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
README, RESULTS = ROOT / "README.md", ROOT / "data" / "results"
STS = {"stsb": "STS-B", "sts12": "STS12", "sts13": "STS13", "sts15": "STS15"}
TRANSFER = {"mr": "MR", "cr": "CR", "subj": "SUBJ", "mpqa": "MPQA", "sst2": "SST-2", "trec": "TREC", "mrpc": "MRPC"}
REPRESENTATIONS = {
    "last": "last token, no prompt", "mean": "mean of tokens, no prompt", "means": '`This sentence : "X" means` (no one-word limit)',
    "prompteol": "**PromptEOL**",
}  # fmt: skip
ORDER = ["fp32", "bf16", "NF4", "int8"]
BLOCK = re.compile(r"(<!-- results: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def store(name: str) -> pd.DataFrame:
    """Rows of one file of data/results; empty where there is none."""
    from prompteol_utils.results import Store

    return Store(RESULTS / f"{name}.jsonl").read()


def markdown(columns: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A table whose first `left` columns are text and whose others are numbers."""
    rule = ["---"] * left + ["--:"] * (len(columns) - left)
    return "".join("| " + " | ".join(row) + " |\n" for row in ([columns, rule, *rows]))


def system(row: pd.Series) -> str:
    """What stands before a score: demonstrations by their words, and training."""
    words = [one.rpartition("=>")[2] for one in row["demonstrations"]]
    shown = f"{len(words)} demonstration{'s' if len(words) > 1 else ''} ({', '.join(words)})" if words else ""
    return " + ".join(filter(None, ["PromptEOL", shown, f"trained ({row['adapter']})" if row["adapter"] else ""]))


def precision(row: pd.Series) -> str:
    """How the weights are kept, as people call it."""
    return {"nf4": "NF4", "int8": "int8"}.get(row["quantization"]) or {"float32": "fp32", "bfloat16": "bf16"}[row["dtype"]]


def cells(found: pd.Series, names: dict[str, str], digits: int = 1) -> list[str]:
    """A score a task; a dash where no row is."""
    return [f"{found[task]:.{digits}f}" if task in found else "–" for task in names]


def prompts() -> str:
    """Representations on STS-B dev, by the encoder and by the plain loop."""
    rows = pd.concat([store("sts"), store("reference")])
    rows = rows[rows["model"].eq("smollm2-135m-instruct") & rows["split"].eq("dev") & rows["dtype"].eq("float32") & rows["n"].eq(1500)]
    rows = rows[rows["demonstrations"].map(len).eq(0) & rows["quantization"].isna()]
    scores = rows.pivot_table(index="prompt", columns="engine", values="spearman", aggfunc="last")
    lines = [[text, *(f"{scores.loc[name, engine]:.2f}" for engine in ("encoder", "reference"))] for name, text in REPRESENTATIONS.items()]
    return markdown(["representation", "STS-B dev", "the plain loop, one sentence at a time"], lines)


def sts() -> str:
    """Every system with rows on whole test sets."""
    rows = store("sts")
    rows = rows[rows["prompt"].eq("prompteol") & rows["split"].eq("test") & rows["origin"].eq("senteval") & rows["engine"].eq("encoder")]
    rows = rows.astype({"quantization": object, "adapter": object}).where(lambda frame: frame.notna(), None)
    rows = rows.assign(system=rows.apply(system, axis=1), precision=rows.apply(precision, axis=1))
    place = [rows["model"], rows["precision"].map(ORDER.index), rows["adapter"].notna(), rows["demonstrations"].map(len)]
    rows = rows.assign(place=list(zip(*place, strict=True))).sort_values("place", kind="stable")
    table = rows.pivot_table(index=["model", "precision", "system"], columns="task", values="spearman", aggfunc="last", sort=False)
    lines = [[*index, *cells(scores.dropna(), STS)] for index, scores in table.iterrows()]
    return markdown(["model", "weights", "representation", *STS.values()], lines, left=3)


def search() -> str:
    """What one of 300 demonstrations does, by model."""
    from prompteol_utils import data
    from prompteol_utils.search import rank
    from prompteol_utils.trials import Trials

    candidates, lines = data.load_demonstrations(), []
    for file in sorted(RESULTS.glob("search_*.jsonl"), reverse=True):
        trials = Trials.recorded(file)
        ranked = rank(trials, candidates)
        n, best, gain = int(ranked["n"].iloc[0]), ranked.iloc[0], ranked["gain"]
        numbers = [f"{trials.score([], n):.1f}", f"{gain.mean():+.1f}", f"{best['gain']:+.1f} ({best['word']})", f"{(gain > 0).mean():.0%}"]
        lines.append([trials.about["model"], str(n), *numbers])
    return markdown(["model", "pairs", "no demonstration", "mean gain", "best", "share that helps"], lines)


def transfer() -> str:
    """Accuracies of the seven transfer tasks by encoder and solver."""
    rows = store("transfer")
    if rows.empty:
        return "No rows on whole sets yet.\n"
    rows = rows.astype({"quantization": object, "adapter": object}).where(lambda frame: frame.notna(), None)
    plain = {"prompteol": "PromptEOL", "mean": "mean of tokens", "means": "means", "last": "last token"}
    names = [system(row).replace("PromptEOL", plain.get(row["prompt"], row["prompt"]), 1) for _, row in rows.iterrows()]
    rows = rows.assign(system=names, precision=rows.apply(precision, axis=1))
    keys = ["model", "precision", "system", "solver"]
    table = rows.pivot_table(index=keys, columns="task", values="accuracy", aggfunc="mean", sort=False)
    lines = []
    for index, found in table.iterrows():
        scores = found.dropna()
        mean = f"{scores[list(TRANSFER)].mean():.1f}" if set(TRANSFER) <= set(scores.index) else "–"
        lines.append([*index, *cells(scores, TRANSFER), mean])
    return markdown(["model", "weights", "representation", "solver", *TRANSFER.values(), "mean of 7"], lines, left=4)


def dtypes() -> str:
    """PromptEOL on STS-B dev in fp32 and in bf16."""
    rows = store("sts")
    rows = rows[rows["prompt"].eq("prompteol") & rows["split"].eq("dev") & rows["n"].eq(1500) & rows["engine"].eq("encoder")]
    rows = rows[rows["demonstrations"].map(len).eq(0) & rows["quantization"].isna() & rows["adapter"].isna()]
    table = rows.pivot_table(index="model", columns="dtype", values="spearman", aggfunc="last", sort=False)
    lines = [[model, *(f"{scores[name]:.2f}" for name in ("float32", "bfloat16"))] for model, scores in table.iterrows()]
    return markdown(["model", "fp32", "bf16"], lines)


def speed() -> str:
    """Sentences a second by engine and demonstrations; in brackets the share of the machine's fp32 peak."""
    rows = store("bench")
    engines = list(dict.fromkeys(rows["engine"]))
    medians = rows.groupby(["model", "shots", "engine"], sort=False)[["sentences_per_second", "share"]].median()
    lines = []
    for model, shots in dict.fromkeys(zip(rows["model"], rows["shots"], strict=True)):
        here = medians.loc[model, shots]
        found = [f"{here.loc[e, 'sentences_per_second']:.1f} ({here.loc[e, 'share']:.0%})" if e in here.index else "–" for e in engines]
        lines.append([model, str(shots), *found])
    return markdown(["model", "demonstrations", *engines], lines)


def render(text: str) -> str:
    """README with every block made anew."""
    makers = {"prompts": prompts, "sts": sts, "search": search, "transfer": transfer, "dtypes": dtypes, "speed": speed}
    return BLOCK.sub(lambda match: f"{match[1]}{makers[match[2]]()}{match[3]}", text)


if __name__ == "__main__":
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
