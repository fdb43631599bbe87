"""Linear maps after the pass: which directions of an embedding are kept, and how long they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from prompteol_utils.models.loading import LoadedModel


class LinearMap(Protocol):
    """From float32 (layers, n, d) to (layers, n, k)."""

    def __call__(self, loaded: LoadedModel, states: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class EmbedFilter:
    """Keep the middle singular directions of the output matrix.

    Its first ones carry the frequent words that every state predicts a little, its last ones next
    to nothing.

    Args:
        keep: Share of the directions; as many are cut at either end.

    Source: arXiv 2606.07502.
    """

    keep: float = 0.5

    def __call__(self, loaded: LoadedModel, states: np.ndarray) -> np.ndarray:
        """float32 (layers, n, k)."""
        return states @ self.directions(loaded).T

    def directions(self, loaded: LoadedModel) -> np.ndarray:
        """float32 (k, d), orthonormal rows.

        Raises:
            ValueError: The model has no output matrix.
        """
        head = loaded.model.get_output_embeddings()
        if head is None:
            raise ValueError(
                f"EmbedFilter cuts directions of the output matrix, and {loaded.name} has none; "
                "use a causal language model such as smollm2-135m-instruct"
            )
        weight = head.weight.detach().to(torch.float64)
        # Right singular vectors of a tall matrix, without its left ones; the largest come last.
        vectors = torch.linalg.eigh(weight.T @ weight).eigenvectors.flip(1).T
        size = round(self.keep * len(vectors))
        start = (len(vectors) - size) // 2
        return vectors[start : start + size].float().cpu().numpy()


@dataclass(frozen=True, eq=False)
class Whitening:
    """Centre the embeddings and give all kept directions the same variance.

    Args:
        mean: float32 (layers, d).
        maps: float32 (layers, d, k).
    """

    mean: np.ndarray
    maps: np.ndarray

    @classmethod
    def fit(cls, states: np.ndarray, size: int = 256) -> "Whitening":
        """Fit it to sentences that need no grade.

        Args:
            states: float32 (layers, n, d), of training sentences.
            size: Directions to keep, those of the largest variance.

        Raises:
            ValueError: Fewer sentences than directions.
        """
        if min(states.shape[1:]) <= size:
            raise ValueError(
                f"{states.shape[1]} sentences of {states.shape[2]} numbers cannot be whitened to "
                f"{size} directions; take more sentences or fewer directions"
            )
        mean = states.mean(axis=1)
        maps = [_whiten(layer - center, size) for layer, center in zip(states, mean, strict=True)]
        return cls(mean, np.stack(maps))

    def __call__(self, loaded: LoadedModel, states: np.ndarray) -> np.ndarray:
        """float32 (layers, n, k)."""
        return np.matmul(states - self.mean[:, None], self.maps)


def _whiten(centred: np.ndarray, size: int) -> np.ndarray:
    """float32 (d, size): the largest directions, each divided by its standard deviation."""
    centred = centred.astype(np.float64)
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    variances, vectors = variances[::-1][:size], vectors[:, ::-1][:, :size]
    # The layer of the embeddings sees the same last token each time: no variance at all.
    floor = max(variances[0] * 1e-9, 1e-12)
    return (vectors / np.sqrt(np.maximum(variances, floor))).astype(np.float32)


def mean_states(states: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of several views' states (layers, n, d)."""
    return np.mean(np.stack(states), axis=0) if len(states) > 1 else states[0]
