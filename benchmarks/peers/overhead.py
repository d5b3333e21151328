"""Part `overhead`: time over the floor, DeepFool in forward-backward pairs, peak memory, import time.

The floor of T steps is T x (one forward + one backward to the input, parameters frozen). What is timed is the user's
own model, its parameters asking for gradients; rounds are interleaved, so that a slow spell meets all libraries.
"""

from __future__ import annotations

import copy
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.overhead import allocated, floor, interleaved
from benchmarks.peers import networks
from benchmarks.peers.adapters import FIXED, MINIMAL, Attack, Job
from benchmarks.peers.adapters.row import name_of
from benchmarks.peers.cells import write
from benchmarks.peers.counting import Counting
from benchmarks.peers.environment import MODULES
from torch import Tensor, nn

EPS = 1e-4  # so small that no sample is ever finished
PLAIN = ("pgd", "pgd-ce", "apgd-ce", "best")


def subject(name: str, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    model = networks.load(name)
    x, y, _ = networks.samples(name, model, batch)
    return model, x, y


def overhead(
    attacks: Sequence[Attack],
    names: Sequence[str],
    root: Path,
    repeats: int = 5,
    steps: int = 40,
    batch: int = 128,
    orders: Sequence[float] = (2.0, math.inf),
) -> None:
    """Measure; orders: inf for the attacks of T steps, 2 for DeepFool, which takes some libraries many minutes."""
    for name in names:
        for p in orders:
            path = root / "overhead" / name / f"times_b{batch}_T{steps}_p{name_of(p)}.parquet"
            if not path.is_file():
                rows = _times(attacks, name, repeats, steps, batch, p)
                write(path, {"part": "overhead", "network": name, "batch": batch, "T": steps}, rows)
    path = root / "overhead" / "imports" / "imports.parquet"
    if not path.is_file():
        write(path, {"part": "overhead", "network": "imports"}, imports(repeats))


def _times(attacks: Sequence[Attack], name: str, repeats: int, steps: int, batch: int, order: float) -> dict[str, list]:
    model, x, y = subject(name, batch)
    frozen = copy.deepcopy(model).requires_grad_(False)
    rows: dict[str, list] = {key: [] for key in ("library", "attack", "measure", "value", "passes", "error")}

    def add(attack: Attack, measure: str, value: float, passes: float = math.nan, error: str = "") -> None:
        values = (attack.library, attack.name, measure, value, passes, error)
        for key, entry in zip(rows, values, strict=True):
            rows[key].append(entry)
        print(f"{name} {attack.key} {measure} {value:.3f} {error}", flush=True)

    plain = [a for a in attacks if a.kind == FIXED and a.name in PLAIN]
    deepfool = [a for a in attacks if a.kind == MINIMAL and a.name in ("deepfool", "nearest")]
    for chosen, p, eps, budget, measure in (
        (plain, math.inf, EPS, steps, "time over the floor"),
        (deepfool, 2.0, None, 1000, "forward-backward pairs"),
    ):
        if p != order:
            continue
        calls: dict[str, Callable[[], object]] = {"floor": partial(floor, frozen, x, y, steps)}
        backwards = {}
        for attack in chosen:
            # Each library gets a model of its own: some leave theirs changed.
            own = copy.deepcopy(model)
            counting = Counting(own)
            job = Job(counting, x, y, p, eps, budget)
            try:
                attack.call(job)
            except Exception as error:  # whatever a library raises is its result
                add(attack, measure, math.nan, error=f"{type(error).__name__}: {error}"[:200])
                continue
            backwards[attack.key] = counting.backwards / len(x)
            calls[attack.key] = partial(attack.call, Job(own, x, y, p, eps, budget))
        seconds = interleaved(calls, repeats)
        for attack in (a for a in chosen if a.key in calls):
            pairs = zip(seconds[attack.key], seconds["floor"], strict=True)
            passes = backwards[attack.key]
            # Over the floor of the steps that were taken, or in units of one forward and backward.
            scale = steps / passes if measure.startswith("time") else steps
            add(attack, measure, statistics.median(a / b for a, b in pairs) * scale, passes)
    if order != math.inf:
        return rows
    least = allocated(partial(floor, frozen, x, y, 5))
    for attack in plain:
        try:
            held = allocated(partial(attack.call, Job(copy.deepcopy(model), x, y, math.inf, EPS, 5)))
        except Exception as error:  # whatever a library raises is its result
            add(attack, "peak memory over the floor", math.nan, error=f"{type(error).__name__}: {error}"[:200])
            continue
        add(attack, "peak memory over the floor", held / least)
    return rows


IMPORT = """
import time
started = time.perf_counter()
import torch
after = time.perf_counter()
from benchmarks.peers.environment import prepare
prepare()
ready = time.perf_counter()
import {module}
print(after - started, time.perf_counter() - ready)
"""


def imports(repeats: int) -> dict[str, list]:
    """Time each import in processes of their own, after torch, one library after the other in each round."""
    taken: dict[str, list[float]] = {library: [] for library in MODULES}
    errors = dict.fromkeys(MODULES, "")
    for _ in range(repeats):
        for library, module in MODULES.items():
            done = subprocess.run(
                [sys.executable, "-c", IMPORT.format(module=module)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                errors[library] = done.stderr.strip().splitlines()[-1][:200]
            else:
                taken[library].append(float(done.stdout.split()[-1]))
    return {
        "library": list(taken),
        "attack": [""] * len(taken),
        "measure": ["import after torch, s"] * len(taken),
        "value": [statistics.median(values) if values else math.nan for values in taken.values()],
        "passes": [math.nan] * len(taken),
        "error": list(errors.values()),
    }
