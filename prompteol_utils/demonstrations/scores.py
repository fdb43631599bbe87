"""What each tried list of demonstrations makes of one dev sample: a cosine for each pair, computed once and kept in the store.

Everything that compares demonstrations reads from here: the exact search, successive halving, greedy shots, orders, and their replays.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from prompteol_utils.data.sts import Pairs
from prompteol_utils.encoder.encoder import Encoder
from prompteol_utils.evaluation.sts import cosines, embed_pairs, spearman_rows
from prompteol_utils.models.loading import LoadedModel
from prompteol_utils.prompts import Demonstration, Prompt, get_prompt, with_demonstrations
from prompteol_utils.results import key as result_key
from prompteol_utils.results.store import Store, provenance

KIND = "search"  # of the rows
UNIT = 1_000_000  # cosines are kept as whole millionths: short, and a search that was interrupted ends in the same bytes
BATCH_TOKENS = (
    512  # on a CPU; a step is some fifty short sentences, and smaller batches carry less padding
)

Measure = Callable[[tuple[Demonstration, ...], int, int], np.ndarray]


def sample_order(gold: np.ndarray, seed: int = 0) -> list[int]:
    """A random order in which every ten pairs hold one from each tenth of the grades, so that few pairs rank much as all would.

    Args:
        gold: (n,), grades.
        seed: Of the choice within each tenth.

    Returns:
        The positions 0 to n - 1, each once.
    """
    rng = np.random.default_rng(seed)
    tenths = [
        rng.permutation(part)
        for part in np.array_split(np.lexsort((rng.random(len(gold)), gold)), 10)
    ]
    spread = [tenths[3 * k % 10] for k in range(10)]  # low, middle and high ones alternate
    return [int(part[k]) for k in range(len(tenths[0])) for part in spread if k < len(part)]


class DemonstrationScores:
    """Cosines of one sample of graded pairs under many lists of demonstrations; `DemonstrationScores.live` computes, `DemonstrationScores.recorded` only reads.

    The sample is a seeded order of the pairs (`sample_order`), and each list is known on its first so many pairs. Asking for more
    encodes the missing ones and keeps them, so samples that grow share all their work, and a kill costs what was being encoded.

    Args:
        gold: float (n,), the grades in the sample's order.
        about: What the cosines belong to: model, weights, prompt, set, seed; written into the rows of the plain prompt.
        store: Rows go there and come from there; None keeps them in memory.
        measure: Encodes pairs start to stop of the sample under a list of demonstrations; None: what is not recorded is an error.

    Built in notebook 02.
    """

    def __init__(
        self,
        gold: np.ndarray,
        about: dict,
        *,
        store: Store | None = None,
        measure: Measure | None = None,
    ):
        self.gold, self.about = np.asarray(gold, dtype=np.float64), dict(about)
        self.id = result_key.digest(about)[:12]
        self._store, self._measure = store, measure
        self._known: dict[tuple[str, ...], np.ndarray] = {}
        for row in store.rows() if store else ():
            if row.get("kind") == KIND and row.get("search") == self.id:
                self._add(tuple(row["demonstrations"]), row["start"], row["cosines"])

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
        """DemonstrationScores of a model on pairs, in an order drawn with `seed`.

        Args:
            loaded: A model from `load_model`.
            dev: The pairs to choose on, never those to report on.
            prompt: The prompt that demonstrations are put before.
            store: A `Store` or its path: what is in it is not computed again.
            pooling: None takes the prompt's own.
            layer: As for `Encoder`.
            seed: Of the order.

        Raises:
            ValueError: No pairs, or all their grades are equal.
        """
        prompt = get_prompt(prompt)
        if not len(dev) or np.ptp(dev.gold) == 0:
            what = (
                f"all {len(dev)} grades are {dev.gold[0]:g}, so no demonstration could rank them better"
                if len(dev)
                else "no pairs"
            )
            raise ValueError(f"{dev.name}: {what}; take other pairs to choose on")
        sample = dev.take(sample_order(dev.gold, seed))
        digest = result_key.digest([sample.left, sample.right, sample.gold.tolist()])[:12]
        fields = Encoder(loaded, prompt, pooling=pooling, layer=layer).key
        about = {name: value for name, value in fields.items() if name != "prompt"} | {
            "prompt": prompt.name, "template": prompt.prefix + "{}" + prompt.suffix, "punctuation": prompt.punctuation,
            "task": sample.name, "origin": sample.origin, "text_form": sample.text_form, "sample": digest,
        }  # fmt: skip

        def measure(demonstrations: tuple[Demonstration, ...], start: int, stop: int) -> np.ndarray:
            encoder = Encoder(
                loaded, with_demonstrations(prompt, demonstrations), pooling=pooling, layer=layer
            )
            budget = BATCH_TOKENS if loaded.device == "cpu" else None
            part = sample.take(range(start, stop))
            (left,), (right,) = embed_pairs(
                lambda texts: encoder.encode(texts, batch_tokens=budget, show_progress_bar=False),
                [part],
            )
            return cosines(left, right)

        store = store if isinstance(store, Store | None) else Store(store)
        return cls(sample.gold, about | {"seed": seed}, store=store, measure=measure)

    @classmethod
    def recorded(
        cls, store: "Store | str | os.PathLike", search: str | None = None
    ) -> "DemonstrationScores":
        """What a store holds of one search, without the model and without the benchmark: its sample is as long as its recorded grades.

        Args:
            store: A `Store` or its path.
            search: Which one, if the store holds several.

        Raises:
            ValueError: The store holds none, or several and none was named.
        """
        store = store if isinstance(store, Store) else Store(store)
        plain = [
            row for row in store.rows() if row.get("kind") == KIND and not row["demonstrations"]
        ]
        found = {row["search"]: row["about"] for row in plain}
        if search is None and len(found) == 1:
            (search,) = found
        if search not in found:
            wanted = "search" if search is None else f"search {search!r}"
            raise ValueError(
                f"{store.path} holds {len(found)} searches, so {wanted} cannot be taken; there are: {', '.join(found) or 'none'}"
            )
        gold: list[float] = []
        for row in plain:
            if row["search"] == search and row["start"] == len(gold):
                gold += row["gold"]
        return cls(np.array(gold), found[search], store=store)

    def __len__(self) -> int:
        """Pairs in the sample."""
        return len(self.gold)

    def known(self, demonstrations: Iterable[Demonstration]) -> int:
        """On how many pairs a list of demonstrations was measured."""
        return len(self._known.get(tuple(map(str, demonstrations)), ()))

    def cosines(self, demonstrations: Iterable[Demonstration], pairs: int) -> np.ndarray:
        """Cosines of the first `pairs` pairs; what is missing is encoded and kept first.

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
        start = len(self._known.get(key, ()))
        if start < pairs:
            if self._measure is None:
                raise ValueError(
                    f"{' | '.join(key) or 'the plain prompt'} is recorded on {start} pairs, {pairs} were asked for"
                )
            if key:
                self.cosines(
                    (), pairs
                )  # its row carries the grades, so that the others can be read without the benchmark
            begin = time.perf_counter()
            values = (
                np.rint(self._measure(demonstrations, start, pairs) * UNIT).astype(int).tolist()
            )
            self._keep(key, start, values, time.perf_counter() - begin)
        return self._known[key][:pairs] / UNIT

    def score(self, demonstrations: Iterable[Demonstration], pairs: int, start: int = 0) -> float:
        """Spearman x 100 of one list over pairs `start` to `pairs` of the sample."""
        return float(self.scores([demonstrations], pairs, start)[0])

    def scores(
        self, lists: Sequence[Iterable[Demonstration]], pairs: int, start: int = 0
    ) -> np.ndarray:
        """Spearman x 100 of several lists.

        Args:
            lists: Each a list of demonstrations.
            pairs: The end of the range of pairs that counts.
            start: Its beginning.

        Returns:
            float64 (len(lists),).

        Raises:
            ValueError: As in `evaluation.spearman`; or the pairs are not recorded.
        """
        matrix = np.stack([self.cosines(one, pairs)[start:] for one in lists])
        return spearman_rows(
            matrix, self.gold[start:pairs], f"pairs {start} to {pairs} of the sample"
        )

    def shuffled(self, seed: int, pairs: int) -> "DemonstrationScores":
        """A replay on the same pairs in another order: what is known on all of the first `pairs` pairs, in memory, without the model.

        Args:
            seed: Of the new order.
            pairs: How many pairs to shuffle and keep.
        """
        order = sample_order(self.gold[:pairs], seed)
        other = DemonstrationScores(self.gold[order], self.about | {"seed": seed})
        other._known = {
            key: known[order] for key, known in self._known.items() if len(known) >= pairs
        }
        return other

    def _keep(self, key: tuple[str, ...], start: int, values: list[int], seconds: float) -> None:
        if self._store is not None:
            facts = provenance(self.about["seed"])
            row = {
                "kind": KIND,
                "search": self.id,
                "demonstrations": list(key),
                "start": start,
                "cosines": values,
            }
            if key:  # short: there are thousands of them
                facts["versions"] = {
                    name: facts["versions"][name] for name in ("torch", "transformers")
                }
            else:
                row |= {
                    "gold": self.gold[start : start + len(values)].tolist(),
                    "about": self.about,
                }
            self._store.append(row | {"seconds": round(seconds, 2)} | facts)
        self._add(key, start, values)

    def _add(self, key: tuple[str, ...], start: int, values: list[int]) -> None:
        known = self._known.get(key, np.zeros(0, dtype=np.int64))
        if (
            start <= len(known) < start + len(values)
        ):  # two processes may have measured the same pairs
            self._known[key] = np.concatenate([known[:start], values])
