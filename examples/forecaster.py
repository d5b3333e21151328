"""Which past hours move a forecast of tomorrow's electricity demand most?

A small convolutional network reads the demand of the last 168 hours and forecasts the next 24, in MW. The series is
synthetic: `demand` says how it is made. The attack changes the meter readings within a budget and looks for the
largest change of the forecast, y = f(x): with every hour free, and with only a few hours or 6-hour blocks wrong.

    python examples/forecaster.py [--out DIR] [--seed N]
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

PAST, AHEAD, BLOCK = 168, 24, 6
METER = (0.0, 120.0)  # MW, what the meter can show
BLOCKS = torch.arange(PAST) // BLOCK  # the group of each hour, 28 blocks of 6 hours
HOURS = torch.arange(PAST)
Result = eb.AttackResult


def demand(days: int, generator: torch.Generator) -> Tensor:
    """Draw an hourly demand in MW, (24 days,): a daily shape, quieter weekends, slow weather and meter noise.

    demand(t) = 55 + s(t) [9 sin(2π (h - 9) / 24) + 6 sin(4π (h - 4) / 24)] - 6 weekend(t) + u(t) + v(t), h the hour of
    the day, s = 1 on weekdays and 0.6 at weekends, u an autoregression u(t) = 0.98 u(t-1) + 0.9 e(t) (a memory of two
    days, spread 4.5 MW), v white noise of 0.8 MW.
    """
    t = torch.arange(24 * days, dtype=torch.float64)
    hour, weekend = t % 24, ((t // 24) % 7 >= 5).double()
    shape = 9.0 * torch.sin(2 * math.pi * (hour - 9) / 24) + 6.0 * torch.sin(4 * math.pi * (hour - 4) / 24)
    shocks = 0.9 * torch.randn(len(t), generator=generator, dtype=torch.float64)
    weather, level = torch.empty_like(t), 0.0
    for i, shock in enumerate(shocks.tolist()):
        level = 0.98 * level + shock
        weather[i] = level
    noise = 0.8 * torch.randn(len(t), generator=generator, dtype=torch.float64)
    return 55.0 + (1.0 - 0.4 * weekend) * shape - 6.0 * weekend + weather + noise


class Forecaster(nn.Module):
    """Forecast the next 24 hours (B, 24) from the last 168 (B, 168), both in MW."""

    def __init__(self, level: float, spread: float) -> None:
        super().__init__()
        self.level, self.spread = level, spread
        self.body = nn.Sequential(
            nn.Conv1d(1, 16, 6, stride=3), nn.SiLU(), nn.Conv1d(16, 16, 5, stride=2), nn.SiLU(), nn.Flatten(),
            nn.Linear(16 * 26, 64), nn.SiLU(), nn.Linear(64, AHEAD),
        )  # fmt: skip
        self.direct = nn.Linear(PAST, AHEAD)

    def forward(self, x: Tensor) -> Tensor:
        """Add a linear forecast and what the convolutions correct."""
        z = (x - self.level) / self.spread
        out: Tensor = (self.direct(z) + self.body(z[:, None])) * self.spread + self.level
        return out


@dataclass(frozen=True)
class Findings:
    """What the script reports: change[eps][limit, attack] and blocks (28,) are means over weeks, in MW."""

    x: Tensor
    results: dict[tuple[float, str, str], Result]
    change: dict[tuple[float, str, str], float]
    chosen: dict[float, tuple[Tensor, Tensor]]  # at each eps: first hour of the worst block, worst single hour
    blocks: Tensor
    shown: float
    figure: Path


def train(x: Tensor, y: Tensor, steps: int) -> Forecaster:
    """Fit the network to the squared error on windows that start at any hour."""
    model = Forecaster(float(x.mean()), float(x.std())).double()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        optimiser.zero_grad()
        ((model(x[rows]) - y[rows]) / model.spread).square().mean().backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def attacks(eps: float) -> dict[tuple[str, str], eb.Attack]:
    """Return the attacks at eps MW an hour: {(what may be wrong, kind): attack}.

    The Euclidean ball has the radius eps √168, the length of an error of eps in every hour; p = 1 has the same radius,
    and spends it on one hour where that is worst.
    """
    length = eps * math.sqrt(PAST)
    found: dict[tuple[str, str], eb.Attack] = {}
    for p, radius, limit in ((math.inf, eps, "every hour, p = inf"), (2.0, length, "every hour, p = 2")):
        found[limit, "random"] = eb.recipe("random-linf" if p == math.inf else "random-l2", eps=radius, bounds=METER)
        found[limit, "linear"] = eb.recipe("linear-lp-10", p=p, eps=radius, bounds=METER)
        found[limit, "quadratic"] = eb.recipe("quadratic-lp", p=p, eps=radius, bounds=METER)
    found["one hour, p = 1", "random"] = eb.recipe("random-pixel-1", groups=HOURS, eps=length, bounds=METER)
    found["one hour, p = 1", "linear"] = eb.recipe("linear-lp-10", p=1.0, eps=length, bounds=METER)
    found["one hour, p = 1", "quadratic"] = eb.recipe("quadratic-lp", p=1.0, eps=length, bounds=METER)
    for groups, k, limit in ((HOURS, 1, "one hour"), (BLOCKS, 1, "one 6-hour block"), (BLOCKS, 4, "four such blocks")):
        found[limit, "random"] = eb.recipe(f"random-pixel-{k}", groups=groups, eps=eps, bounds=METER)
        found[limit, "linear"] = eb.recipe(f"linear-pixel-{k}", groups=groups, eps=eps, bounds=METER)
        found[limit, "quadratic"] = eb.recipe("quadratic-pixel", groups=groups, k=k, eps=eps, bounds=METER)
    return found


def shift(model: nn.Module, x: Tensor, perturbed: Tensor) -> Tensor:
    """Return the root mean square change of each forecast over its 24 hours, in MW, (B,)."""
    with torch.no_grad():
        change: Tensor = model(perturbed) - model(x)
    return change.square().mean(1).sqrt()


def block_by_block(model: nn.Module, x: Tensor, eps: float, seed: int) -> Tensor:
    """Return the mean worst-case change in MW when one given block may be wrong by eps MW an hour, (28,)."""
    found = []
    for block in range(PAST // BLOCK):
        recipe = eb.recipe("quadratic-lp", p=math.inf, eps=eps, weights=BLOCKS.eq(block).double(), bounds=METER)
        found.append(shift(model, x, recipe(model, x, seed=seed).perturbed).mean())
    return torch.stack(found)


def first_changed(result: Result) -> Tensor:
    """Return the first hour that each perturbation changes, (B,)."""
    return (result.perturbation != 0).int().argmax(1)


def ago(hour: int, size: int) -> str:
    """Say in words when the `size` hours from an hour of the input are."""
    end = PAST - hour - size
    last = f"the last {size} hours" if size > 1 else "the last hour"
    return last if end == 0 else f"{end + size} to {end} hours ago"


def draw(model: nn.Module, found: Findings, path: Path) -> None:
    """Plot one day's forecast under errors in all hours, and how far each 6-hour block moves the forecast."""
    from matplotlib.figure import Figure

    strong, warm, muted, ink = "#0072b2", "#d05a00", "#6a727b", "#1b2026"
    figure = Figure(figsize=(10.5, 7.0), layout="constrained", facecolor="white")
    top, bottom = figure.subplots(2, 1)
    worst, noise = (found.results[found.shown, "every hour, p = inf", kind] for kind in ("quadratic", "random"))
    moved = shift(model, found.x, worst.perturbed)
    day = int((moved - moved.median()).abs().argmin())  # a typical one
    past, ahead = torch.arange(-48, 0), torch.arange(AHEAD)
    with torch.no_grad():
        lines = [model(x)[day] for x in (found.x, noise.perturbed, worst.perturbed)]
    top.plot(past, found.x[day, -48:], color=ink, linewidth=1.8)
    top.plot(past, worst.perturbed[day, -48:], color=warm, linewidth=1.2)
    for line, colour, text in zip(
        lines, (ink, muted, warm), ("as measured", "random errors", "worst errors"), strict=True
    ):
        top.plot(ahead, line, color=colour, linewidth=2.4, linestyle="--" if colour == muted else "-", label=text)
    top.axvline(-0.5, color=muted, linewidth=1)
    top.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False, fontsize=11, handlelength=1.5,
        borderaxespad=0.1,
    )  # fmt: skip
    top.set_xlabel("hours from now", fontsize=11)
    top.set_xticks(range(-48, 25, 12))
    top.set_ylabel("demand, MW", fontsize=11)
    top.set_title(f"A typical day: every reading wrong by at most {found.shown:g} MW", fontsize=13, loc="left")

    start = torch.arange(-PAST, 0, BLOCK)
    largest = int(found.blocks.argmax())
    colours = [warm if block == largest else strong for block in range(len(start))]
    bottom.bar((start + BLOCK / 2).numpy(), found.blocks.numpy(), width=0.84 * BLOCK, color=colours)
    bottom.annotate(
        f"{ago(largest * BLOCK, BLOCK)}: {float(found.blocks[largest]):.2f} MW",
        (float(start[largest]) + BLOCK / 2, float(found.blocks[largest])), (0, 5), textcoords="offset points",
        ha="right" if largest > len(start) / 2 else "left", fontsize=11, color=warm,
    )  # fmt: skip
    bottom.set_ylim(0, 1.18 * float(found.blocks.max()))
    bottom.set_xticks(range(-PAST, 1, 24), [f"{-h // 24} days ago" if h else "now" for h in range(-PAST, 1, 24)])
    bottom.set_ylabel("change of the forecast, MW", fontsize=11)
    bottom.set_title(f"Six readings in a row wrong by {found.shown:g} MW: when it matters", fontsize=13, loc="left")
    for ax in (top, bottom):
        ax.grid(True, axis="y", color="#d4d9de", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=11, colors=ink)
    figure.savefig(path, dpi=90, pil_kwargs={"optimize": True})


def main(argv: Sequence[str] | None = None) -> Findings:
    """Train, attack, print the table and write forecaster.png."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="folder of the plot")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000, help="of the training")
    parser.add_argument("--weeks", type=int, default=40, help="held out and attacked")
    parser.add_argument("--eps", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="in MW")
    options = parser.parse_args(argv)

    torch.manual_seed(options.seed)
    series = demand(7 * 165, torch.Generator().manual_seed(options.seed))
    windows = series.unfold(0, PAST + AHEAD, 1)
    held_out = windows[24 * 7 * 108 :: 24 * 8 + 24][: options.weeks]  # after the training, from midnight, any weekday
    train_on = windows[: 24 * 7 * 100]
    model = train(train_on[:, :PAST], train_on[:, PAST:], options.steps)
    x, y = held_out[:, :PAST].contiguous(), held_out[:, PAST:]

    with torch.no_grad():
        error = float((model(x) - y).square().mean().sqrt())
    naive = float((x[:, :AHEAD] - y).square().mean().sqrt())
    print(f"synthetic demand, {len(x)} weeks held out; root mean square error of the forecast {error:.2f} MW,")
    print(f"of the same day last week {naive:.2f} MW\n")
    results = {}
    for eps in options.eps:
        for (limit, kind), attack in attacks(eps).items():
            results[eps, limit, kind] = attack(model, x, seed=options.seed)
    change = {key: float(shift(model, x, result.perturbed).mean()) for key, result in results.items()}
    print("mean change of the forecast (root mean square over its 24 hours), MW:")
    print(f"{'eps, MW':>8}  {'limit on':<20}{'random':>8}{'linear':>9}{'quadratic':>11}")
    for eps, limit in dict.fromkeys(key[:2] for key in results):
        row = [change[eps, limit, kind] for kind in ("random", "linear", "quadratic")]
        print(f"{eps:8.2f}  {limit:<20}{row[0]:8.2f}{row[1]:9.2f}{row[2]:11.2f}")
    print("p = 2 and p = 1 have the budget eps √168, the length of an error of eps in every hour\n")
    limits = ("one 6-hour block", "one hour")
    first, hour = ({eps: first_changed(results[eps, limit, "quadratic"]) for eps in options.eps} for limit in limits)
    shown = options.eps[len(options.eps) // 2]
    for found_at, size, what in ((first, BLOCK, "block"), (hour, 1, "hour")):
        most = int(found_at[shown].mode().values)
        share = float((found_at[shown] == most).double().mean())
        print(f"worst {what}, eps = {shown:g}: {ago(most, size)}, in {share:.0%} of weeks")
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = {eps: (first[eps], hour[eps]) for eps in options.eps}
    blocks = block_by_block(model, x, shown, options.seed)
    found = Findings(x, results, change, chosen, blocks, shown, options.out / "forecaster.png")
    draw(model, found, found.figure)
    print(f"\nplot: {found.figure}")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are too small to share among threads
    main()
