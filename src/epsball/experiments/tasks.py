"""What the two tasks ask of a configuration: which networks, attacks and references belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from epsball.errors import InputError
from epsball.networks import NetworkSpec
from epsball.recipes import find
from epsball.sets import Partition, channels, patches, pixels
from epsball.validation import check_count

__all__ = [
    "TARGETS",
    "TASKS",
    "check_attack",
    "check_engine",
    "check_surrogates",
    "check_target",
    "check_task",
    "default_attacks",
    "partition",
]

TASKS = ("classification", "regression")
TARGETS = ("data", "input", "output")
ENGINES = ("local", "ray")


def default_attacks(task: str, p: float) -> tuple[str, ...]:
    """Return the attacks that are run where none is named: for each kind one, and noise where the norm has one."""
    if task == "classification":
        return ("deepfool", "alg1-10", "alg1", "fgsm", "pgd")
    noise = {1.0: ("random-l1",), 2.0: ("random-l2",), math.inf: ("random-linf",)}
    return ("quadratic-lp", "linear-lp-10", "linear-lp-1", *noise.get(p, ()))


def check_task(task: str | None, spec: NetworkSpec, command: str) -> str:
    """Return the network's task; refuse another one, and a command that is not for it."""
    if task is not None and task not in TASKS:
        raise InputError(f"expected task as {' or '.join(map(repr, TASKS))}, got {task!r}; leave it out.")
    if task not in (None, spec.task):
        raise InputError(
            f"expected task {spec.task!r}, that of the network {spec.name}, got {task!r}; leave it out, or choose a "
            "network for it (`epsball list networks`)."
        )
    if spec.task == "regression" and command == "robustness":
        raise InputError(
            f"expected a classifier for robustness, which measures distances to a wrong class, got {spec.name}, a "
            "regression model; use `epsball evaluate`, which measures how far its output moves."
        )
    return spec.task


def check_target(target: str | None, regresses: bool) -> None:
    """Refuse a reference that does not exist, or one for a classifier."""
    if target is not None and target not in TARGETS:
        raise InputError(f"expected target as one of {', '.join(map(repr, TARGETS))}, got {target!r}; or leave it out.")
    if target is not None and not regresses:
        raise InputError(
            f"expected no target for a classifier, whose reference is the class, got {target!r}; leave it out."
        )


def check_engine(engine: str, address: str | None, workers: int | None, cpus: int) -> None:
    """Refuse an engine that does not exist, and what only Ray has of the other."""
    if engine not in ENGINES:
        raise InputError(f"expected engine as {' or '.join(map(repr, ENGINES))}, got {engine!r}.")
    check_count("cpus", cpus)
    if workers is not None:
        check_count("workers", workers)
    if address is not None and "://" in address:
        raise InputError(
            f"expected address as auto or HOST:PORT, on a machine of the cluster, got {address!r}: Ray's client is not "
            "used; run the command there, such as with `ray job submit`."
        )
    if engine == "local" and (address, workers, cpus) != (None, None, 1):
        raise InputError(
            f"expected --engine ray for address={address}, workers={workers}, cpus={cpus}, got the local engine, which "
            "takes the threads of the environment variable OMP_NUM_THREADS."
        )


def check_attack(name: str, regresses: bool) -> None:
    """Refuse an attack of the other task."""
    row, _ = find(name)
    if row.task == "any" or (row.task == "regression") == regresses:
        return
    kind, other = ("regression model", "class scores") if regresses else ("classifier", "reference outputs")
    instead = "'quadratic-lp', 'linear-lp-10'" if regresses else "'alg1-10', 'pgd'"
    raise InputError(
        f"expected an attack on a {kind}, got {name!r}, which needs {other}; use one such as {instead} "
        "(`epsball list attacks` shows the task of each)."
    )


def partition(text: str, shape: tuple[int, ...]) -> Partition:
    """Read "pixels", "patches:4" or "channels" for samples of this shape; of flat samples a pixel is an entry."""
    name, _, size = text.partition(":")
    flat = len(shape) == 1
    if name == "patches" and size.isdigit() and int(size) > 0:
        return patches(int(size), channel_dim=None if flat else 1)
    if name == "pixels" and not size:
        return patches(1, channel_dim=None) if flat else pixels(channel_dim=1)
    if name == "channels" and not size:
        return channels(channel_dim=1)
    raise InputError(f"expected groups as 'pixels', 'patches:SIZE' such as 'patches:4', or 'channels', got {text!r}.")


def check_surrogates(
    model: str, attacks: Sequence[str], surrogates: Sequence[str], *, transfer: bool, regresses: bool
) -> None:
    """Refuse surrogates that nothing uses, a use without surrogates, and a network that is named twice."""
    if regresses and (surrogates or transfer):
        raise InputError(
            f"expected no surrogates and no transfer for {model}: they are for classifiers; leave them out."
        )
    uses = [name for name in attacks if "surrogates" in find(name)[0].options]
    if uses and not surrogates:
        raise InputError(f"expected surrogates, the networks that {uses[0]!r} is crafted on, got none.")
    if transfer and not surrogates:
        raise InputError("expected surrogates to transfer to and from, got none; name the networks.")
    if surrogates and not uses and not transfer:
        raise InputError("expected 'ensemble' among the attacks, or transfer, to use the surrogates; got neither.")
    if len({model, *surrogates}) != 1 + len(surrogates):
        raise InputError(
            f"expected surrogates that differ from the model {model!r} and from each other, got "
            f"{', '.join(surrogates)}; remove the repeated name."
        )
