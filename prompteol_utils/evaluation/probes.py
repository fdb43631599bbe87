"""Linear probes on frozen embeddings: SentEval's classifier, and scikit-learn's.

Both minimise mean cross-entropy + l2 / 2 · ‖W‖². `senteval` walks towards it with Adam and stops
early; `lbfgs` goes all the way, on features scaled by the training sentences of each fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

# SentEval's, as the paper runs it
BATCH = 64
EPOCHS_A_ROUND = 4
MAX_EPOCH = 200
TENACITY = 5
HELD_OUT = 0.05
# torch.optim.Adam's defaults
RATE = 1e-3
BETA1 = 0.9
BETA2 = 0.999
EPSILON = 1e-8
# regularisation strengths to choose from
GRID = {"senteval": (1e-5, 1e-4, 1e-3, 1e-2), "lbfgs": (1e-4, 1e-3, 1e-2, 1e-1)}


class MeanLogisticRegression(LogisticRegression):
    """scikit-learn's logistic regression with a strength that does not depend on the sample's size.

    scikit-learn sums the loss over sentences and weighs it by C, so l2 on their mean is
    C = 1 / (l2 n).

    Args:
        l2: The strength.
    """

    def __init__(self, l2: float = 1e-2):
        super().__init__(max_iter=1000)
        self.l2 = l2

    def fit(self, x: np.ndarray, y: np.ndarray) -> "MeanLogisticRegression":
        """Fit to features (n, d) and classes (n,)."""
        self.C = 1 / (self.l2 * len(x))
        return super().fit(x, y)


def lbfgs_probe(l2: float = 1e-2) -> Pipeline:
    """A scaler and scikit-learn's logistic regression, fitted on the same sentences.

    Args:
        l2: Regularisation strength.

    Source: the exact counterpart of SentEval's classifier, for comparison.
    """
    return make_pipeline(StandardScaler(), MeanLogisticRegression(l2))


@dataclass(frozen=True, eq=False)
class ProbeTask:
    """One training set, to be fitted for several strengths of regularisation.

    Args:
        train: int (n,), positions to learn from.
        dev: int (m,), positions that choose. None: nothing is to be chosen, and a twentieth of
            `train` is held back to stop the training.
        l2: G strengths.
    """

    train: np.ndarray
    dev: np.ndarray | None
    l2: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class LinearProbes:
    """Linear classifiers for P problems with G strengths each.

    Args:
        weight: float64 (P, G, d, classes).
        bias: float64 (P, G, classes).
        dev: float64 (P, G), accuracy on each problem's `dev`; NaN where it has none.
    """

    weight: np.ndarray
    bias: np.ndarray
    dev: np.ndarray

    def predict(self, x: np.ndarray, problem: int, strength: int = 0) -> np.ndarray:
        """Classes of features x (n, d): int64 (n,)."""
        logits = x.astype(np.float64) @ self.weight[problem, strength]
        return (logits + self.bias[problem, strength]).argmax(axis=1)


def fit_senteval(
    x: np.ndarray,
    y: np.ndarray,
    problems: Sequence[ProbeTask],
    *,
    classes: int,
    seed: int = 1111,
    show_progress_bar: bool | None = None,
) -> LinearProbes:
    """SentEval's logistic regression, all problems and strengths trained together.

    Each of the P x G classifiers sees exactly what it would see alone: the same first weights, the
    same batches of 64 in the same order, Adam with its l2 as `weight_decay`, a look at its dev
    sentences after every 4 epochs. It keeps the best weights, and stops at the sixth look that
    brings nothing new (SentEval never sets that count back) or past 200 epochs. Strengths of one
    problem share its batches, so one gather and one `bmm` serve them all.

    Args:
        x: float32 (n, d), not scaled.
        y: int (n,), from 0 up.
        problems: P of them, all with as many strengths.
        classes: How many classes there are.
        seed: Of the first weights and of the order of batches.
        show_progress_bar: None shows one for 100 classifiers or more.

    Returns:
        The classifiers; `dev` is the accuracy that each stopped with.

    Source: SentEval's senteval/tools/classifier.py (`MLP` with nhid 0, SimCSE's copy).
    """
    # SentEval seeds NumPy and torch anew for every classifier.
    orders = [np.random.RandomState(seed) for _ in problems]
    parts = [_hold_out(problem, order) for problem, order in zip(problems, orders, strict=True)]
    l2 = np.array([problem.l2 for problem in problems])
    group = _Group(x, y, parts, orders, l2, classes, seed)
    shape = l2.shape
    best = torch.full(shape, -1.0, dtype=torch.float64)
    kept = group.weight.clone()
    stop = torch.zeros(shape, dtype=torch.bool)
    idle = torch.zeros(shape, dtype=torch.int64)
    epochs = 0
    show = best.numel() >= 100 if show_progress_bar is None else show_progress_bar
    with tqdm(
        total=best.numel(), desc="fit", unit="classifier", disable=not show, leave=False
    ) as bar:
        while not stop.all() and epochs <= MAX_EPOCH:
            running = torch.nonzero(~stop.all(dim=1))[:, 0]
            group.train(running)
            epochs += EPOCHS_A_ROUND
            accuracy = group.accuracy(running).masked_fill(stop, -1.0)
            better = accuracy > best
            best = torch.where(better, accuracy, best)
            columns = better.repeat_interleave(classes, dim=1)[:, None, :]
            kept = torch.where(columns, group.weight, kept)
            stopped = ~better & ~stop & (idle >= TENACITY)
            idle += ~better & ~stop
            stop |= stopped
            bar.update(int(stopped.sum()))
    dev = best.numpy()
    dev[[problem.dev is None for problem in problems]] = np.nan
    weight = kept.double().numpy().reshape(shape[0], -1, shape[1], classes).swapaxes(1, 2)
    return LinearProbes(weight[:, :, :-1], weight[:, :, -1], dev)


def _hold_out(problem: ProbeTask, order: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    if problem.dev is not None:
        return np.asarray(problem.train), np.asarray(problem.dev)
    mixed = np.asarray(problem.train)[order.permutation(len(problem.train))]
    share = max(1, int(HELD_OUT * len(mixed)))
    return mixed[share:], mixed[:share]


class _Group:
    """P problems and the state of their Adam.

    The bias is the weight of a last feature that is always 1. Strengths and classes lie side by
    side: weight is (P, d + 1, G * classes).
    """

    def __init__(self, x, y, parts, orders, l2, classes, seed):
        x = torch.tensor(np.asarray(x, np.float32))
        self.x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        self.y = torch.tensor(np.asarray(y, np.int64))
        self.parts = parts
        self.orders = orders
        self.classes = classes
        l2 = torch.tensor(l2, dtype=torch.float32)
        self.l2 = l2.repeat_interleave(classes, dim=1)[:, None, :]
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are left alone
            torch.manual_seed(seed)
            first = torch.nn.Linear(x.shape[1], classes)
        one = torch.cat([first.weight.detach(), first.bias.detach()[:, None]], dim=1).T
        self.weight = one.repeat(len(parts), 1, l2.shape[1])
        self.mean = torch.zeros_like(self.weight)
        self.square = torch.zeros_like(self.weight)
        self.steps = torch.zeros(len(parts), 1, 1)

    def train(self, running: torch.Tensor) -> None:
        """Some epochs over the training sentences of the problems that still run (int (k,))."""
        trained = (self.weight, self.mean, self.square, self.steps)
        state = [tensor[running] for tensor in (*trained, self.l2)]
        trains = [self.parts[p][0] for p in running.tolist()]
        width = -(-max(map(len, trains)) // BATCH) * BATCH
        for _ in range(EPOCHS_A_ROUND):
            table = np.full((len(trains), width), -1)
            for line, train, p in zip(table, trains, running.tolist(), strict=True):
                line[: len(train)] = train[self.orders[p].permutation(len(train))]
            for batch in torch.from_numpy(table).split(BATCH, dim=1):
                moves = batch[:, 0] >= 0  # a smaller set may have no last batch
                part = [tensor[moves] for tensor in state]
                self._step(batch[moves], *part)
                for tensor, new in zip(state, part, strict=True):
                    tensor[moves] = new
        for tensor, new in zip(trained, state, strict=False):
            tensor[running] = new

    def _step(self, batch, weight, mean, square, steps, l2):
        """One step of Adam, in place; batch is int (k, 64), filled up with -1."""
        x = self.x[batch.clamp(min=0)]
        y = self.y[batch.clamp(min=0)]
        real = batch >= 0
        # the slope of mean cross-entropy: (p - one-hot) / sentences
        slope = torch.bmm(x, weight).unflatten(2, (-1, self.classes)).softmax(dim=-1)
        slope -= torch.nn.functional.one_hot(y, self.classes)[:, :, None, :]
        slope *= (real / real.sum(dim=1, keepdim=True))[:, :, None, None]
        gradient = torch.bmm(x.transpose(1, 2), slope.flatten(2)).addcmul_(l2, weight)
        steps += 1
        mean.lerp_(gradient, 1 - BETA1)
        square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        down = square.sqrt().div_((1 - BETA2**steps).sqrt()).add_(EPSILON)
        weight -= RATE / (1 - BETA1**steps) * mean / down

    def accuracy(self, running: torch.Tensor) -> torch.Tensor:
        """float64 (P, G): the share of right dev sentences; -1 for problems that do not run."""
        shape = (len(self.parts), self.weight.shape[2] // self.classes)
        found = torch.full(shape, -1.0, dtype=torch.float64)
        for p in running.tolist():
            dev = torch.from_numpy(self.parts[p][1])
            guess = (self.x[dev] @ self.weight[p]).unflatten(1, (-1, self.classes)).argmax(dim=-1)
            found[p] = (guess == self.y[dev][:, None]).double().mean(dim=0)
        return found
