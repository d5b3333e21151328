"""Recipes called as other libraries call their attacks: torchattacks, and Foolbox 3."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from epsball.attack import Attack
from epsball.batch import place
from epsball.errors import InputError
from epsball.objectives import as_objective, two_class
from epsball.recipes import find, recipe
from epsball.sets import ConstraintSet, LpBall
from epsball.target_model import TargetModel
from epsball.tensors import expand

__all__ = ["FoolboxStyle", "TorchattacksStyle", "foolbox_style", "torchattacks_style"]

Model = Callable[[Tensor], Any]
UNIT = (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class TorchattacksStyle:
    """An attack bound to its model: images (B, *S), labels (B,) -> perturbed images (B, *S).

    attack: the composed attack; call it on the model for statuses, norms and counts.
    """

    model: Model = field(repr=False)
    attack: Attack

    def __call__(
        self, images: Tensor, labels: Tensor | None = None, *, seed: int = 0, sample_id: Tensor | None = None
    ) -> Tensor:
        """Return the perturbed images, on the model's device.

        labels: the true classes (B,), a reference output (B, *O), or None for the model's own output. seed, sample_id:
        as for an `Attack`; the same seed draws the same numbers, so give a training loop another one each time.
        """
        if isinstance(self.model, nn.Module) and (first := next(self.model.parameters(), None)) is not None:
            images = images.to(first.device)
            labels = None if labels is None else labels.to(first.device)
        return self.attack(self.model, images, labels, seed=seed, sample_id=sample_id).perturbed


def torchattacks_style(
    model: Model, name: str, *, bounds: tuple[float | Tensor, float | Tensor] | None = UNIT, **options: Any
) -> TorchattacksStyle:
    """Compose a recipe and bind it to a model, to be called as attack(images, labels) -> perturbed images.

    model: a module or callable, or a `TargetModel` with a selector. name, options: as for `recipe`. bounds: the valid
    range of the images, [0, 1] as in torchattacks, or None.

    >>> import epsball as eb
    >>> from epsball import data, networks
    >>> digits, model = data.load("digits", limit=4), networks.load("digits-cnn")
    >>> attack = eb.adapters.torchattacks_style(model, "pgd", eps=8 / 255, steps=10)
    >>> attack(digits.x, digits.target).shape == digits.x.shape
    True
    """
    return TorchattacksStyle(model, recipe(name, bounds=bounds, **options))


@dataclass(frozen=True, eq=False)
class FoolboxStyle:
    """A recipe whose model and budgets come with each call: (model, images, labels, epsilons) -> raw, clipped, success.

    bounds: the valid range of the images; None: the `.bounds` of the model, as Foolbox's models have them, else [0, 1].
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    bounds: tuple[float | Tensor, float | Tensor] | None = None

    def __call__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        *,
        epsilons: Iterable[float | None] | Tensor | float | None,
        seed: int = 0,
        sample_id: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor], Tensor] | tuple[Tensor, Tensor, Tensor]:
        """Return raw and clipped, a tensor (B, *S) for each of the E epsilons, and success (E, B) bool.

        For one number as epsilons: two tensors (B, *S) and success (B,). Success is judged on the clipped tensors.
        A recipe with a budget runs once for each epsilon, and what it returns needs no clipping. A minimal-norm recipe
        runs once: raw holds its result E times, clipped what is left of it within each epsilon (each entry clamped at
        p = inf, else the whole perturbation scaled); an epsilon of None leaves it as it is.
        """
        if not isinstance(labels, Tensor):
            raise InputError(
                f"expected labels as a tensor (B,), got {type(labels).__name__}; for a certain wrong class use the "
                "recipe 'targeted' with label=."
            )
        images = images.detach() if isinstance(images, Tensor) else images
        many = epsilons.tolist() if isinstance(epsilons, Tensor) else epsilons
        single = not isinstance(many, Iterable)
        given: list[Any] = list(many) if isinstance(many, Iterable) else [many]
        attack = self.attack(model)
        budgets = _budgets(given, attack, self.name)
        if attack.formulation.budgeted:
            found = attack.over(model, images, labels, eps=budgets, seed=seed, sample_id=sample_id)
            raw, success = [result.perturbed for result in found], torch.stack([result.success for result in found])
            clipped = list(raw)
        else:
            smallest = attack(model, images, labels, seed=seed, sample_id=sample_id).perturbed
            raw = [smallest] * len(budgets)
            clipped = [_clip(attack.constraint, images, smallest, eps) for eps in budgets]
            success = torch.stack([_judge(attack, model, perturbed, labels) for perturbed in clipped])
        return (raw[0], clipped[0], success[0]) if single else (raw, clipped, success)

    def attack(self, model: Model) -> Attack:
        """Compose the attack on images in the model's range; its eps is replaced at each call."""
        row, _ = find(self.name)
        own = getattr(model.model if isinstance(model, TargetModel) else model, "bounds", None)
        bounds = self.bounds if self.bounds is not None else UNIT if own is None else tuple(own)
        return recipe(self.name, eps=1.0 if row.needs_eps else None, bounds=bounds, **self.options)


def foolbox_style(
    name: str, *, bounds: tuple[float | Tensor, float | Tensor] | None = None, **options: Any
) -> FoolboxStyle:
    """Compose a recipe to be called as attack(model, images, labels, epsilons=[...]) -> raw, clipped, success.

    name, options: as for `recipe`, without eps. bounds: the valid range of the images; by default the `.bounds` of the
    model, as Foolbox's models have them, else [0, 1].

    >>> import epsball as eb
    >>> from epsball import data, networks
    >>> digits, model = data.load("digits", limit=4), networks.load("digits-cnn")
    >>> attack = eb.adapters.foolbox_style("deepfool", p=2.0)
    >>> raw, clipped, success = attack(model, digits.x, digits.target, epsilons=[0.5, 5.0])
    >>> len(clipped), tuple(success.shape), success[1].all().item()
    (2, (2, 4), True)
    """
    if "eps" in options:
        raise InputError("expected no eps for a Foolbox-style attack; give epsilons= when it is called.")
    made = FoolboxStyle(name, options, bounds)
    made.attack(nn.Identity())  # refuses now what the recipe does not take
    return made


def _budgets(given: list[Any], attack: Attack, name: str) -> list[float]:
    """Return the epsilons as numbers, inf for None where the attack can do without."""
    if not given:
        raise InputError("expected at least one number in epsilons, got none.")
    if attack.formulation.budgeted and any(eps is None for eps in given):
        raise InputError(f"expected numbers as epsilons of {name!r}, which needs a budget, got None.")
    try:
        return [math.inf if eps is None else float(eps) for eps in given]
    except (TypeError, ValueError) as error:
        raise InputError(f"expected epsilons as numbers in the units of the images, got {given!r}.") from error


def _clip(constraint: ConstraintSet, x: Tensor, perturbed: Tensor, eps: float) -> Tensor:
    """Bring a perturbation within eps as Foolbox does: entries clamped at p = inf, else scaled as a whole."""
    if eps == math.inf:
        return perturbed
    limited = constraint.with_eps(eps)
    eta = perturbed - x
    if isinstance(constraint, LpBall) and constraint.p == math.inf:
        return place(x, limited.project(eta, x), limited)
    size = constraint.size(eta)
    share = torch.where(size > eps, eps / torch.where(size > 0, size, 1.0), 1.0)
    return place(x, eta * expand(share, x), limited)


def _judge(attack: Attack, model: Model, perturbed: Tensor, labels: Tensor) -> Tensor:
    """Tell which samples are a success of the attack's objective, (B,) bool."""
    with TargetModel(model) as judge, torch.no_grad():
        outputs = two_class(judge(perturbed))
    return as_objective(attack.objective).success(outputs, labels.to(outputs.device))
