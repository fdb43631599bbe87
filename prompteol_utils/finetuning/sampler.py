"""The order of training: batches in which no sentence occurs twice."""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

import numpy as np

from prompteol_utils.data.nli import Triplet, comparable
from prompteol_utils.finetuning.config import FinetuneConfig


class BatchSampler:
    """Batches of shuffled triplets, a function of seed and step.

    A triplet that shares a sentence with one in the batch waits for the next batch: a premise's
    other hypothesis, or another triplet's equal positive, would be a false negative. Where no
    sentence occurs twice, the batches are slices of the shuffled triplets. What does not fill a
    last batch is left out of the epoch.

    Args:
        triplets: Training examples.
        batch_size: Triplets of a batch.
        seed: Of the order.

    Raises:
        ValueError: Not even one batch can be filled.
    """

    def __init__(self, triplets: Sequence[Triplet], batch_size: int, seed: int):
        self.batch_size, self.seed = batch_size, seed
        self._sentences = [
            {comparable(text) for text in (one.anchor, one.positive, one.negative)}
            for one in triplets
        ]
        self._first_steps = [0]  # of each epoch so far
        self._epoch: tuple[int, list[list[int]]] = (-1, [])
        self.epoch(0)

    def epoch(self, number: int) -> list[list[int]]:
        """Return the batches of an epoch, as positions of the triplets."""
        if self._epoch[0] != number:
            order = np.random.default_rng([self.seed, number]).permutation(len(self._sentences))
            self._epoch = number, self._cut(deque(order.tolist()))
        return self._epoch[1]

    def batch(self, step: int) -> list[int]:
        """Return the batch of a step, counted from 0 over all epochs."""
        while self._first_steps[-1] <= step:
            batches = self.epoch(len(self._first_steps) - 1)
            self._first_steps.append(self._first_steps[-1] + len(batches))
        number = bisect_right(self._first_steps, step) - 1
        return self.epoch(number)[step - self._first_steps[number]]

    def _cut(self, waiting: deque[int]) -> list[list[int]]:
        batches = []
        while len(waiting) >= self.batch_size:
            batch, seen, postponed = [], set(), []
            while waiting and len(batch) < self.batch_size:
                position = waiting.popleft()
                if seen.isdisjoint(self._sentences[position]):
                    batch.append(position)
                    seen |= self._sentences[position]
                else:
                    postponed.append(position)
            waiting.extendleft(reversed(postponed))
            if len(batch) < self.batch_size:
                break
            batches.append(batch)
        if not batches:
            raise ValueError(
                f"{len(self._sentences)} triplets do not fill one batch of {self.batch_size} in "
                "which no sentence occurs twice; add some, or lower batch_size (at least 2)"
            )
        return batches


def check_triplets(triplets: Sequence[Triplet], config: FinetuneConfig) -> list[Triplet]:
    """Return them as `Triplet`s.

    Args:
        triplets: `Triplet`s, or three strings each.
        config: Its batch size is the least that there must be.

    Raises:
        ValueError: There are fewer, or one is no triplet (its number is named).
    """
    examples = []
    for number, triplet in enumerate(triplets):
        try:
            examples.append(triplet if isinstance(triplet, Triplet) else Triplet(*triplet))
        except (TypeError, ValueError) as error:
            raise ValueError(f"triplet {number}: {error}") from None
    if len(examples) < config.batch_size:
        raise ValueError(
            f"{len(examples)} triplets do not fill one batch of {config.batch_size}; add some, or "
            "lower batch_size (at least 2)"
        )
    return examples
