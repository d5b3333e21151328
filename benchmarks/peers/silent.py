"""Part `silent`: what each library does with bad input, and what it leaves behind in the user's model and process."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from benchmarks.peers import networks
from benchmarks.peers.adapters import FIXED, MINIMAL, Attack, Job
from benchmarks.peers.cells import write
from benchmarks.peers.counting import Counting
from benchmarks.peers.exact import CLASSES, problem
from benchmarks.peers.judging import judge
from torch import Tensor, nn

PLAIN = ("pgd", "pgd-ce", "apgd-ce")  # the first that a library has
RIGHT, SILENT, WARNED, REFUSED, NONE = "right", "silent", "warned", "refused", "not offered"
EPS, STEPS = 0.1, 5


# What a warning that speaks of the user's mistake has in it; others are of the libraries' own upkeep.
TELLING = ("training mode", "range", "bounds", "clip", "nan", "finite", "label", "logits", "softmax", "gradient")


def silent(attacks: Sequence[Attack], root: Path) -> None:
    """Try every case on the plain l-inf attack of each library, and DeepFool's on its own."""
    model = networks.load("mnist-lenet5")
    x, y, _ = networks.samples("mnist-lenet5", model, 9)
    x, y = x[y != 0][:6], y[y != 0][:6]
    rows: dict[str, list[str]] = {name: [] for name in ("case", "library", "attack", "verdict", "what")}
    libraries = list(dict.fromkeys(attack.library for attack in attacks))
    for case, (kind, names, test) in CASES.items():
        for library in libraries:
            own = [a for a in attacks if a.library == library and a.kind == kind and a.name in names]
            verdict, what = (NONE, "") if not own else _try(test, own[0], copy.deepcopy(model), x.clone(), y.clone())
            values = (case, library, own[0].name if own else "", verdict, what)
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value)
            print(f"{case}: {library}: {verdict}: {what}", flush=True)
    write(root / "silent" / "all" / "silent.parquet", {"part": "silent"}, rows)


def _try(
    test: Callable[..., tuple[str, str]], attack: Attack, model: nn.Module, x: Tensor, y: Tensor
) -> tuple[str, str]:
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            verdict, what = test(attack, model, x, y)
        except Exception as error:  # whatever a library raises is its result
            text = " ".join(str(error).split())
            return REFUSED, (f"{type(error).__name__}: {text}" if text else f"{type(error).__name__}, no message")[:160]
    # Only what the library itself says of the case; a warning of torch's about something else is none.
    said = [str(w.message) for w in caught if any(word in str(w.message).lower() for word in TELLING)]
    return (WARNED, f"{what}; warns") if verdict == SILENT and said else (verdict, what)


def _call(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, eps: float = EPS, classes: int = 10) -> Tensor:
    return attack.call(Job(model, x, y, math.inf, eps, STEPS, 0, classes)).detach()


def _nan(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> tuple[str, str]:
    x[0, 0, 0, 0] = math.nan
    returned = _call(attack, model, x, y)
    with torch.no_grad():
        fooled = bool(model(returned)[0].argmax() != y[0])
    others = bool(returned[1:].isfinite().all())
    text = "returns NaN, which argmax calls a success" if fooled else "returns a finite image"
    return SILENT, text + ("" if others else "; other samples become NaN too")


def _accepted(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, float]]) -> Callable[..., tuple[str, str]]:
    def test(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> tuple[str, str]:
        x, y, eps = change(x, y)
        returned = _call(attack, model, x, y, eps)
        changed = float((returned.double() - x.double()).abs().max())
        return SILENT, f"returns, largest change {changed:.3g}"

    return test


def _mode(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> tuple[str, str]:
    counting = Counting(nn.Sequential(model, nn.Dropout(0.5)).train())
    _call(attack, counting, x, y)
    seen = "dropout was on during the attack" if counting.training_seen else "evaluated in eval mode"
    left = "" if counting.model.training else "; the model was left in eval mode"
    return (SILENT if counting.training_seen or left else RIGHT), seen + left


def _statistics(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> tuple[str, str]:
    normed = nn.Sequential(nn.BatchNorm2d(1), model).train()
    before = normed[0].running_mean.clone()
    _call(attack, normed, x, y)
    changed = not torch.equal(before, normed[0].running_mean)
    return (SILENT, "running statistics overwritten") if changed else (RIGHT, "untouched")


def _gradients(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> tuple[str, str]:
    _call(attack, model, x, y)
    filled = sum(p.grad is not None for p in model.parameters())
    return (SILENT, f".grad of {filled} parameters filled") if filled else (RIGHT, "none filled")


def _flags(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> tuple[str, str]:
    first = next(model.parameters()).requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    asked = x.requires_grad
    _call(attack, model, x, y)
    same = before == [p.requires_grad for p in model.parameters()] and not first.requires_grad
    left = same and x.requires_grad == asked
    return (RIGHT, "as found") if left else (SILENT, "requires_grad of the parameters or of the input changed")


def _randomness(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> tuple[str, str]:
    drawn = []
    for seed in (123, 456):
        torch.manual_seed(seed)
        _call(attack, model, x, y)
        drawn.append(torch.rand(3))
    if torch.equal(*drawn):
        return SILENT, "the global generator is seeded anew by each call"
    torch.manual_seed(456)
    untouched = torch.equal(torch.rand(3), drawn[1])
    return RIGHT, "untouched" if untouched else "draws from the global generator, as PyTorch does"


def _faces(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> tuple[str, str]:
    given = problem(MINIMAL)
    job = Job(given.model, given.x, given.y, 2.0, None, 1000, 0, CLASSES)
    share = float(judge(given.model, given.x, given.y, attack.call(job), 2.0).success.double().mean())
    return (RIGHT if share == 1.0 else SILENT), f"crosses the boundary on {share:.0%} of the samples"


def _misclassified(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> tuple[str, str]:
    job = Job(model, x, (y + 1) % 10, 2.0, None, 1000)
    norm = float((attack.call(job).double() - x.double()).flatten(1).norm(dim=1).max())
    return (RIGHT if norm < 1e-6 else SILENT), f"largest norm {norm:.3g}; nothing had to change"


DEEPFOOL = ("deepfool",)
CASES: dict[str, tuple[str, tuple[str, ...], Callable[..., tuple[str, str]]]] = {
    "an input with NaN": (FIXED, PLAIN, _nan),
    "images in [0, 255]": (FIXED, PLAIN, _accepted(lambda x, y: (255 * x, y, EPS))),
    "images as uint8": (FIXED, PLAIN, _accepted(lambda x, y: ((255 * x).byte(), y, EPS))),
    "a negative eps": (FIXED, PLAIN, _accepted(lambda x, y: (x, y, -EPS))),
    "labels as floats": (FIXED, PLAIN, _accepted(lambda x, y: (x, y.float(), EPS))),
    "a label that is no class": (FIXED, PLAIN, _accepted(lambda x, y: (x, y + 100, EPS))),
    "one label too few": (FIXED, PLAIN, _accepted(lambda x, y: (x, y[:-1], EPS))),
    "a model in training mode, with dropout": (FIXED, PLAIN, _mode),
    "batch norm in training mode": (FIXED, PLAIN, _statistics),
    "parameter gradients after the call": (FIXED, PLAIN, _gradients),
    "requires_grad after the call": (FIXED, PLAIN, _flags),
    "the global random state": (FIXED, PLAIN, _randomness),
    "DeepFool on an affine model, entries on faces": (MINIMAL, DEEPFOOL, _faces),
    "DeepFool on an input misclassified already": (MINIMAL, DEEPFOOL, _misclassified),
}
