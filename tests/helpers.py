"""Small seeded models, some with answers in closed form, and NumPy oracles that share no code with the library."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import epsball as eb

ORDERS = [1.0, 1.05, 1.5, 2.0, 3.0, 10.0, math.inf]
SHAPE = (3, 8, 8)  # of the images that the small networks take: every recipe can attack them, group recipes too
CLASSES = 5


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------------------------- models in closed form


@dataclass(frozen=True, eq=False)
class Affine:
    """x -> W x + b with very unequal columns, so that an attack in the wrong norm or weighting is found out."""

    W: np.ndarray  # (K, M)
    b: np.ndarray  # (K,)
    x: Tensor  # (B, M), inside (0, 1)
    target: Tensor  # (B,), classified correctly

    @property
    def model(self) -> nn.Module:
        layer = nn.Linear(self.W.shape[1], self.W.shape[0]).to(self.x.dtype)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(self.W))
            layer.bias.copy_(torch.from_numpy(self.b))
        return layer

    def margins(self, sample: int) -> tuple[np.ndarray, np.ndarray]:
        """L_l = f_k - f_l > 0 and the gradients of -L_l, one row for each wrong class l."""
        k = int(self.target[sample])
        rest = [c for c in range(len(self.b)) if c != k]
        scores = self.W @ self.x[sample].double().numpy() + self.b
        return scores[k] - scores[rest], self.W[rest] - self.W[k]

    def distance(self, p: float, weights: np.ndarray | None = None) -> np.ndarray:
        """The exact distance min_l L_l / ‖w g_l‖_q of each sample to the decision boundary, without bounds."""
        w = np.ones(self.W.shape[1]) if weights is None else weights
        found = []
        for sample in range(len(self.x)):
            gaps, gradients = self.margins(sample)
            found.append(min(gap / np_norm(w * g, dual(p)) for gap, g in zip(gaps, gradients, strict=True)))
        return np.array(found)


def affine(seed: int = 0, *, batch: int = 4, entries: int = 7, classes: int = 4, faces: bool = False) -> Affine:
    """Draw a problem; `faces` puts the entries that matter most next to a face of the unit box."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(classes, entries)) * np.geomspace(0.2, 4.0, entries)[rng.permutation(entries)]
    b = rng.normal(size=classes)
    x = rng.uniform(0.1, 0.9, size=(batch, entries))
    if faces:
        x[:, np.abs(W).sum(0) > np.median(np.abs(W).sum(0))] = rng.choice([0.0, 0.02, 0.98, 1.0], size=(batch, 3))
    return Affine(W, b, torch.from_numpy(x), torch.from_numpy((x @ W.T + b).argmax(1)))


# ---------------------------------------------------------------------------------------------------- small networks


def mlp(activation: type[nn.Module], seed: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), 16), activation(), nn.Linear(16, CLASSES))


def lenet(seed: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "tanh": lambda seed: mlp(nn.Tanh, seed),
    "relu": lambda seed: mlp(nn.ReLU, seed),
    "lenet": lenet,
}


def network(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network with weights large enough for curved boundaries, and every class as likely as the others."""
    model = BUILDERS[name](seed)
    draw = generator(1000 + seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 8
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * math.sqrt(3.0 / fan))
        model.double()[-1].bias -= model(images(64, seed=99)).mean(0)
    return model.to(dtype).train()


def images(count: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images in [0, 1], a fifth of the entries on a face of the box."""
    x = torch.rand(count, *SHAPE, generator=generator(seed), dtype=torch.float64)
    return ((x - 0.5) * 1.25 + 0.5).clamp(0.0, 1.0).to(dtype)


def labels(model: nn.Module, x: Tensor, wrong: int | None = None) -> Tensor:
    """The model's own classes, with the label of one sample made wrong where asked for."""
    target = scores(model, x).argmax(1)
    if wrong is not None:
        target[wrong] = (target[wrong] + 1) % CLASSES
    return target


def scores(model: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """The model's outputs in eval mode, computed past the library."""
    modes = {m: m.training for m in model.modules()} if isinstance(model, nn.Module) else {}
    for module in modes:
        module.training = False
    with torch.no_grad():
        outputs = model(x)
    for module, mode in modes.items():
        module.training = mode
    return outputs


# ------------------------------------------------------------------------------------------------- the catalogue


@dataclass(frozen=True, eq=False)
class Case:
    """One recipe of the catalogue in one norm, on one kind of network."""

    row: eb.Recipe
    p: float  # what eps limits: the norm's order; inf for groups

    @property
    def name(self) -> str:
        return self.row.name.replace("-T", "-3")

    def __str__(self) -> str:
        return f"{self.name}-p{self.p:g}"

    @property
    def eps(self) -> float:
        """A budget at which some samples of the small networks fall and some stand, in any norm."""
        if self.row.family == "groups":
            return 0.2
        return 0.02 * math.prod(SHAPE) ** (0.0 if self.p == math.inf else 0.75 / self.p)

    def attack(self, network_name: str = "tanh", dtype: torch.dtype = torch.float64, **changes: Any) -> eb.Attack:
        arguments: dict[str, Any] = {"eps": self.eps if self.row.needs_eps else None, **changes}
        if self.row.family != "groups" and self.row.order is None:
            arguments["p"] = self.p
        if "surrogates" in self.row.options:
            arguments.setdefault("surrogates", surrogates(network_name, dtype))
        return eb.recipe(self.name, **arguments)

    @property
    def classifies(self) -> bool:
        """Whether `target` gives labels."""
        return self.row.task != "regression"

    def target(self, model: nn.Module, x: Tensor, wrong: int | None = None) -> Tensor:
        if not self.classifies:
            return scores(model, x) + 0.5 * torch.rand(len(x), CLASSES, generator=generator(9), dtype=x.dtype)
        return labels(model, x, wrong)


def surrogates(network_name: str, dtype: torch.dtype) -> list[nn.Module]:
    return [network(network_name, seed, dtype) for seed in (11, 12)]


def cases(*orders: float) -> list[Case]:
    """Every row of the catalogue in each of the orders (once where the recipe fixes the norm)."""
    found = []
    for row in eb.recipes():
        fixed = math.inf if row.family == "groups" else row.order
        found += [Case(row, p) for p in (orders if fixed is None else (fixed,))]
    return found


def is_random(case: Case, attack: eb.Attack) -> bool:
    schedule = attack.schedule
    return schedule.random_start or any(schedule.dithers(case.classifies)) or not attack.formulation.uses_model


# ------------------------------------------------------------------------------------------------------ NumPy oracles


def dual(p: float) -> float:
    return math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1.0)


def np_norm(a: np.ndarray, p: float) -> float:
    a = np.abs(np.asarray(a, dtype=np.float64)).ravel()
    top = a.max(initial=0.0)
    return float(top if p == math.inf or top == 0.0 else top * np.sum((a / top) ** p) ** (1.0 / p))


def np_lmo(g: np.ndarray, eps: float, p: float, w: np.ndarray | None = None) -> np.ndarray:
    """Argmax ⟨g, η⟩ over ‖η / w‖_p ≤ eps without bounds, by the condition for equality in Hölder's inequality."""
    w = np.ones_like(g) if w is None else w
    a = np.abs(w * g)
    if p == 1.0:
        u = np.zeros_like(a)
        u[a.argmax()] = 1.0
    elif p == math.inf:
        u = np.ones_like(a)
    else:
        u = (a / a.max()) ** (1.0 / (p - 1.0))
        u = u / np_norm(u, p)
    return eps * np.sign(g) * w * u


def np_softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def np_gain(objective: eb.Objective, outputs: np.ndarray, target: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """The gain of each objective, written out again; `clean` are the outputs at the unperturbed input."""
    if isinstance(objective, eb.Ensemble):  # judged on the model under attack
        return np_gain(objective.objective, outputs, target, clean)
    objective = np_resolved(objective, target)
    if isinstance(objective, eb.SquaredError):
        return ((outputs - target) ** 2).reshape(len(outputs), -1).sum(1)
    rows = np.arange(len(outputs))
    own = outputs[rows, target]
    if isinstance(objective, eb.TrueScore):
        return -own
    if isinstance(objective, eb.CrossEntropy):
        top = outputs.max(1)
        return np.log(np.exp(outputs - top[:, None]).sum(1)) + top - own
    if isinstance(objective, eb.TargetedMargin):
        return outputs[rows, np_label(objective, target, clean)] - own
    if isinstance(objective, (eb.Margin, eb.Ranked)):
        others = outputs.copy()
        others[rows, target] = -np.inf
        return others.max(1) - own
    raise NotImplementedError(f"write the gain of {objective!r} out here")


def np_resolved(objective: eb.Objective, target: np.ndarray) -> eb.Objective:
    """What the kind of the target chooses: labels the classification, reference outputs the regression."""
    if not isinstance(objective, eb.ByTarget):
        return objective
    return objective.classification if target.dtype.kind == "i" else objective.regression


def np_label(objective: eb.TargetedMargin, target: np.ndarray, clean: np.ndarray) -> np.ndarray:
    if isinstance(objective.label, Tensor):
        return objective.label.numpy()
    if isinstance(objective.label, int):
        return np.full(len(target), objective.label)
    others = clean.copy()
    others[np.arange(len(target)), target] = -np.inf if objective.label == "runner-up" else np.inf
    return others.argmax(1) if objective.label == "runner-up" else others.argmin(1)


def np_success(objective: eb.Objective, outputs: np.ndarray, target: np.ndarray, clean: np.ndarray) -> np.ndarray:
    objective = np_resolved(objective, target)
    if isinstance(objective, eb.SquaredError):
        return np_gain(objective, outputs, target, clean) > objective.threshold
    if isinstance(objective, eb.TargetedMargin):
        return outputs.argmax(1) == np_label(objective, target, clean)
    return outputs.argmax(1) != target


# ------------------------------------------------------------------------------------------------------------ counting


class Counting:
    """A plain callable around a model that counts, from outside, the rows of every forward and backward pass."""

    def __init__(self, model: Callable[[Tensor], Any]) -> None:
        self.model = model
        self.calls: list[int] = []
        self.forwards = 0
        self.backwards = 0

    def __call__(self, x: Tensor) -> Any:
        self.calls.append(len(x))
        self.forwards += len(x)
        if x.requires_grad:
            x.register_hook(self._backward)
        return self.model(x)

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class Failing(nn.Module):
    """A network that raises at its n-th forward pass."""

    def __init__(self, model: nn.Module, fails_at: int) -> None:
        super().__init__()
        self.inner, self.fails_at, self.calls = model, fails_at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("the model fails here")
        return self.inner(x)
