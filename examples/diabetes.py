"""Which measurement errors move a prediction of diabetes progression most?

A small network predicts disease progression one year ahead from eight columns of scikit-learn's diabetes data, in
their own units. The attack moves the readings of a held-out patient within `eps` standard deviations of each, never
beyond the range of the data, with age and sex frozen, and looks for the largest change of the prediction.

    python examples/diabetes.py [--out DIR] [--seed N]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import epsball as eb

# Name, unit, may it change. The two columns missing here follow from the others, see `Progression`.
FEATURES = (
    ("Age", "years", False),
    ("Sex", "", False),
    ("Body-mass index", "kg/m²", True),
    ("Blood pressure", "mmHg", True),
    ("Total cholesterol", "mg/dL", True),
    ("HDL cholesterol", "mg/dL", True),
    ("Triglycerides", "mg/dL", True),
    ("Glucose", "mg/dL", True),
)
ATTACKS = ("linear-lp-10", "quadratic-lp")
RANDOM = {math.inf: "random-linf", 2.0: "random-l2"}


class Progression(nn.Module):
    """Predict the progression score (B, 1) from readings (B, 8) in their own units.

    The data's LDL column is the Friedewald formula and its tenth column is total / HDL cholesterol. Both are computed
    here, so that they follow a changed reading as they would in a laboratory report.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        full = self.complete(x)
        self.mean, self.std = full.mean(0), full.std(0)
        self.level, self.spread = float(y.mean()), float(y.std())
        self.body = nn.Sequential(nn.Linear(10, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))

    @staticmethod
    def complete(x: Tensor) -> Tensor:
        """Add LDL cholesterol and the cholesterol ratio: (B, 8) -> (B, 10), triglycerides as their logarithm."""
        total, hdl, triglycerides = x[:, 4:5], x[:, 5:6], x[:, 6:7]
        ldl = total - hdl - triglycerides / 5.0
        return torch.cat([x[:, :6], triglycerides.log(), x[:, 7:], ldl, total / hdl], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Standardise, predict, and return to the units of the score."""
        out: Tensor = self.body((self.complete(x) - self.mean) / self.std) * self.spread + self.level
        return out


@dataclass(frozen=True)
class Findings:
    """What the script reports: change[eps][p, attack] and alone[feature] are means over patients, in score points."""

    x: Tensor
    weights: Tensor
    bounds: tuple[Tensor, Tensor]
    results: dict[tuple[float, float, str], eb.AttackResult]
    change: dict[tuple[float, float, str], float]
    alone: dict[str, float]
    shown: float
    figure: Path


def load() -> tuple[Tensor, Tensor]:
    """Return readings (442, 8) and progression scores (442, 1)."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=False)
    x, y = torch.from_numpy(data.data), torch.from_numpy(data.target)[:, None]
    # Columns: age sex bmi bp total ldl hdl ratio log(triglycerides) glucose.
    return torch.cat([x[:, :5], x[:, 6:7], x[:, 8:9].exp(), x[:, 9:]], 1), y


def train(x: Tensor, y: Tensor, steps: int) -> Progression:
    """Fit the network to the squared error; more than some 200 steps overfit the few patients."""
    model = Progression(x, y).double()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.3)
    for _ in range(steps):
        optimiser.zero_grad()
        ((model(x) - y) / model.spread).square().mean().backward()
        optimiser.step()
    return model.eval()


def attack(
    model: nn.Module, x: Tensor, weights: Tensor, bounds: tuple[Tensor, Tensor], budgets: Sequence[float], seed: int
) -> dict[tuple[float, float, str], eb.AttackResult]:
    """Run every attack in both norms at every budget: {(eps, p, attack): result}."""
    results = {}
    for p, noise in RANDOM.items():
        for name in (noise, *ATTACKS):
            recipe = eb.recipe(name, p=p, eps=budgets[0], weights=weights, bounds=bounds)
            for eps, result in zip(budgets, recipe.over(model, x, eps=list(budgets), seed=seed), strict=True):
                results[eps, p, name] = result
    return results


def shift(model: nn.Module, x: Tensor, result: eb.AttackResult) -> float:
    """Return the mean change of the prediction, in score points."""
    with torch.no_grad():
        return float((model(result.perturbed) - model(x)).abs().mean())


def one_at_a_time(
    model: nn.Module, x: Tensor, weights: Tensor, bounds: tuple[Tensor, Tensor], eps: float, seed: int
) -> dict[str, float]:
    """Return the mean worst-case change when a single feature may change, for each that is not frozen."""
    found = {}
    for column, (name, _, free) in enumerate(FEATURES):
        if free:
            only = torch.zeros_like(weights)
            only[column] = weights[column]
            recipe = eb.recipe("quadratic-lp", p=math.inf, eps=eps, weights=only, bounds=bounds)
            found[name] = shift(model, x, recipe(model, x, seed=seed))
    return found


def table(change: dict[tuple[float, float, str], float], budgets: Sequence[float]) -> str:
    """Lay out the mean changes, one row for each budget and norm."""
    lines = [f"{'eps (sd)':>8}  {'limit on':<22}{'random':>8}{'linear':>9}{'quadratic':>11}"]
    limits = {math.inf: "each reading (p = inf)", 2.0: "their length (p = 2)"}
    for p, noise in RANDOM.items():
        for eps in budgets:
            values = [change[eps, p, name] for name in (noise, *ATTACKS)]
            lines.append(f"{eps:8.2f}  {limits[p]:<22}{values[0]:8.2f}{values[1]:9.2f}{values[2]:11.2f}")
    return "\n".join(lines)


def draw(found: Findings, budgets: Sequence[float], path: Path) -> None:
    """Plot the features in order of how far each moves the prediction, and the worst case beside chance."""
    from matplotlib.figure import Figure

    strong, muted, ink = "#0072b2", "#6a727b", "#1b2026"
    figure = Figure(figsize=(10.5, 4.6), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1.0))
    figure.suptitle("How far errors in the readings can move the predicted progression score", fontsize=14, color=ink)

    rows = sorted(found.alone.items(), key=lambda item: item[1])
    units = {name: (unit, float(w)) for (name, unit, _), w in zip(FEATURES, found.weights, strict=True)}
    labels = [f"{name}, ±{found.shown * units[name][1]:.2g} {units[name][0]}" for name, _ in rows]
    values = [value for _, value in rows]
    left.barh(labels, values, color=strong, height=0.62)
    for position, value in enumerate(values):
        left.text(value, position, f" {value:.1f}", va="center", fontsize=11, color=ink)
    left.set_xlim(0, 1.15 * max(values))
    left.set_xlabel("mean change of the prediction, score points", fontsize=11)
    left.set_title("One reading wrong, by at most what is named", fontsize=12, loc="left")

    sizes = [0.0, *budgets]
    for name, colour, text in (("quadratic-lp", strong, "worst case"), (RANDOM[math.inf], muted, "chance")):
        line = [0.0, *(found.change[eps, math.inf, name] for eps in budgets)]
        right.plot(sizes, line, color=colour, linewidth=2.4, marker="o", markersize=5)
        right.annotate(
            f"{text}\n{line[-1]:.0f} points", (sizes[-1], line[-1]), (8, 0), textcoords="offset points",
            va="center", fontsize=11, color=colour,
        )  # fmt: skip
    right.set_xlim(0, 1.4 * sizes[-1])
    right.set_ylim(0, 1.12 * max(found.change[eps, math.inf, "quadratic-lp"] for eps in budgets))
    right.set_xlabel("largest error, standard deviations", fontsize=11)
    right.set_ylabel("mean change, score points", fontsize=11)
    right.set_title("All six wrong at once", fontsize=12, loc="left")
    for ax, grid in ((left, "x"), (right, "both")):
        ax.grid(True, axis=grid, color="#d4d9de", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=11, colors=ink)
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})


def main(argv: Sequence[str] | None = None) -> Findings:
    """Train, attack, print the table and write diabetes.png."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="folder of the plot")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200, help="of the training")
    parser.add_argument("--patients", type=int, default=100, help="held out and attacked")
    parser.add_argument("--eps", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4], help="in standard deviations")
    options = parser.parse_args(argv)

    torch.manual_seed(options.seed)
    readings, score = load()
    order = torch.randperm(len(readings))
    held_out, rest = order[: options.patients], order[options.patients :]
    model = train(readings[rest], score[rest], options.steps)
    x, y = readings[held_out], score[held_out]
    weights = readings[rest].std(0) * torch.tensor([float(free) for *_, free in FEATURES])
    bounds = (readings.min(0).values, readings.max(0).values)

    with torch.no_grad():
        error = float((model(x) - y).square().mean().sqrt())
    mean_error = float((y - score[rest].mean()).square().mean().sqrt())
    print(
        f"{len(x)} patients held out, root mean square error {error:.0f} points ({mean_error:.0f} by the mean score);"
    )
    print("age and sex are frozen.\n")
    results = attack(model, x, weights, bounds, options.eps, options.seed)
    change = {key: shift(model, x, result) for key, result in results.items()}
    print("mean change of the prediction, score points:")
    print(table(change, options.eps))
    shown = options.eps[len(options.eps) // 2]
    alone = one_at_a_time(model, x, weights, bounds, shown, options.seed)
    print(f"\nworst case of one feature alone, eps = {shown:g}:")
    for name, value in sorted(alone.items(), key=lambda item: -item[1]):
        print(f"  {name:<18}{value:6.2f}")
    options.out.mkdir(parents=True, exist_ok=True)
    found = Findings(x, weights, bounds, results, change, alone, shown, options.out / "diabetes.png")
    draw(found, options.eps, found.figure)
    print(f"\nplot: {found.figure}")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are too small to share among threads
    main()
