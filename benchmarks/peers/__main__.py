"""python -m benchmarks.peers PART [options]: run a part, or draw the page from what has been run."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from benchmarks.peers import environment
from benchmarks.peers.environment import PARTS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument(
        "part",
        choices=(*PARTS, "quick", "page", "pack", "unpack"),
        help="quick: every part on few samples, with a page of its own under --runs; page: docs/peers.md from all "
        "finished cells; unpack: begin with the cells that the repository keeps; pack: keep those that are finished",
    )
    parser.add_argument("--networks", default="", help="comma-separated; default: all of the part's")
    parser.add_argument("--libraries", default="", help="comma-separated; default: all that can be imported")
    parser.add_argument("--recipes", default="", help="further epsball recipes, comma-separated")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--p", default="", help="norms, comma-separated: 1,2,inf")
    parser.add_argument("--budgets", default="", help="gradient steps, propagations or passes, comma-separated")
    parser.add_argument("--eps", type=float, help="of the part `autoattack`")
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="T of the part `overhead`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--redo", default="", help="LIBRARY or LIBRARY/ATTACK: forget its cells first")
    parser.add_argument("--runs", type=Path, help="where finished cells lie; default: runs/peers, or runs/peers-quick")
    arguments = parser.parse_args()
    quick = arguments.part == "quick"
    arguments.runs = arguments.runs or Path("runs/peers-quick" if quick else "runs/peers")

    environment.prepare()
    environment.code()  # before a commit can come between
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.part in ("pack", "unpack", "page"):
        _keep(arguments.part, arguments.runs)
        return
    for part in PARTS if quick else (arguments.part,):
        _run(part, arguments)
    if quick:
        from benchmarks.peers.page import make

        make(arguments.runs, arguments.runs)


def _keep(part: str, runs: Path) -> None:
    from benchmarks.peers.kept import pack, unpack
    from benchmarks.peers.page import make

    for name, count in (unpack if part == "unpack" else pack)(runs).items():
        print(f"{name}: {count} cells")
    if part == "page":
        unpack(runs)
        make(runs)


def _run(part: str, arguments: argparse.Namespace) -> None:
    from benchmarks.peers import adapters, cells
    from benchmarks.peers.autoattack import autoattack
    from benchmarks.peers.exact import exact
    from benchmarks.peers.fixed import fixed, minimal
    from benchmarks.peers.overhead import overhead
    from benchmarks.peers.silent import silent

    quick = arguments.part == "quick"
    samples = min(16, arguments.samples) if quick else arguments.samples
    root, batch_size = arguments.runs, arguments.batch_size
    rows = adapters.attacks(_words(arguments.libraries), _words(arguments.recipes))
    for library, error in adapters.failures.items():
        print(f"{library} cannot be imported: {error}", flush=True)
    if arguments.redo:
        print(f"forgot {cells.forget(root, part, arguments.redo)} cells")
    orders = {"orders": tuple(_order(word) for word in _words(arguments.p))} if arguments.p else {}
    budgets = tuple(int(word) for word in _words(arguments.budgets))
    names = _words(arguments.networks)
    attacked = _there(names or ("mnist-fcnn", "mnist-lenet5", "mnist-robust", "cifar10-resnet", "cifar10-nin"))
    if part == "fixed":
        steps = budgets or ((1, 10) if quick else ())
        fixed(rows, attacked, samples, root, batch_size=batch_size, **orders, **({"steps": steps} if steps else {}))
    elif part == "minimal":
        given = budgets or ((30,) if quick else ())
        minimal(rows, attacked, samples, root, batch_size=batch_size, **orders, **({"budgets": given} if given else {}))
    elif part == "exact":
        exact(rows, root)
    elif part == "overhead":
        repeats, batch = (1, 16) if quick else (arguments.repeats, 128)
        steps = 5 if quick else arguments.steps
        overhead(rows, names or ("mnist-lenet5", "cifar10-resnet"), root, repeats, steps, batch, **orders)
    elif part == "silent":
        silent(rows, root)
    elif not quick or (set(attacked) & {"mnist-robust"}):
        for p in orders.get("orders", (math.inf,)):
            given = {"passes": budgets} if budgets else {}
            autoattack(
                rows,
                _there(names or ("mnist-robust",)),
                samples,
                root,
                p,
                arguments.eps,
                batch_size=batch_size,
                **given,
            )


def _there(names: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out the networks without weights, and say so."""
    from benchmarks.peers import networks

    found = []
    for name in names:
        try:
            networks.load(name)
            found.append(name)
        except Exception as error:  # no weights yet
            print(f"{name} is left out: {error}", flush=True)
    return tuple(found)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _order(word: str) -> float:
    return math.inf if word == "inf" else float(word)


if __name__ == "__main__":
    main()
