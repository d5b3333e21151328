"""One batch under attack: the models, the completed objective and target, and the linearisation at x."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from epsball.errors import EpsballWarning, InputError
from epsball.local_models import Expansion, GaussNewton, LocalModel
from epsball.objectives import Objective, two_class
from epsball.prepare import Prepared, prepared, settled
from epsball.randomness import Generators
from epsball.target_model import TargetModel, stacked
from epsball.validation import check_model, check_scores
from epsball.working_set import Largest, cut

__all__ = ["Problem", "look_like_probabilities"]

_SOME = 8  # samples from which on a common sign is no accident


class Problem:
    """One batch under attack: the models, the completed objective and target, and the linearisation at x."""

    def __init__(
        self,
        judge: TargetModel,
        surrogates: list[TargetModel],
        objective: Objective,
        x: Tensor,
        target: Tensor | None,
        streams: Generators,
    ) -> None:
        self.judge, self.x, self.streams = judge, x, streams
        self.transfers, self._models = bool(surrogates), surrogates or [judge]
        self.crafter = stacked(surrogates) if surrogates else judge
        self.convolutional = any(m.convolutional for m in self._models)
        self.prepared: str | None = None  # how the copies that are crafted on were made
        self._gap = 0.0
        largest = Largest()
        # One sample is enough to know the outputs' shape; the whole batch only where its outputs are needed.
        whole = target is None or objective.needs_clean
        raw = _probe(judge, x, largest, whole=whole)
        objective = objective.resolve(raw, target)
        self.classifies = objective.classifies
        if self.classifies:
            _check_classifier(raw, target, len(x))
        outputs = two_class(raw) if self.classifies else raw
        self.clean_forwards = int(whole)
        self.target = objective.check(outputs, target, len(x))
        self.objective = objective.prepare(outputs, self.target) if whole else objective
        if self.classifies:
            _warn_of_probabilities(judge, raw, x)
        for surrogate in surrogates:
            check_model(surrogate.model, x)
            raw = _probe(surrogate, x, largest, whole=False)
            scores = check_scores(two_class(raw), 1, what="each surrogate")
            if scores.shape[1] != outputs.shape[1]:
                raise InputError(
                    f"expected surrogates with the judged model's {outputs.shape[1]} classes, got {scores.shape[1]}."
                )
            _warn_of_probabilities(surrogate, raw, x)
        self._first: Expansion | GaussNewton | None = None
        # In parts random draws would be others.
        self._largest = 0 if any(m.randomised for m in (judge, *surrogates)) else largest.bytes

    def prepare(self, how: str, bounds: tuple[float | Tensor, float | Tensor] | None) -> None:
        """Craft on copies of the models, made as `epsball.prepare` says; what is judged stays with the model itself."""
        # Mapped in C, without a frame: a warning names the caller's line.
        some = self.x[cut(len(self.x), self._largest)[0]]
        models = list(map(partial(prepared, x=some, prepare=how, bounds=bounds), self._models))
        copies = [model if isinstance(model, Prepared) else None for model in models]
        forms = ["none" if made is None else "+".join(made.form) for made in copies]
        self._gap = max(0.0 if made is None else made.gap for made in copies)
        self.crafter = stacked(models) if self.transfers else models[0]
        self.prepared = None if set(forms) == {"none"} else ", ".join(dict.fromkeys(forms))

    def parts(self) -> Iterator[tuple[Tensor, Problem]]:
        """Yield parts of the batch that pass through the models the faster for being small, and who is in them."""
        everyone = torch.arange(len(self.x), device=self.x.device)
        slices = cut(len(self.x), self._largest)
        for rows in slices:
            yield everyone[rows], self if len(slices) == 1 else self.take(everyone[rows])

    def take(self, index: Tensor) -> Problem:
        """Keep some samples, and what is known of them."""
        part = copy.copy(self)
        part.x, part.target, part.streams = self.x[index], self.target[index], self.streams.take(index)
        part.objective = self.objective.take(index)
        part._first = None if self._first is None else self._first.take(index)
        return part

    def turned(self, objective: Objective) -> Problem:
        """Return the same problem with another objective of the same task."""
        part = copy.copy(self)
        part.objective, part._first = objective, None
        return part

    def outputs(self, x: Tensor) -> Tensor:
        """Compute the judged model's outputs without a graph."""
        with torch.no_grad():
            outputs = self.judge(x)
        return two_class(outputs) if self.classifies else outputs

    def craft_outputs(self, x: Tensor) -> Tensor:
        """Compute the outputs that are linearised, without a graph."""
        with torch.no_grad():
            return self.craft(x)

    def craft(self, x: Tensor) -> Tensor:
        """Compute the outputs that are linearised."""
        outputs = self.crafter(x)
        return two_class(outputs) if self.classifies else outputs

    def expand(
        self,
        model: LocalModel,
        objective: Objective,
        point: Tensor,
        target: Tensor,
        candidates: Callable[[Tensor], Tensor] | None = None,
    ) -> Expansion | GaussNewton:
        """Linearise at a point."""
        found = model.expand(
            self.craft, objective, point, target, convolutional=self.convolutional, candidates=candidates
        )
        if self.prepared is None or self.transfers:
            return found
        return settled(found, self.outputs, objective, point, target, self._gap)

    def first(self, model: LocalModel, keep: bool) -> Expansion | GaussNewton:
        """Linearise the whole batch at x itself: the same for every budget, so made once if it is kept."""
        if self._first is not None:
            return self._first.recounted()
        expansion = self.expand(model, self.objective, self.x, self.target)
        if keep:
            self._first = expansion
        return expansion


def _probe(model: TargetModel, x: Tensor, largest: Largest, *, whole: bool) -> Tensor:
    """Return the outputs of the first sample, or of the whole batch, of a model that treats each sample alone.

    Refuses dropout, batch statistics and whatever else makes a sample's output change from call to call or with the
    samples beside it: the first sample must come out the same alone and beside others, up to rounding.
    """
    if model.randomised:
        with torch.no_grad():
            return model(x if whole else x[:1])
    # Half a sample is another one, and as good an input as the sample where entries count or name something.
    pair = x[:2] if len(x) > 1 else torch.cat([x, 0.5 * x])
    with torch.no_grad():
        try:
            with largest.watch(model, x):
                alone = model(x[:1])
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise _dependent("normalises with the statistics of the batch") from error
            raise
        slices = cut(len(x), largest.bytes)
        parts = [model(x[rows]) for rows in slices] if whole and len(x) > 1 else [alone]
        beside = parts[0] if len(parts[0]) > 1 else model(pair)
        for found in (beside, *parts):
            if found.shape[1:] != alone.shape[1:]:
                raise InputError(
                    f"expected outputs (B, *O) with the same O for every batch, got {tuple(alone.shape)} for one "
                    f"sample and {tuple(found.shape)} for {len(found)}; keep the batch as the first dimension."
                )
        if _differ(alone, beside[:1], x):
            random = _differ(alone, model(x[:1]), x)
            raise _dependent("changes from call to call" if random else "changes with the samples beside it")
    return torch.cat(parts)


def _differ(a: Tensor, b: Tensor, x: Tensor) -> bool:
    """Tell whether outputs differ by more than rounding, of numbers of their own size or of a sum of the inputs'."""
    if not a.is_floating_point():
        return not torch.equal(a, b)
    kind, known = a.dtype, a.isfinite() & b.isfinite()
    a, b = a[known].double(), b[known].double()
    if not a.numel():
        return False
    # float32 leaves room for kernels that multiply in TF32, and choose another algorithm for another batch.
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-2}.get(kind, 1e-1)
    scale = max(float(a.abs().max()), float(b.abs().max()), 1e-4 * float(x.abs().max()))
    return float((a - b).abs().max()) > tolerance * scale


def _dependent(how: str) -> InputError:
    return InputError(
        f"expected a model whose output for a sample depends on that sample alone, but it {how}; give its dropout and "
        "batch norm training=self.training (or training=False), and draw no random numbers in its forward. If it is "
        "random by design, attack the mean over its draws: eb.TargetModel(model, draws=20), or --eot 20."
    )


_REGRESSION = (
    "for a regression model use a recipe such as 'quadratic-lp' or 'linear-lp-10', or eb.Attack(constraint=..., "
    "objective=eb.SquaredError())"
)


def _check_classifier(outputs: Tensor, target: Tensor | None, batch: int) -> None:
    """Refuse outputs and targets of a regression model where the objective is one of classes, before any work."""
    if isinstance(target, Tensor) and target.is_floating_point():
        raise InputError(
            f"expected target as class indices in int64, got {target.dtype} of shape {tuple(target.shape)}; use "
            f"target.long() if they are class indices; {_REGRESSION}."
        )
    if not isinstance(outputs, Tensor):
        return
    if outputs.dim() != 2:
        raise InputError(
            f"expected the model to return class scores (B, K), or one logit (B, 1) for two classes, got "
            f"{(batch, *outputs.shape[1:])}; {_REGRESSION}."
        )
    if outputs.shape[1] != 1:
        return
    integers = isinstance(target, Tensor) and not target.is_complex() and target.dtype != torch.bool
    if isinstance(target, Tensor) and integers and bool(((target < 0) | (target > 1)).any()):
        raise InputError(
            "expected class 0 or 1 for a model that returns one number a sample, taken for the logit of two classes, "
            f"got targets from {int(target.min())} to {int(target.max())}; {_REGRESSION}."
        )
    if target is None and len(outputs) >= _SOME and bool((outputs > 0).all() | (outputs < 0).all()):
        warnings.warn(
            f"the model returns one number a sample, taken for the logit of two classes, and all {len(outputs)} are "
            f"{'above' if bool((outputs > 0).all()) else 'below'} 0, one class; {_REGRESSION}.",
            EpsballWarning,
            stacklevel=6,
        )


def look_like_probabilities(model: Callable[[Tensor], Tensor], outputs: Tensor, x: Tensor) -> bool:
    """Tell whether a model seems to end in a softmax or a sigmoid, from its outputs (b, K) for the first samples."""
    if outputs.dim() != 2:
        return False
    if outputs.shape[1] == 1 and bool(((outputs >= 0) & (outputs <= 1)).all()) and len(x) >= 8:
        # One logit may lie in [0, 1] by chance, many do not.
        with torch.no_grad():
            some = model(x[:32])
        return bool(((some >= 0) & (some <= 1)).all())
    return bool(((outputs >= 0).all(1) & ((outputs.sum(1) - 1.0).abs() < 1e-4)).all())


def _warn_of_probabilities(model: TargetModel, outputs: Tensor, x: Tensor) -> None:
    if look_like_probabilities(model, outputs, x):
        warnings.warn(
            "the model's outputs look like probabilities (softmax or sigmoid): attacks want logits, since saturated "
            "probabilities have no gradient and one probability is always above 0; leave that layer out of the model.",
            EpsballWarning,
            stacklevel=6,
        )
