"""What a run says of itself: question, model, data, attacks, configuration, versions."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from epsball.attack import Attack
from epsball.engines.local import STATUSES, Chunk, Work
from epsball.experiments.config import PIXELS
from epsball.experiments.measures import describe
from epsball.experiments.plan import Plan
from epsball.experiments.warnings import warnings_of, wrong_from_the_start
from epsball.metrics import Robustness
from epsball.metrics.intervals_student import student_interval
from epsball.recipes import find
from epsball.report.rows import count_ends
from epsball.sets import Groups
from epsball.solvers import FewestGroups, Formulation, MinNorm, NormConstrained, RandomPoint, ShrinkingBall

__all__ = ["manifest"]

FORMULATIONS: dict[type[Formulation], str] = {
    NormConstrained: "norm-constrained",
    MinNorm: "minimal-norm",
    ShrinkingBall: "minimal-norm",
    FewestGroups: "fewest groups",
    RandomPoint: "random",
}

REFERENCES = {"data": "the true output", "input": "the input itself", "output": "what it is without one"}


def manifest(
    plan: Plan,
    work: Work,
    grid: Sequence[float],
    chunks: Iterable[Chunk],
    seconds: float,
    measured: Robustness | None,
) -> dict[str, Any]:
    """Return the content of manifest.json; infinity is written as "inf", since JSON has none."""
    config, dataset = plan.config, plan.dataset
    content: dict[str, Any] = {
        "command": config.command_line(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "question": _question(plan),
        "task": config.task,
        "model": plan.model.describe(),
        "data": {
            "name": dataset.name,
            "split": dataset.split,
            "count": len(dataset),
            "of": plan.of,
            "source": dataset.source,
            "digest": dataset.digest,
            "shape": list(dataset.x.shape[1:]),
            "bounds": _pair(dataset.bounds),
            "classes": None if dataset.classes is None else list(dataset.classes),
            "skipped": [{"file": bad.file, "reason": bad.reason} for bad in dataset.skipped],
        },
        "attacks": [_attack(name, attack, plan.config.passes) for name, attack in plan.attacks.items()],
        "p": _number(config.p),
        "eps": [_number(eps) for eps in grid],
        "bounds": _pair(plan.bounds),
        "seed": config.seed,
        "dtype": config.dtype,
        "device": str(plan.device),
        "batch_size": config.batch_size,
        "clean": _clean(plan, work),
        "psnr_peak": plan.peak,
        "seconds": round(seconds, 3),
        "versions": _versions(),
        "statuses": _statuses(plan, chunks),
        "warnings": [*warnings_of(plan, chunks), *_left_out(plan)],
        "configuration": config.to_dict(),
    }
    if plan.surrogates:
        content["surrogates"] = [surrogate.describe() for surrogate in plan.surrogates]
    if config.transfer:
        content["transfer"] = {"attack": config.transferred, "networks": [config.model, *config.surrogates]}
    if work.regression is not None:
        content |= {"reference": plan.reference, "psnr_peak_out": work.regression.peak}
    over = {name: attack for name, attack in plan.attacks.items() if isinstance(attack.constraint, Groups)}
    if over:
        fewest = [name for name, attack in over.items() if attack.formulation.follows]
        k = None if len(fewest) == len(over) else config.k or 1
        content["groups"] = {"of": config.groups or PIXELS, "k": k} | ({"fewest": fewest} if fewest else {})
    if measured is not None:
        content["robustness"] = describe(measured)
    return content


def _question(plan: Plan) -> str:
    config, dataset = plan.config, plan.dataset
    order = "inf" if config.p == math.inf else f"{config.p:g}"
    inside = "" if plan.bounds is None else f", inside [{plan.bounds[0]:g}, {plan.bounds[1]:g}],"
    samples = f"the {len(dataset):,} samples of {dataset.name} ({dataset.split})"
    if config.command == "robustness":
        return f"How far, in the l{order} norm{inside} are {samples} from being misclassified by {config.model}?"
    change = f"perturbation of at most eps in the l{order} norm{inside}"
    attacks = plan.attacks.values()
    if all(isinstance(attack.constraint, Groups) for attack in attacks):
        of = (config.groups or PIXELS).partition(":")[0]
        of = "entries" if of == PIXELS and dataset.x.dim() == 2 else of
        if all(attack.formulation.follows for attack in attacks):
            return (
                f"How few {of} of {samples} must change, no value in them by more than eps{inside} before "
                f"{config.model} misclassifies them?"
            )
        change = f"change of few {of}, no value in them by more than eps{inside}"
    if config.regresses:
        return (
            f"How far does a {change} push the output of {config.model} away from "
            f"{REFERENCES[plan.reference or 'data']}, for {samples}?"
        )
    return (
        f"Of those of {samples} that {config.model} classifies correctly, what share is misclassified after a "
        f"{change.rstrip(',')}?"
    )


def _left_out(plan: Plan) -> list[dict[str, str]]:
    """Warn of samples that could not be read, and of weights that nobody trained."""
    skipped, found = plan.dataset.skipped, []
    if skipped:
        shown = [f"{bad.file} ({bad.reason})" for bad in skipped[:3]]
        more = f" and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
        found.append(
            {
                "kind": "skipped",
                "seen": f"{len(skipped):,} samples could not be read and were left out: {'; '.join(shown)}{more}.",
                "means": "All figures are of the samples that remain.",
                "next": "All are listed with their reasons under data.skipped in manifest.json: repair or remove them.",
            }
        )
    if "random weights" in str(plan.model.details.get("kind", "")):
        found.append(
            {
                "kind": "random-weights",
                "seen": f"{plan.config.model} has random weights.",
                "means": "The figures say nothing of a trained model.",
                "next": "Give your own with --weights FILE, or timm's with --weights pretrained.",
            }
        )
    return found


def _clean(plan: Plan, work: Work) -> dict[str, Any]:
    """Return how good the model is without a perturbation."""
    count = len(plan.dataset)
    if work.regression is None:
        correct = int((work.clean[plan.config.model] == work.target).sum())
        return {"error": 1.0 - correct / count, "correct": correct, "count": count}
    error, quality = (student_interval(v.tolist()) for v in (work.regression.error, work.regression.quality))
    return {"squared_error": _interval(error), "psnr_out": _interval(quality), "count": count}


def _interval(values: tuple[float, float, float]) -> dict[str, float | str | None]:
    """Return a mean and the ends of its interval as strict JSON holds them."""
    return {
        name: None if math.isnan(value) else _number(value)
        for name, value in zip(("value", "low", "high"), values, strict=True)
    }


def _attack(name: str, attack: Attack, passes: int | None) -> dict[str, Any]:
    row, _ = find(name)
    budget = row.steps if passes is None else passes
    return {
        "name": name,
        "steps": attack.schedule.steps,
        "passes": budget if "passes" in row.options else None,
        "summary": row.summary,
        "reference": row.reference,
        "formulation": FORMULATIONS.get(type(attack.formulation), type(attack.formulation).__name__),
        "family": "groups" if isinstance(attack.constraint, Groups) else row.family,
    }


def _statuses(plan: Plan, chunks: Iterable[Chunk]) -> dict[str, dict[str, int]]:
    """Count how the attacks on the model itself ended, over all samples and budgets, as the report counts them."""
    counts: dict[str, dict[str, int]] = {name: {} for name in plan.attacks}
    for chunk in chunks:
        if chunk.main:
            entry = counts[chunk.attack]
            for name, number in count_ends(chunk.columns["status"], STATUSES, wrong_from_the_start(chunk)).items():
                entry[name] = entry.get(name, 0) + number
    return counts


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    import epsball

    found = {"epsball": epsball.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("numpy", "pyarrow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # installed without metadata
            continue
    return found | {"platform": platform.platform()}


def _number(value: float) -> float | str:
    return str(value) if math.isinf(value) else value


def _pair(bounds: tuple[float, float] | None) -> list[float] | None:
    return None if bounds is None else [float(end) for end in bounds]
