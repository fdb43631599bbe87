"""Cosines of one dev sample under many lists of demonstrations, each computed once and stored.

The exact search, successive halving, greedy selection, orders and their replays all read from here.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from prompteol_utils.data.sts import Pairs
from prompteol_utils.encoder.encoder import Encoder
from prompteol_utils.evaluation.sts import cosines, embed_pairs, spearman_rows
from prompteol_utils.models.loading import LoadedModel
from prompteol_utils.prompts import Demonstration, Prompt, get_prompt, with_demonstrations
from prompteol_utils.results.key import digest
from prompteol_utils.results.store import Store, provenance

KIND = "search"  # of the records
UNIT = 1_000_000  # cosines are stored as whole millionths, so a resumed search ends in equal bytes
BATCH_TOKENS = 512  # on a CPU: a step is some fifty short sentences, and small batches pad less

Measure = Callable[[tuple[Demonstration, ...], int, int], np.ndarray]


def sample_order(gold: np.ndarray, seed: int = 0) -> list[int]:
    """Draw an order in which every ten pairs hold one from each tenth of the grades.

    Few pairs then rank candidates much as all of them would.

    Args:
        gold: (n,), grades.
        seed: Of the choice within each tenth.

    Returns:
        The positions 0 to n - 1, each once.
    """
    rng = np.random.default_rng(seed)
    by_grade = np.lexsort((rng.random(len(gold)), gold))
    tenths = [rng.permutation(part) for part in np.array_split(by_grade, 10)]
    spread = [tenths[3 * k % 10] for k in range(10)]  # low, middle and high grades alternate
    return [int(part[k]) for k in range(len(tenths[0])) for part in spread if k < len(part)]


class DemonstrationScores:
    """Cosines of a sample of graded pairs under lists of demonstrations.

    `live` computes what is missing, `recorded` only reads. The sample is a seeded order of the
    pairs, and each list is known on a number of pairs from its beginning; asking for more encodes
    the missing ones and stores them, so growing samples share all their work.

    Args:
        gold: float (n,), the grades in the sample's order.
        about: What the cosines belong to: model, weights, prompt, set, seed.
        store: Where records are read and written; None keeps them in memory.
        measure: Computes the cosines of pairs start to stop under a list of demonstrations; with
            None, what is not recorded is an error.
    """

    def __init__(
        self,
        gold: np.ndarray,
        about: dict,
        *,
        store: Store | None = None,
        measure: Measure | None = None,
    ):
        self.gold = np.asarray(gold, dtype=np.float64)
        self.about = dict(about)
        self.id = digest(about)[:12]
        self._store = store
        self._measure = measure
        self._known: dict[tuple[str, ...], np.ndarray] = {}
        for record in store.rows() if store else ():
            if record.get("kind") == KIND and record.get("search") == self.id:
                self._add(tuple(record["demonstrations"]), record["start"], record["cosines"])

    @classmethod
    def live(
        cls,
        loaded: LoadedModel,
        dev: Pairs,
        *,
        prompt: "Prompt | str" = "prompteol",
        store: "Store | str | os.PathLike | None" = None,
        pooling: str | None = None,
        layer: int = -1,
        seed: int = 0,
    ) -> "DemonstrationScores":
        """Scores of a model on pairs, in an order drawn with `seed`.

        Args:
            loaded: A model from `load_model`.
            dev: The pairs used for selection, never those to report on.
            prompt: The prompt after the demonstrations.
            store: A `Store` or its path: what is found there is not computed again.
            pooling: None takes the prompt's own.
            layer: As for `Encoder`.
            seed: Of the order.

        Raises:
            ValueError: No pairs, or all their grades are equal.
        """
        prompt = get_prompt(prompt)
        if not len(dev):
            raise ValueError(f"{dev.name}: no pairs; take other pairs to choose on")
        if np.ptp(dev.gold) == 0:
            raise ValueError(
                f"{dev.name}: all {len(dev)} grades are {dev.gold[0]:g}, so no demonstration could "
                "rank them better; take other pairs to choose on"
            )
        sample = dev.take(sample_order(dev.gold, seed))
        key = Encoder(loaded, prompt, pooling=pooling, layer=layer).key
        about = {name: value for name, value in key.items() if name != "prompt"} | {
            "prompt": prompt.name,
            "template": prompt.prefix + "{}" + prompt.suffix,
            "punctuation": prompt.punctuation,
            "task": sample.name,
            "origin": sample.origin,
            "text_form": sample.text_form,
            "sample": digest([sample.left, sample.right, sample.gold.tolist()])[:12],
            "seed": seed,
        }
        budget = BATCH_TOKENS if loaded.device == "cpu" else None
        loaded = replace(loaded, trained_prompt=None)  # was looked at above, for the plain prompt

        def measure(demonstrations: tuple[Demonstration, ...], start: int, stop: int) -> np.ndarray:
            text = with_demonstrations(prompt, demonstrations)
            encoder = Encoder(loaded, text, pooling=pooling, layer=layer)

            def encode(texts: list[str]) -> np.ndarray:
                return encoder.encode(texts, batch_tokens=budget, show_progress_bar=False)

            (left,), (right,) = embed_pairs(encode, [sample.take(range(start, stop))])
            return cosines(left, right)

        store = store if isinstance(store, Store | None) else Store(store)
        return cls(sample.gold, about, store=store, measure=measure)

    @classmethod
    def recorded(
        cls, store: "Store | str | os.PathLike", search: str | None = None
    ) -> "DemonstrationScores":
        """Read one search from a store, without its model and without its pairs' sentences.

        Args:
            store: A `Store` or its path.
            search: Its id, if the store holds several.

        Raises:
            ValueError: The store holds none, or several and none was named.
        """
        store = store if isinstance(store, Store) else Store(store)
        records = [record for record in store.rows() if record.get("kind") == KIND]
        plain = [record for record in records if not record["demonstrations"]]
        found = {record["search"]: record["about"] for record in plain}
        if search is None and len(found) == 1:
            (search,) = found
        if search not in found:
            wanted = "search" if search is None else f"search {search!r}"
            raise ValueError(
                f"{store.path} holds {len(found)} searches, so {wanted} cannot be taken; "
                f"there are: {', '.join(found) or 'none'}"
            )
        gold: list[float] = []
        for record in plain:
            if record["search"] == search and record["start"] == len(gold):
                gold += record["gold"]
        return cls(np.array(gold), found[search], store=store)

    def __len__(self) -> int:
        """Pairs in the sample."""
        return len(self.gold)

    def known(self, demonstrations: Iterable[Demonstration]) -> int:
        """On how many pairs a list of demonstrations was measured."""
        return len(self._known.get(tuple(map(str, demonstrations)), ()))

    def cosines(self, demonstrations: Iterable[Demonstration], pairs: int) -> np.ndarray:
        """Cosines of the first `pairs` pairs; missing ones are computed and stored.

        Args:
            demonstrations: In reading order; none is the plain prompt.
            pairs: From 1 to the sample's length.

        Returns:
            float64 (pairs,), rounded to six digits.

        Raises:
            ValueError: More pairs than the sample has, or than are recorded.
        """
        demonstrations = tuple(demonstrations)
        key = tuple(map(str, demonstrations))
        if not 1 <= pairs <= len(self):
            raise ValueError(
                f"{pairs} pairs asked of a sample of {len(self)}; allowed: 1 to {len(self)}"
            )
        start = self.known(demonstrations)
        if start < pairs:
            if self._measure is None:
                name = " | ".join(key) or "the plain prompt"
                raise ValueError(f"{name} is recorded on {start} pairs, {pairs} were asked for")
            if key:  # the plain prompt's record carries the grades
                self.cosines((), pairs)
            begin = time.perf_counter()
            values = np.rint(self._measure(demonstrations, start, pairs) * UNIT).astype(int)
            self._keep(key, start, values.tolist(), time.perf_counter() - begin)
        return self._known[key][:pairs] / UNIT

    def score(self, demonstrations: Iterable[Demonstration], pairs: int, start: int = 0) -> float:
        """Spearman x 100 of one list over pairs `start` to `pairs` of the sample."""
        return float(self.scores([demonstrations], pairs, start)[0])

    def scores(
        self, lists: Sequence[Iterable[Demonstration]], pairs: int, start: int = 0
    ) -> np.ndarray:
        """Spearman x 100 of several lists over pairs `start` to `pairs`: float64 (len(lists),).

        Raises:
            ValueError: As in `evaluation.spearman`; or the pairs are not recorded.
        """
        matrix = np.stack([self.cosines(one, pairs)[start:] for one in lists])
        return spearman_rows(matrix, self.gold[start:pairs], f"pairs {start} to {pairs}")

    def shuffled(self, seed: int, pairs: int) -> "DemonstrationScores":
        """Put the first `pairs` pairs into another order, in memory, without the model."""
        order = sample_order(self.gold[:pairs], seed)
        other = DemonstrationScores(self.gold[order], self.about | {"seed": seed})
        whole = {key: known for key, known in self._known.items() if len(known) >= pairs}
        other._known = {key: known[order] for key, known in whole.items()}
        return other

    def _keep(self, key: tuple[str, ...], start: int, values: list[int], seconds: float) -> None:
        if self._store is not None:
            record = {"kind": KIND, "search": self.id, "demonstrations": list(key)}
            record |= {"start": start, "cosines": values}
            facts = provenance(self.about["seed"])
            if key:  # short, since there are thousands of them
                names = ("torch", "transformers")
                facts["versions"] = {name: facts["versions"][name] for name in names}
            else:
                gold = self.gold[start : start + len(values)]
                record |= {"gold": gold.tolist(), "about": self.about}
            self._store.append(record | {"seconds": round(seconds, 2)} | facts)
        self._add(key, start, values)

    def _add(self, key: tuple[str, ...], start: int, values: list[int]) -> None:
        known = self._known.get(key, np.zeros(0, dtype=np.int64))
        if start <= len(known) < start + len(values):  # two processes may measure the same pairs
            self._known[key] = np.concatenate([known[:start], values])
