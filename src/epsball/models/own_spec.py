"""What is known of a model before it is loaded: the catalogue's row, or one that leaves its shapes open."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NoReturn

from epsball import networks
from epsball.models.reference import parse
from epsball.networks import NetworkSpec, TrainingRecipe

__all__ = ["OwnSpec", "opened", "spec_of"]


@dataclass(frozen=True)
class OwnSpec(NetworkSpec):
    """A model of the user's: samples of any shape until it is loaded and tried, and no data set of its own."""

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether inputs may have this shape: the model itself will say."""
        return True


def spec_of(text: str, task: str | None = None) -> NetworkSpec:
    """Return the row of the catalogue, or one for a model of one's own with this task, by default classification.

    InputError for text that means no model; no file is read.
    """
    if not parse(text).own:
        return networks.spec(text)
    return OwnSpec(
        name=text,
        summary="a model of your own",
        data="",
        input_shape=(1, 1, 1),
        outputs=0,
        task="regression" if task == "regression" else "classification",
        reference="",
        build=_not_built,
        recipe=TrainingRecipe(epochs=0, batch_size=1, learning_rate=0.0, weight_decay=0.0),
    )


def opened(spec: NetworkSpec, input_shape: tuple[int, ...], outputs: int) -> OwnSpec:
    """Return the row with the shapes that were found when the model was tried, around whatever was wrapped."""
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(NetworkSpec)}
    return OwnSpec(**fields | {"input_shape": input_shape, "outputs": outputs, "pairs": None, "maps": None})


def _not_built() -> NoReturn:
    raise NotImplementedError("a model of one's own is loaded, not built")
