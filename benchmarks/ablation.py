"""What each part of `best` and `nearest` buys: the recipe whole, and with one part changed, at the same passes.

Run on the first test images that the network classifies correctly, inside [0, 1]. For `best` the fooling ratio within
eps and the paired 95 % interval of its difference from the whole recipe; for `nearest` the mean norm and the mean
difference, over the images on which both succeed.

    EPSBALL_DATA=... python -m benchmarks.ablation [--networks mnist-robust,mnist-lenet5] [--p 1,2,inf] [--samples 256]
        [--recipes best,nearest]
"""

from __future__ import annotations

import argparse
import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from benchmarks.peers import networks
from torch import Tensor

import epsball as eb
from epsball.metrics.intervals import paired_difference
from epsball.objectives import Ranked
from epsball.recipes.search import _spend

ALONE = "moves without blocks of other ends"
EPS = {
    ("mnist-fcnn", 1.0): 4.0,
    ("mnist-fcnn", 2.0): 1.0,
    ("mnist-fcnn", math.inf): 0.05,
    ("mnist-lenet5", 1.0): 8.0,
    ("mnist-robust", 1.0): 6.0,
    ("cifar10-resnet", 1.0): 3.0,
    ("cifar10-resnet", 2.0): 0.25,
    ("cifar10-resnet", math.inf): 2 / 255,
    ("cifar10-nin", 1.0): 3.0,
    ("cifar10-nin", 2.0): 0.25,
    ("cifar10-nin", math.inf): 2 / 255,
    ("mnist-lenet5", 2.0): 1.5,
    ("mnist-lenet5", math.inf): 0.1,
    ("mnist-robust", 2.0): 2.0,
    ("mnist-robust", math.inf): 0.3,
}


def variants_of_best(p: float, eps: float, passes: int) -> dict[str, eb.Attack]:
    whole = eb.recipe("best", p=p, eps=eps, bounds=(0.0, 1.0), passes=passes)
    turns = whole.schedule.turn_after is not None
    plan = straight(whole.schedule) if turns else whole.schedule
    steps = replace(whole, schedule=_spend(passes, sparse=p == 1.0))
    last = 2.5 / plan.steps  # the constant step of projected gradient attacks
    left = passes - plan.block_moves // 2
    every = replace(plan, step_size=last, falls_from=2.0, restart_steps=plan.steps, restarts=max(1, left // plan.steps))
    searches = plan.widening == "found"
    inside = replace(plan, widening=None, step_ball=plan.restart_step_ball, bent_step_ball=None) if searches else plan
    random = replace(inside, random_start=True, restart_corners=False, restart_momentum=0.0)
    parts = of_search(whole, inside) if searches else of_none(replace(whole, schedule=plan))
    return {
        "whole": whole,
        **(of_many_passes(whole, passes) if plan.block_moves else {}),
        **own_steps(whole),
        **parts,
        **(of_turning(whole) if turns else {}),
        "one attempt, no classes ranked": replace(
            steps, objective=ranked(9), schedule=replace(steps.schedule, steps=passes - 1, restarts=1)
        ),
        "random restarts, no classes ranked": replace(whole, objective=eb.CrossEntropy(), schedule=random),
        "constant steps 2.5 eps / T": replace(whole, schedule=every),
        "pgd, cross-entropy": eb.recipe("pgd", p=p, eps=eps, bounds=(0.0, 1.0), steps=passes),
    }


def of_search(whole: eb.Attack, inside: eb.Schedule) -> dict[str, eb.Attack]:
    falling = replace(inside, widening=(6.0, 0.8))
    return {
        "no search first": replace(whole, objective=ranked(9), schedule=inside),
        "a ball that falls by itself first": replace(whole, objective=ranked(9), schedule=falling),
    }


def of_none(whole: eb.Attack) -> dict[str, eb.Attack]:
    margin = Ranked(eb.Margin("runner-up"), whole.objective.classes)
    found = {"first attempt on the margin": replace(whole, objective=margin)}
    if whole.schedule.widening is None:  # beyond the set there is no last point to return
        found["last point instead of the best"] = replace(whole, schedule=replace(whole.schedule, keep="last"))
    return found


def straight(plan: eb.Schedule) -> eb.Schedule:
    return replace(plan, turn_after=None, restarts=1, restart_steps=None)


def of_turning(whole: eb.Attack) -> dict[str, eb.Attack]:
    return {
        "no turning to other classes": replace(whole, schedule=straight(whole.schedule)),
        "steps from two balls": replace(whole, schedule=replace(whole.schedule, falls_from=2.0)),
    }


def own_steps(whole: eb.Attack) -> dict[str, eb.Attack]:
    plan = whole.schedule
    own = replace(plan, step_ball=None, restart_step_ball=None, bent_step_ball=None)
    found = {"steps over the ball itself": replace(whole, schedule=own)} if plan.step_ball else {}
    if plan.bent_step_ball:
        found["the same ball for all"] = replace(whole, schedule=replace(plan, bent_step_ball=None))
    return found


def of_many_passes(whole: eb.Attack, passes: int) -> dict[str, eb.Attack]:
    plan, half = whole.schedule, passes - passes // 2
    assert plan.restart_steps is not None
    twice = replace(plan, block_moves=0, restarts=1 + (passes - plan.steps - 11) // (plan.restart_steps + 1))
    return {
        "gradient steps alone, from x": replace(whole, objective=ranked(9), schedule=_spend(passes)),
        "gradient steps alone, from corners": replace(whole, schedule=twice),
        "few long attempts from x, then moves": replace(
            whole, objective=ranked(9), schedule=replace(_spend(half), block_moves=plan.block_moves)
        ),
        "attempts from x, then from random points": replace(whole, schedule=replace(plan, restart_corners=False)),
        "no momentum": replace(whole, schedule=replace(plan, restart_momentum=0.0)),
        ALONE: whole,
        "all nine classes": replace(whole, objective=ranked(9)),
    }


def ranked(classes: int) -> Ranked:
    return Ranked(eb.CrossEntropy(), classes)


def variants_of_nearest(p: float, passes: int) -> dict[str, eb.Attack]:
    whole = eb.recipe("nearest", p=p, bounds=(0.0, 1.0), passes=passes)
    plan, ball = whole.schedule, whole.formulation
    assert isinstance(ball, eb.ShrinkingBall)
    along = plan.boundary_steps + 1 if plan.boundary_steps else 0
    return {
        "whole": whole,
        "one attempt on the runner-up": replace(
            whole,
            objective=Ranked(eb.Margin("runner-up"), 9, early=False),
            schedule=replace(plan, steps=passes - 2 - along, restarts=1, continue_step_ball=None, restart_near=None),
        ),
        "classes not ranked at x": replace(
            whole,
            objective=Ranked(eb.Margin("runner-up"), 9, early=False),
            schedule=replace(plan, continue_step_ball=None, restart_near=None),
        ),
        **without_narrowing(whole),
        **(without_boundary(whole) if along else {}),
        **without_going_on(whole),
        "no polish": replace(whole, formulation=replace(ball, polish=0)),
        "no haste": replace(whole, formulation=replace(ball, haste=0)),
        **own_steps(whole),
        "deepfool": eb.recipe("deepfool", p=p, bounds=(0.0, 1.0)),
    }


def without_going_on(whole: eb.Attack) -> dict[str, eb.Attack]:
    """Where the linear model has misled, the passes go to further classes too."""
    plan = whole.schedule
    return (
        {"class after class everywhere": replace(whole, schedule=replace(plan, continue_step_ball=None))}
        if plan.continue_step_ball
        else {}
    )


def without_narrowing(whole: eb.Attack) -> dict[str, eb.Attack]:
    """Far classes have attempts too, the one of the first attempt again, and the radius keeps its pace."""
    plan = whole.schedule
    everyone = {"all classes, at the first pace": replace(whole, schedule=replace(plan, restart_near=None))}
    return everyone if plan.restart_near else {}


def without_boundary(whole: eb.Attack) -> dict[str, eb.Attack]:
    """The passes along the boundary go to the attempts."""
    plan = whole.schedule
    spare = plan.boundary_steps + 1
    if plan.restart_steps is None:
        more = replace(plan, boundary_steps=0, steps=plan.steps + spare)
    else:
        more = replace(plan, boundary_steps=0, restart_steps=plan.restart_steps + spare // (plan.restarts - 1))
    return {"no steps along the boundary": replace(whole, schedule=more)}


def measure(attack: eb.Attack, model: torch.nn.Module, x: Tensor, y: Tensor, label: str) -> eb.AttackResult:
    with patch("epsball.block_moves._EXCHANGED", 1e-9) if label == ALONE else nullcontext():
        return attack(model, x, y, seed=0, sample_id=torch.arange(len(x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="mnist-robust,mnist-lenet5")
    parser.add_argument("--p", default="1,2,inf")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--passes", type=int, default=100)
    parser.add_argument("--recipes", default="best,nearest")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    best, nearest = (recipe in arguments.recipes.split(",") for recipe in ("best", "nearest"))
    rows: list[dict[str, object]] = []
    for name in arguments.networks.split(","):
        model = networks.load(name)
        x, y, _ = networks.samples(name, model, arguments.samples)
        for p in map(float, arguments.p.split(",")):
            whole: eb.AttackResult | None = None
            for label, attack in (variants_of_best(p, EPS[name, p], arguments.passes) if best else {}).items():
                result = measure(attack, model, x, y, label)
                whole = whole or result
                difference = paired_difference(result.success.tolist(), whole.success.tolist())
                rows.append(
                    row("best", name, p, label, result, 100 * float(result.success.double().mean()), difference, 100)
                )
            whole = None
            for label, attack in (variants_of_nearest(p, arguments.passes) if nearest else {}).items():
                result = measure(attack, model, x, y, label)
                whole = whole or result
                both = result.success & whole.success
                off = (result.norm - whole.norm)[both].double()
                spread = 1.96 * float(off.std()) / math.sqrt(len(off)) if len(off) > 1 else math.nan
                mean = float(off.mean())
                rows.append(
                    row(
                        "nearest",
                        name,
                        p,
                        label,
                        result,
                        float(result.norm[both].double().mean()),
                        (mean, mean - spread, mean + spread),
                        1,
                    )
                )
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


def row(
    recipe: str,
    network: str,
    p: float,
    label: str,
    result: eb.AttackResult,
    value: float,
    difference: tuple[float, float, float],
    unit: float,
) -> dict[str, object]:
    propagations = float((result.forwards + result.backwards).double().mean())
    middle, low, high = (unit * d for d in difference)
    found = 100 * float(result.success.double().mean())
    print(
        f"{recipe:8s} {network:13s} p={p:<4g} {label:36s} {value:8.4g}  {middle:+.4g} ({low:+.4g} to {high:+.4g})  "
        f"found {found:.1f} %  propagations {propagations:.0f}",
        flush=True,
    )
    return {
        "recipe": recipe,
        "network": network,
        "p": str(p),
        "variant": label,
        "value": value,
        "difference": middle,
        "low": low,
        "high": high,
        "found": found,
        "propagations": propagations,
    }


if __name__ == "__main__":
    main()
