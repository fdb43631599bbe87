"""A training step of this checkout and of an older one, in turn, alone and beside busy processes.

    git worktree add ../old COMMIT
    python benchmarks/train_steps.py ../old            # alone
    python benchmarks/train_steps.py ../old --busy 2   # beside two processes that never wait

Two processes hold a run each and take one step in turn, so that a slow minute of the machine meets
both. The first step of each is not counted. CPU seconds tell work from waiting, where the machine
has other things to do.
"""

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve()


def main() -> None:
    """Start both runs, step them in turn, print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", nargs="?", help="another checkout of this project")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--busy", type=int, default=0, help="processes that keep a core busy")
    parser.add_argument("--hold", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold:
        return hold(options)
    if options.other is None:
        parser.error("name the folder of another checkout")
    folders = {"this": HERE.parents[1], "other": Path(options.other).resolve()}
    rest = [argument for argument in sys.argv[1:] if argument != options.other]
    found: dict[str, list] = {name: [] for name in folders}
    with ExitStack() as running:
        runs = {name: start(running, folder, rest) for name, folder in folders.items()}
        for run in runs.values():
            run.stdout.readline()  # loaded, and at its first step
        for _ in range(options.busy):
            busy = running.enter_context(
                subprocess.Popen([sys.executable, "-c", "while True: pass"])
            )
            running.callback(busy.kill)
        for step in range(options.steps):
            for name, run in runs.items():
                print("go", file=run.stdin, flush=True)
                wall, cpu = map(float, run.stdout.readline().split())
                run.stdout.readline()  # at its next step
                print(f"step {step} {name:5}: {wall:6.2f} s, {cpu:6.2f} CPU s", flush=True)
                found[name] += [(wall, cpu)] if step else []
    print(f"load {os.getloadavg()[0]:.1f} with {options.busy} busy processes")
    for place, what in enumerate(("wall", "CPU")):
        ours, other = (
            statistics.median(pair[place] for pair in found[name]) for name in ("this", "other")
        )
        print(f"{what}: this {ours:.2f} s, other {other:.2f} s: {other / ours:.2f} times as fast")


def start(running: ExitStack, folder: Path, arguments: list[str]) -> subprocess.Popen:
    """Start a process that trains with the package of a checkout."""
    run = subprocess.Popen(
        [sys.executable, str(HERE), "--hold", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    running.enter_context(run)
    running.callback(run.kill)
    return run


def hold(options: argparse.Namespace) -> None:
    """Train; wait for a line before each step, answer with its wall and CPU seconds."""

    def module(*names: str):
        for name in names:  # the second is where it was in the flat package
            try:
                return importlib.import_module(f"prompteol_utils.{name}")
            except ModuleNotFoundError:
                continue
        raise ModuleNotFoundError(f"none of {names}")

    timers = module("utils.devices", "hardware")

    class Timer(timers.Timer):
        def __enter__(self):
            print("ready", flush=True)
            sys.stdin.readline()
            self._wall, self._cpu = time.perf_counter(), time.process_time()
            return super().__enter__()

        def __exit__(self, *exc):
            super().__exit__(*exc)
            print(time.perf_counter() - self._wall, time.process_time() - self._cpu, flush=True)

    timers.Timer = Timer
    training, loading = module("finetuning"), module("models")
    encoder = module("encoder").Encoder(
        loading.load_model(options.model, quantization="nf4", dtype=options.dtype)
    )
    config = training.FinetuneConfig(
        batch_size=options.batch, rank=options.rank, max_steps=options.steps + 1, warmup_steps=1
    )
    triplets = module("data.nli", "nli").load_nli("mini")
    with tempfile.TemporaryDirectory() as out:
        training.finetune(encoder, triplets, config, f"{out}/run")


if __name__ == "__main__":
    main()
