"""The full configuration of a run: validated when made, and the same after a round trip through JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from epsball.attack import Attack
from epsball.errors import InputError
from epsball.experiments.config_text import command_line, from_plain, plain
from epsball.experiments.tasks import check_attack, check_engine, check_surrogates, check_target, check_task, partition
from epsball.local_models import Quadratic
from epsball.metrics.fooling import check_grid
from epsball.models import Output, OwnSpec, Preprocessing, read_size, spec_of
from epsball.networks import NetworkSpec
from epsball.prepare import check_prepare
from epsball.recipes import Recipe, find, recipe
from epsball.validation import check_bounds, check_count, check_p, check_seed

__all__ = ["COMMANDS", "RunConfig"]

COMMANDS = ("evaluate", "attack", "robustness", "demo")
DTYPES = ("float32", "float64")
PIXELS = "pixels"  # the groups of group attacks where nothing is said
SHARD = 1000  # samples, at least, where nothing is said

Model = Callable[[Tensor], Tensor]


def _takes_steps(row: Recipe) -> bool:
    """Tell whether the number of steps is chosen from outside."""
    return row.iterative and "passes" not in row.options


@dataclass(frozen=True)
class RunConfig:
    """What is run, without where the results go.

    command      "evaluate", "attack", "robustness" or "demo"
    model        a network of the catalogue, or one's own as in `models.load_model`; weights: a file, None for those
                 that come with epsball or with the model
    data         a data set of the catalogue, a path, a URL or Python code, None for the network's own; split,
                 data_root, limit, skip_bad, x_columns, y_columns: as in `data.load`
    attacks      names of the catalogue, in the order of the tables
    shard_size   samples after which what was measured is kept for `resume`; None: 1,000, in whole batches
    eps          increasing budgets; may be left empty where every attack is minimal-norm: then the grid comes from what
                 they find
    p            the norm order of all attacks: one whose norm is its own (random-l1: 1; random-l2: 2; random-linf and
                 group attacks: inf) is refused beside others
    engine       "local", or "ray": a pool of `workers` actors, each with the models on `cpus` threads (or on a GPU, if
                 the device is cuda), of the Ray at `address`; None: as many as fit, of one started on this machine
    eot          draws of a model that draws random numbers, over whose mean it is attacked and judged
    prepare      how a faster copy of the model is made for the passes, as in `Attack`
    steps        of every attack whose name and recipe leave it open; None: each recipe's own
    passes       the budget of the attacks that divide it into steps themselves; None: each recipe's own
    groups, k    of group attacks: "pixels", "patches:4" or "channels", and how many of them change (a step, where there
                 are several); None: one pixel. With groups, "nearest" is one of them and changes as few as it can
    bounds       "data" for the range of the data set, a pair, or None for no range
    lattice      perturbed inputs lie on the points lo + (hi - lo) k / lattice of the bounds, 255 for 8-bit images
    save         "png": of an "attack" run, every perturbed image at the largest eps as a file too; needs lattice 255
    surrogates   networks that `ensemble` is crafted on; transfer: craft one attack on every network, judge on all
    task         "classification" or "regression"; None, and after construction never: the network's own
    target       of a regression run, the reference outputs y: "data", "input" (y = x) or "output" (y := f(x)); None:
                 the data's own where they have some, else the input for a network trained to give it back, else the
                 output. For a network whose inputs and outputs are both made of the data, such as grey images and
                 colours, "data" stands for those outputs

    mean, std, resize, channel_order  preprocessing inside the model, as in `models.Preprocessing`; resize as "224x224"
    output       which part of the model's outputs counts, as in `models.Output`

    Raises InputError for whatever can be refused without reading a file.
    """

    command: str
    model: str
    attacks: tuple[str, ...]
    eps: tuple[float, ...] = ()
    p: float = math.inf
    steps: int | None = None
    passes: int | None = None
    bounds: tuple[float, float] | Literal["data"] | None = "data"
    data: str | None = None
    split: str = "test"
    weights: str | None = None
    data_root: str | None = None
    limit: int | None = None
    batch_size: int = 500
    shard_size: int | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    lattice: int | None = None
    save: str | None = None
    surrogates: tuple[str, ...] = ()
    transfer: bool = False
    task: str | None = None
    target: str | None = None
    groups: str | None = None
    k: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: str | None = None
    channel_order: str = "rgb"
    output: str | None = None
    x_columns: tuple[str, ...] = ()
    y_columns: tuple[str, ...] = ()
    skip_bad: bool = False
    eot: int = 1
    prepare: str | None = None
    engine: str = "local"
    address: str | None = None
    workers: int | None = None
    cpus: int = 1

    def __post_init__(self) -> None:
        """Refuse names, numbers and combinations that cannot be run."""
        if self.command not in COMMANDS:
            raise InputError(f"expected command as one of {', '.join(COMMANDS)}, got {self.command!r}.")
        spec = spec_of(self.model, self.task)
        object.__setattr__(self, "task", check_task(self.task, spec, self.command))
        if isinstance(spec, OwnSpec) and not self.data:
            raise InputError(f"expected data for {self.model}, a model of your own, got none; give --data.")
        size = None if self.resize is None else read_size(self.resize)
        Preprocessing(self.mean or None, self.std or None, size, self.channel_order)
        if self.output is not None:
            Output(self.output)
        check_target(self.target, self.regresses)
        check_engine(self.engine, self.address, self.workers, self.cpus)
        if self.dtype not in DTYPES:
            raise InputError(f"expected dtype as {' or '.join(DTYPES)}, got {self.dtype!r}.")
        check_p(self.p)
        check_seed(self.seed)
        check_count("batch_size", self.batch_size)
        check_count("eot", self.eot)
        object.__setattr__(self, "prepare", check_prepare(self.prepare))
        for name in ("steps", "passes", "limit", "lattice", "shard_size", "k"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.bounds != "data":
            check_bounds(self.bounds)
        if self.save is not None and (self.save != "png" or self.command != "attack" or self.lattice != 255):
            raise InputError(
                f"expected save as 'png', in the command attack and with lattice=255, got save={self.save!r}, "
                f"{self.command} and lattice={self.lattice}; what is rounded afterwards may no longer fool the model."
            )
        if self.bounds is None and self.lattice is not None:
            raise InputError(f"expected bounds with lattice={self.lattice}, whose points lie between them; got none.")
        if self.eps:
            check_grid(self.eps)
        self._check_attacks()
        check_surrogates(self.model, self.attacks, self.surrogates, transfer=self.transfer, regresses=self.regresses)
        if self.transfer:
            _ = self.transferred

    def _check_attacks(self) -> None:
        if not self.attacks:
            raise InputError("expected at least one attack, got none; `epsball list attacks` names them.")
        twice = next((name for name in self.attacks if self.attacks.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"expected each attack once, got {twice!r} twice; remove one.")
        rows = [(row.over(self.groups), named) for row, named in map(find, self.attacks)]
        for name in self.attacks:
            check_attack(name, self.regresses)
        over = [row for row, _ in rows if row.family == "groups"]
        if (self.groups is not None and not over) or (self.k is not None and all(r.formulation.follows for r in over)):
            raise InputError(
                f"expected a group attack to use groups={self.groups!r}, k={self.k}, got {', '.join(self.attacks)}; "
                "leave them out, or add one such as 'linear-pixel-3', or 'nearest', which takes no k."
            )
        budgeted = [name for name, (row, _) in zip(self.attacks, rows, strict=True) if row.formulation.budgeted]
        if budgeted and not self.eps:
            raise InputError(
                f"expected eps, the budgets in units of x, for {budgeted[0]!r}, got none; give --eps 0.05."
            )
        if self.passes is not None and not any("passes" in row.options for row, _ in rows):
            raise InputError(
                f"expected an attack with a budget of passes to use passes={self.passes}, got "
                f"{', '.join(self.attacks)}; leave passes out, or add 'best' or 'nearest'."
            )
        if self.steps is not None and not any(_takes_steps(row) and named is None for row, named in rows):
            raise InputError(
                f"expected an attack whose steps are open, got steps={self.steps} for {', '.join(self.attacks)}; "
                "leave steps out, or name one such as 'pgd' or 'alg1-10'."
            )
        for name in self.attacks:
            attack = self.compose(name, None, [_unset])
            if self.eot > 1 and isinstance(attack.local_model, Quadratic):
                raise InputError(
                    f"expected attacks on the linear model with eot={self.eot}, got {name!r}, whose Jacobian is that "
                    "of one function; use one such as 'linear-lp-10'."
                )

    @property
    def spec(self) -> NetworkSpec:
        """The catalogue's row of the model; of one's own model, one that leaves its shapes open."""
        return spec_of(self.model, self.task)

    @property
    def wraps(self) -> bool:
        """Whether the model is one's own, or has preprocessing or a choice of outputs around it."""
        changed = (self.mean, self.std, self.resize, self.output) != ((), (), None, None) or self.channel_order != "rgb"
        return changed or isinstance(self.spec, OwnSpec)

    @property
    def samples_a_shard(self) -> int:
        """How many samples a shard has: in whole batches, if it is not said."""
        return self.shard_size or self.batch_size * math.ceil(SHARD / self.batch_size)

    @property
    def regresses(self) -> bool:
        """Whether this is a regression run."""
        return self.task == "regression"

    @property
    def transferred(self) -> str:
        """The attack of the transfer table: the first iterative one with a budget, else the first with a budget."""
        fit = [
            name
            for name in self.attacks
            for row in [find(name)[0]]
            if row.formulation.budgeted
            and row.formulation.uses_model
            and not {"surrogates", "label"} & set(row.options)  # those depend on more than the network
        ]
        if not fit:
            raise InputError(
                f"expected a norm-constrained attack to transfer, got {', '.join(self.attacks)}; add one such as 'pgd'."
            )
        return next((name for name in fit if find(name)[0].iterative), fit[0])

    def compose(
        self,
        name: str,
        bounds: tuple[float, float] | None,
        surrogates: Sequence[Model],
        *,
        stop: str | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Attack:
        """Compose one of the attacks inside these bounds; its budget is set for each eps later.

        shape: of a sample, where it is not the one that the network was made for.
        """
        row, named = find(name)
        options: dict[str, Any] = {"surrogates": list(surrogates)} if "surrogates" in row.options else {}
        if "passes" in row.options and self.passes is not None:
            options["passes"] = self.passes
        row = row.over(self.groups)
        if row.family == "groups":
            options["groups"] = partition(self.groups or PIXELS, shape or self.spec.input_shape)
            options |= {} if row.formulation.follows else {"k": self.k or 1}
        return recipe(
            name,
            p=self.p,
            eps=self.eps[-1] if self.eps else None,
            steps=self.steps if _takes_steps(row) and named is None else None,
            bounds=bounds,
            # A bound of its own is known only with the data; then the set is composed again.
            lattice=self.lattice if bounds is not None else None,
            stop=stop,
            prepare=self.prepare,
            **options,
        )

    def command_line(self) -> str:
        """Return the command that runs this again."""
        return command_line(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that strict JSON can hold; infinity becomes "inf"."""
        return {key: plain(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> RunConfig:
        """Make the configuration again from what `to_dict` returned."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(content) - known)
        if unknown:
            raise InputError(f"expected a run configuration, got the unknown entry {unknown[0]!r}; remove it.")
        # Earlier versions wrote what is used where nothing was given.
        unsaid = all(find(name)[0].over_groups is None for name in content.get("attacks", ()))
        if unsaid and (content.get("groups"), content.get("k")) == (PIXELS, 1):
            content = content | {"groups": None, "k": None}
        try:
            return cls(**{key: from_plain(key, value) for key, value in content.items()})
        except TypeError as error:
            raise InputError(f"expected a complete run configuration: {error}.") from error


def _unset(x: Tensor) -> Tensor:
    """Stand for a surrogate while only the composition is checked."""
    raise InputError("expected the surrogates to be loaded before the attack runs.")
