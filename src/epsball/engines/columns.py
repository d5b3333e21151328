"""The columns of results: what is measured of one attack's result, for each sample of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epsball.attack import Attack
from epsball.errors import Status
from epsball.metrics.psnr import psnr
from epsball.objectives import as_objective, two_class
from epsball.result import AttackResult
from epsball.sets import Groups
from epsball.sets.base import ConstraintSet
from epsball.target_model import TargetModel
from epsball.tensors import norm

__all__ = ["NO_GROUPS", "STATUSES", "Array", "as_array", "classified", "measured", "regressed", "transferred"]

Array = np.ndarray[Any, Any]
NO_GROUPS = -1
STATUSES = tuple(status.name for status in Status)
_CODE = {status: code for code, status in enumerate(Status)}


def measured(x: Tensor, result: AttackResult, constraint: ConstraintSet, peak: float) -> dict[str, Tensor]:
    """Return the columns that depend neither on the task nor on who judges; groups: that changed, -1 of a ball."""
    eta = result.perturbation
    groups = torch.full((len(x),), NO_GROUPS, dtype=torch.int64)
    if isinstance(constraint, Groups):
        groups = constraint.count(eta)
    return {
        "norm": result.norm,
        "norm_l1": norm(eta, 1.0),
        "norm_l2": norm(eta, 2.0),
        "norm_linf": norm(eta, math.inf),
        "groups": groups,
        "psnr_in": psnr(x, result.perturbed, peak),
        "exact": result.exact,
        "forwards": result.forwards,
        "backwards": result.backwards,
        "jvps": result.jvps,
        "seconds": torch.full((len(x),), result.seconds / len(x), dtype=torch.float64),
    }


def classified(result: AttackResult, success: Tensor) -> dict[str, Tensor]:
    """Return what the classifier under attack says; a minimal-norm success outside eps is beyond it."""
    beyond = (result.success & ~success).cpu()
    return {
        "prediction": two_class(result.outputs).argmax(1),
        "success": success,
        "gain": result.gain,
        "status": torch.where(beyond, _CODE[Status.BEYOND], _codes(result)),
    }


def regressed(result: AttackResult, y: Tensor, error: Tensor, peak: float) -> dict[str, Tensor]:
    """Return how far the output moved from the reference y (B, *O); error: ‖f(x) - y‖², peak: the range of y."""
    return {
        "success": result.success,
        "gain": result.gain,
        "error_increase": result.gain - error,
        "psnr_out": psnr(y, result.outputs, peak),
        "status": _codes(result),
    }


def transferred(
    attack: Attack, model: Callable[[Tensor], Any], target: Tensor, result: AttackResult
) -> dict[str, Tensor]:
    """Return what another classifier says of inputs that were crafted elsewhere."""
    objective = as_objective(attack.objective)
    with TargetModel(model) as judge, torch.no_grad():
        outputs = two_class(judge(result.perturbed))
        gain, success = objective.gain(outputs, target), objective.success(outputs, target)
    outside = result.having(Status.CONSTRAINT_VIOLATED)
    success = success & ~outside
    ended = torch.where(success, _CODE[Status.SUCCESS], _CODE[Status.STANDS])
    return {
        "prediction": outputs.argmax(1),
        "success": success,
        "gain": gain,
        "status": torch.where(outside, _CODE[Status.CONSTRAINT_VIOLATED], ended),
    }


def as_array(values: Tensor) -> Array:
    """Return the values on the CPU."""
    return values.detach().cpu().numpy()


def _codes(result: AttackResult) -> Tensor:
    return torch.tensor([_CODE[status] for status in result.status])
