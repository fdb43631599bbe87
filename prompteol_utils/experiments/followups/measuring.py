"""Methods on sentence pairs: every layer from one pass, cost beside score, paired intervals."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from prompteol_utils.data.sts import Pairs
from prompteol_utils.encoder.encoder import Encoder
from prompteol_utils.evaluation.significance import compare_scores
from prompteol_utils.evaluation.sts import cosines, spearman_rows
from prompteol_utils.experiments.followups.methods import Method, View
from prompteol_utils.models.loading import LoadedModel
from prompteol_utils.results.key import MeasurementKey
from prompteol_utils.results.store import Store, provenance
from prompteol_utils.utils import files


class ViewStates:
    """States of a set of sentences by view: methods that share a view share its pass.

    Args:
        loaded: The model.
        sentences: Distinct ones.
    """

    def __init__(self, loaded: LoadedModel, sentences: Sequence[str]):
        self.loaded = loaded
        self.sentences = list(sentences)
        self.seconds: dict[View, tuple[float, float]] = {}
        self._states: dict[View, np.ndarray] = {}

    def __getitem__(self, view: View) -> np.ndarray:
        """float32 (layers, n, d), run at first use."""
        if view not in self._states:
            wall, processor = time.perf_counter(), time.process_time()
            self._states[view] = view(self.loaded, self.sentences)
            self.seconds[view] = time.perf_counter() - wall, time.process_time() - processor
        return self._states[view]

    def of(self, method: Method) -> np.ndarray:
        """A method's states (layers, n, k)."""
        return method.combine(self.loaded, [self[view] for view in method.views])


def layer_cosines(states: np.ndarray, sentences: Sequence[str], pairs: Pairs) -> np.ndarray:
    """Cosines of the pairs at each layer but the embeddings', where a last token is always itself.

    Args:
        states: float32 (depth + 1, n, d).
        sentences: The n sentences.
        pairs: m pairs of them.

    Returns:
        float64 (depth, m).
    """
    index = {sentence: i for i, sentence in enumerate(sentences)}
    left, right = ([index[one] for one in side] for side in (pairs.left, pairs.right))
    return np.stack([cosines(layer[left], layer[right]) for layer in states[1:]])


def measure(
    loaded: LoadedModel,
    methods: Iterable[Method],
    pairs: Pairs,
    store: Store,
    work: Path,
    *,
    split: str,
    seed: int = 0,
    **more,
) -> None:
    """Score methods at every layer; what the store holds is not measured again.

    Args:
        loaded: A causal language model.
        methods: From `METHODS` or made like them.
        pairs: The set.
        store: Gets a record of kind "followup" a method: `by_layer` (Spearman x 100 at the hidden
            states 1 to depth), `spearman` at the authors' layer, `passes`, `cpu_seconds` and
            `seconds` (of all its views, for `sentences` sentences).
        work: A folder for the cosines, which `differences` reads.
        split: Of the pairs.
        seed: Of their sample.
        **more: Further fields of the records.
    """
    states = ViewStates(loaded, pairs.sentences)
    for method in methods:
        key = _key(loaded, method, pairs, split, seed)
        file = cosine_file(work, key)
        if store.done(key) and file.exists():
            continue
        similar = layer_cosines(states.of(method), pairs.sentences, pairs)
        scores = spearman_rows(similar, pairs.gold, pairs.name)
        layer = method.published_layer(len(similar))
        used = np.sum([states.seconds[view] for view in method.views], axis=0)
        with files.atomic_file(file, "wb") as out:
            np.save(out, similar.astype(np.float32))
        found = {
            "passes": method.passes,
            "published_layer": layer,
            "spearman": round(float(scores[layer - 1]), 4),
            "by_layer": [round(float(one), 3) for one in scores],
            "sentences": len(pairs.sentences),
            "seconds": round(float(used[0]), 2),
            "cpu_seconds": round(float(used[1]), 2),
            "threads": torch.get_num_threads(),
        }
        store.append(key.record() | found | more | provenance(seed))
        print(
            f"{loaded.name} {pairs.name} {split} {method.name}: {scores[layer - 1]:.1f} at layer "
            f"{layer}, best {scores.max():.1f} at {scores.argmax() + 1}, {used[1]:.0f} s",
            flush=True,
        )


def best_layer(store: Store, model: str, method: str, task: str = "stsb") -> int:
    """The hidden state of the highest score on the largest sample of the dev pairs.

    Raises:
        ValueError: The method was not measured on them.
    """
    rows = [
        row
        for row in store.rows()
        if (row["kind"], row["model"], row["method"]) == ("followup", model, method)
        and (row["task"], row["split"]) == (task, "dev")
    ]
    if not rows:
        raise ValueError(f"{method} was not measured on {task} dev with {model}")
    return int(np.argmax(max(rows, key=lambda row: row["n"])["by_layer"])) + 1


def differences(
    loaded: LoadedModel,
    methods: Iterable[Method],
    pairs: Pairs,
    store: Store,
    work: Path,
    *,
    split: str = "test",
    seed: int = 0,
    baseline: Method,
    layer_from: str | None = None,
) -> None:
    """Paired bootstrap intervals of what methods gain over a baseline.

    Args:
        loaded: As for `measure`, as are the arguments down to `seed`.
        methods: Measured before, on dev, too.
        pairs: The set.
        store: Gets records of kind "followup_difference", by `layers`: "published" (each at its
            authors' layer), "same published" (the baseline at the method's), "best" (each at its
            best layer on dev), "same best", and "best over published".
        work: Where the cosines are.
        split: Of the pairs.
        seed: Of their sample.
        baseline: The method to compare with.
        layer_from: Take the best layer of this method's dev scores instead of each one's own.
    """

    def load(method: Method) -> np.ndarray:
        return np.load(cosine_file(work, _key(loaded, method, pairs, split, seed)))

    base = load(baseline)
    base_best = best_layer(store, loaded.name, baseline.name)
    base_own = baseline.published_layer(len(base))
    for method in methods:
        own = method.published_layer(len(base))
        best = best_layer(store, loaded.name, layer_from or method.name)
        for layers, mine, theirs in (
            ("published", own, base_own),
            ("same published", own, own),
            ("best", best, base_best),
            ("same best", best, best),
            ("best over published", best, base_own),
        ):
            key = _key(loaded, method, pairs, split, seed).record()
            key |= {"kind": "followup_difference", "baseline": baseline.name, "layers": layers}
            key |= {"layer": mine, "baseline_layer": theirs}
            if store.done(key) or (method == baseline and mine == theirs):
                continue
            found = compare_scores(load(method)[mine - 1], base[theirs - 1], pairs.gold)
            interval = {name: round(getattr(found, name), 3) for name in ("points", "low", "high")}
            store.append(key | interval | {"level": found.level} | provenance(seed))


def cosine_file(work: Path, key: MeasurementKey) -> Path:
    """Where a measurement's cosines are kept."""
    name = f"{key.model}_{key.settings['method']}_{key.task}_{key.split}_{key.n}.npy"
    work.mkdir(parents=True, exist_ok=True)
    return work / name


def _key(loaded, method: Method, pairs: Pairs, split: str, seed: int) -> MeasurementKey:
    encoder = Encoder(loaded, method.views[0].prompt)
    return MeasurementKey.of(encoder, pairs, split, kind="followup", seed=seed, method=method.name)
