"""A linear classifier on frozen vectors, for many folds and strengths of regularisation at once: SentEval's, and scikit-learn's.

Both minimise the same thing, mean cross-entropy + l2 / 2 · ‖W‖². `senteval` walks towards it with Adam and stops early, `lbfgs` goes
all the way, on features that it scales by the training rows of each fold.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

BATCH, EPOCHS_A_ROUND, MAX_EPOCH, TENACITY, HELD_OUT = (
    64,
    4,
    200,
    5,
    0.05,
)  # SentEval's, as the paper runs it
RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8  # torch.optim.Adam's defaults


@dataclass(frozen=True, eq=False)
class ProbeTask:
    """One training set, to be fitted for several strengths of regularisation.

    Args:
        train: int (n,), rows to learn from.
        dev: int (m,), rows that choose; None: nothing is to be chosen (then SentEval's way holds a twentieth of `train` back to stop).
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
        dev: float64 (P, G), accuracy on each problem's rows that choose; NaN where it has none.
    """

    weight: np.ndarray
    bias: np.ndarray
    dev: np.ndarray

    def predict(self, x: np.ndarray, problem: int, strength: int = 0) -> np.ndarray:
        """Classes of the rows of x (n, d): int64 (n,)."""
        return (
            x.astype(np.float64) @ self.weight[problem, strength] + self.bias[problem, strength]
        ).argmax(axis=1)


# --- SentEval's classifier


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

    Each of the P x G classifiers sees exactly what it would see alone: the same first weights, the same batches of 64 in the same order,
    Adam with its l2 as `weight_decay`, a look at its dev rows after every 4 epochs. It keeps the best weights, and stops at the sixth
    look that brings nothing new (SentEval never sets that count back) or past 200 epochs. Strengths of one problem share its batches,
    so one gather and one `bmm` serve them all.

    Args:
        x: float32 (n, d), not scaled.
        y: int (n,), from 0 up.
        problems: P of them, all with as many strengths.
        classes: How many classes there are.
        seed: Of the first weights and of the order of batches.
        show_progress_bar: None shows one for 100 classifiers or more.

    Returns:
        The classifiers; `dev` is the accuracy that each stopped with.

    Source: SentEval's senteval/tools/classifier.py (`MLP` with nhid 0, SimCSE's copy). Built in notebook 05.
    """
    orders = [
        np.random.RandomState(seed) for _ in problems
    ]  # SentEval seeds NumPy and torch anew for every classifier
    rows = [_hold_out(problem, order) for problem, order in zip(problems, orders, strict=True)]
    group = _Group(
        x, y, rows, orders, np.array([problem.l2 for problem in problems]), classes, seed
    )
    shape = (len(problems), len(problems[0].l2))
    best, kept = torch.full(shape, -1.0, dtype=torch.float64), group.weight.clone()
    stop, idle, epochs = (
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape, dtype=torch.int64),
        0,
    )
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
            kept = torch.where(
                better.repeat_interleave(classes, dim=1)[:, None, :], group.weight, kept
            )
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

    The bias is the weight of a last feature that is always 1. Strengths and classes lie side by side: weight is (P, d + 1, G * classes).
    """

    def __init__(self, x, y, rows, orders, l2, classes, seed):
        x = torch.tensor(np.asarray(x, np.float32))
        self.x, self.y = (
            torch.cat([x, torch.ones(len(x), 1)], dim=1),
            torch.tensor(np.asarray(y, np.int64)),
        )
        self.rows, self.orders, self.classes = rows, orders, classes
        self.l2 = torch.tensor(l2, dtype=torch.float32).repeat_interleave(classes, dim=1)[
            :, None, :
        ]
        torch.manual_seed(seed)
        first = torch.nn.Linear(x.shape[1], classes)
        one = torch.cat([first.weight.detach(), first.bias.detach()[:, None]], dim=1).T
        self.weight = one.repeat(len(rows), 1, l2.shape[1])
        self.mean, self.square = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.steps = torch.zeros(len(rows), 1, 1)

    def train(self, running: torch.Tensor) -> None:
        """Some epochs over the training rows of the problems that still run (int (k,)), 64 rows at a time."""
        state = [
            tensor[running] for tensor in (self.weight, self.mean, self.square, self.steps, self.l2)
        ]
        trains = [self.rows[p][0] for p in running.tolist()]
        width = -(-max(map(len, trains)) // BATCH) * BATCH
        for _ in range(EPOCHS_A_ROUND):
            table = np.full((len(trains), width), -1)
            for line, train, p in zip(table, trains, running.tolist(), strict=True):
                line[: len(train)] = train[self.orders[p].permutation(len(train))]
            for batch in torch.from_numpy(table).split(BATCH, dim=1):
                moves = (
                    batch[:, 0] >= 0
                )  # one with fewer rows may have no last batch: it stands still
                if moves.all():
                    self._step(batch, *state)
                else:
                    part = [tensor[moves] for tensor in state]
                    self._step(batch[moves], *part)
                    for tensor, new in zip(state, part, strict=True):
                        tensor[moves] = new
        for tensor, new in zip(
            (self.weight, self.mean, self.square, self.steps), state, strict=False
        ):
            tensor[running] = new

    def _step(self, batch, weight, mean, square, steps, l2):
        """One step of Adam, in place; batch is int (k, 64), filled up with -1."""
        x, y, real = self.x[batch.clamp(min=0)], self.y[batch.clamp(min=0)], batch >= 0
        slope = (
            torch.bmm(x, weight).unflatten(2, (-1, self.classes)).softmax(dim=-1)
        )  # of mean cross-entropy: (p - one-hot) / rows
        slope -= torch.nn.functional.one_hot(y, self.classes)[:, :, None, :]
        slope *= (real / real.sum(dim=1, keepdim=True))[:, :, None, None]
        gradient = torch.bmm(x.transpose(1, 2), slope.flatten(2)).addcmul_(
            l2, weight
        )  # weight_decay, as Adam has it
        steps += 1
        mean.lerp_(gradient, 1 - BETA1)
        square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        down = square.sqrt().div_((1 - BETA2**steps).sqrt()).add_(EPSILON)
        weight -= RATE / (1 - BETA1**steps) * mean / down

    def accuracy(self, running: torch.Tensor) -> torch.Tensor:
        """float64 (P, G): the share of right dev rows; -1 for problems that do not run."""
        found = torch.full(
            (len(self.rows), self.weight.shape[2] // self.classes), -1.0, dtype=torch.float64
        )
        for p in running.tolist():
            dev = torch.from_numpy(self.rows[p][1])
            guess = (self.x[dev] @ self.weight[p]).unflatten(1, (-1, self.classes)).argmax(dim=-1)
            found[p] = (guess == self.y[dev][:, None]).double().mean(dim=0)
        return found


# --- scikit-learn's


def fit_lbfgs(
    x: np.ndarray,
    y: np.ndarray,
    problems: Sequence[ProbeTask],
    *,
    classes: int,
    seed: int = 1111,
    show_progress_bar: bool | None = None,
) -> LinearProbes:
    """scikit-learn's logistic regression behind a scaler that sees the problem's training rows only; problems over all cores.

    Args:
        x: float32 (n, d).
        y: int (n,), from 0 up.
        problems: P of them, all with as many strengths; strength l2 on n rows is scikit-learn's C = 1 / (l2 n).
        classes: How many classes there are.
        seed: Has no effect: the solution is unique.
        show_progress_bar: As for `fit_senteval`.

    Returns:
        The classifiers, the scaling folded into their weights.

    Source: the exact counterpart of SentEval's classifier, for comparison. Built in notebook 05.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y, strengths = np.ascontiguousarray(x, np.float32), np.asarray(y), len(problems[0].l2)
    weight = np.zeros((len(problems), strengths, x.shape[1], classes))
    bias, dev = (
        np.full((len(problems), strengths, classes), -np.inf),
        np.full((len(problems), strengths), np.nan),
    )

    def solve(p: int) -> None:
        problem = problems[p]
        scaler = StandardScaler().fit(x[problem.train])
        scaled = scaler.transform(x[problem.train])
        for g, l2 in enumerate(problem.l2):
            model = LogisticRegression(C=1 / (l2 * len(problem.train)), max_iter=1000).fit(
                scaled, y[problem.train]
            )
            coefficients = (
                np.stack([0 * model.coef_[0], model.coef_[0]])
                if len(model.classes_) == 2
                else model.coef_
            )
            intercepts = (
                np.array([0, model.intercept_[0]]) if len(model.classes_) == 2 else model.intercept_
            )
            folded = coefficients / scaler.scale_
            weight[p, g][:, model.classes_] = folded.T
            bias[p, g][model.classes_] = intercepts - folded @ scaler.mean_
            if problem.dev is not None:
                right = (x[problem.dev] @ weight[p, g] + bias[p, g]).argmax(axis=1) == y[
                    problem.dev
                ]
                dev[p, g] = right.mean()

    show = len(problems) * strengths >= 100 if show_progress_bar is None else show_progress_bar
    # Threads are enough (the work is BLAS, which leaves Python's lock alone), and each keeps to one core.
    with threadpool_limits(1), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(
            tqdm(
                pool.map(solve, range(len(problems))),
                total=len(problems),
                desc="fit",
                unit="fold",
                disable=not show,
                leave=False,
            )
        )
    return LinearProbes(weight, bias, dev)


GRID = {
    "senteval": (1e-5, 1e-4, 1e-3, 1e-2),
    "lbfgs": (1e-4, 1e-3, 1e-2, 1e-1),
}  # strengths to choose from
SOLVERS: dict[str, Callable[..., LinearProbes]] = {"senteval": fit_senteval, "lbfgs": fit_lbfgs}
