"""Part `exact`: how near each attack comes to the optimum of an affine problem, which CVXPY solves.

Two classes decide, f_1 - f_0 = <g, x> + c; two more are there, far below, since some losses need a third score. 60 % of
the entries of each input lie on a face of the box, so that an attack which clips afterwards loses budget. A fixed
attack cannot reach the other class within its budget, so that it never stops; its objective is <g, perturbation>.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from benchmarks.peers.adapters import FIXED, MINIMAL, Attack, Job
from benchmarks.peers.cells import Cell, attacked, write
from benchmarks.peers.judging import judge
from torch import Tensor, nn

ORDERS = (1.0, 1.5, 2.0, 3.0, math.inf)
SHAPE = (1, 6, 6)
# These hand back the input itself where no class changes, as none does here; `apgd-best` stands for them.
SUCCESS_ONLY = ("apgd-ce", "apgd-dlr", "apgd-t", "pgd-ce", "pgd-dl")
EPS = {1.0: 4.0, 1.5: 2.0, 2.0: 1.5, 3.0: 0.8, math.inf: 0.4}
CLASSES = 4
LOW = -20.0
REACH = 4.0  # how far apart the two scores may be: farther, the cross-entropy's gradient would be rounded away


@dataclass(frozen=True, eq=False)
class Problem:
    """model: flattened affine scores. gap: how far <g, perturbation> must come. x: (B, *SHAPE), all of class 0."""

    model: nn.Module
    g: np.ndarray
    gap: np.ndarray
    x: Tensor
    y: Tensor


def problem(kind: str, seed: int = 0, batch: int = 30) -> Problem:
    """Draw a problem with unequal weights, so that an attack in the wrong norm is found out."""
    rng = np.random.default_rng(seed)
    entries = math.prod(SHAPE)
    g = rng.normal(size=entries) * np.geomspace(0.3, 3.0, entries)[rng.permutation(entries)]
    x = rng.uniform(0.1, 0.9, size=(batch, entries))
    faces = rng.random(size=x.shape).argsort(1) < round(0.6 * entries)
    x[faces] = rng.integers(0, 2, size=int(faces.sum()))
    x = x.astype(np.float32)
    values = x.astype(np.float64) @ g
    # Out of reach for a fixed attack; for a minimal one, 30 % of the way to the best corner of the box.
    best = np.where(g > 0, (1 - x) * g, -x * g).sum(1)
    offset = float(values.max() + best.max() + 1.0) if kind == FIXED else float(np.max(values + 0.3 * best))
    scale = REACH / float((offset - values).max())
    g, values, best, offset = scale * g, scale * values, scale * best, scale * offset
    scores = nn.Linear(entries, CLASSES)
    with torch.no_grad():
        scores.weight.zero_()
        scores.weight[1] = torch.from_numpy(g.astype(np.float32))
        scores.bias.copy_(torch.tensor([0.0, -offset, LOW, LOW]))
    keep = (
        (offset - values > 0.05 * scale) & (offset - values < 0.9 * best)
        if kind != FIXED
        else np.ones(batch, dtype=bool)
    )
    exact = scores.weight[1].detach().double().numpy()
    gap = float(-scores.bias[1].detach()) - x[keep].astype(np.float64) @ exact
    model = nn.Sequential(nn.Flatten(), scores).eval()
    return Problem(model, exact, gap, torch.from_numpy(x[keep]).view(-1, *SHAPE), torch.zeros(int(keep.sum())).long())


def optimum(given: Problem, kind: str, p: float) -> np.ndarray:
    """Solve each sample's problem with CVXPY: the largest <g, t> in the ball, or the least norm that closes the gap."""
    import cvxpy as cp

    found = []
    for x, gap in zip(given.x.flatten(1).double().numpy(), given.gap, strict=True):
        eta = cp.Variable(len(x))
        box = [eta >= -x, eta <= 1 - x]
        size = cp.norm(eta, "inf") if math.isinf(p) else cp.norm(eta, p)
        if kind == FIXED:
            task = cp.Problem(cp.Maximize(given.g @ eta), [*box, size <= EPS[p]])
        else:
            task = cp.Problem(cp.Minimize(size), [*box, given.g @ eta >= gap])
        found.append(float(task.solve(solver=cp.CLARABEL)))
    return np.array(found)


def exact(attacks: Sequence[Attack], root: Path, budgets: Sequence[int] = (1, 100), seed: int = 0) -> None:
    """Run every attack on the affine problems, and keep objective over optimum for each sample."""
    for kind in (FIXED, MINIMAL):
        given = problem(kind, seed)
        for p in ORDERS:
            best = optimum(given, kind, p)
            for budget in budgets if kind == FIXED else (200, 2000):
                for attack in (a for a in attacks if a.kind == kind and a.takes(p, budget)):
                    if not _success_only(attack):
                        _cell(attack, given, kind, p, budget, best, root)


def _success_only(attack: Attack) -> bool:
    return attack.name in SUCCESS_ONLY and attack.library != "ART"


def _cell(attack: Attack, given: Problem, kind: str, p: float, budget: int, best: np.ndarray, root: Path) -> None:
    eps = EPS[p] if kind == FIXED else None
    cell = Cell("exact", f"affine-{kind}", attack.library, attack.name, p, eps, budget, len(given.x))
    path = cell.path(root)
    if path.is_file():
        return
    constant = {
        "network": cell.network,
        "library": cell.library,
        "attack": cell.attack,
        "p": p,
        "eps": math.nan if eps is None else eps,
        "budget": budget,
        "error": "",
    }
    try:
        job = Job(given.model, given.x, given.y, p, eps, budget, 0, CLASSES)
        perturbed, forwards, backwards, _ = attacked(attack, given.model, given.x, given.y, job, 1000)
        verdict = judge(given.model, given.x, given.y, perturbed, p, eps)
    except Exception as error:  # whatever a library raises is its result
        write(path, constant | {"error": f"{type(error).__name__}: {error}"[:300]}, {"ratio": [math.nan]})
        return
    if kind == FIXED:
        eta = (perturbed.double() - given.x.double()).flatten(1).numpy()
        # What lies outside the ball or the box attains nothing.
        ratio = np.where(verdict.valid.numpy(), eta @ given.g / best, 0.0)
    else:
        ratio = np.where(verdict.success.numpy(), best / verdict.norm.numpy(), 0.0)
    passes = {"forwards": forwards / len(given.x), "backwards": backwards / len(given.x)}
    rows = {"ratio": ratio.tolist(), "success": verdict.success.tolist(), "valid": verdict.valid.tolist()}
    write(path, constant | passes, rows)
