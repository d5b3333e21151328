"""How many pixels each library changes to fool a network: `nearest` over pixels, and the peers on single entries.

.venv-peers/bin/python benchmarks/fewest_pixels.py --network mnist-lenet5 --samples 50 --passes 100

A pixel counts once whichever of its channels changed. Success and pixels are recomputed from the returned tensors, and
passes are counted by a module around the model. A sample that an attack does not fool counts with all its pixels.
`--passes` is the number of gradients; attacks that count otherwise are given the steps that come closest, and what they
took is in the table. Beside the peers: `linear-pixel-k` at k = 1, 2, 4, ... with an equal share of the gradients each,
the first k that succeeds.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from benchmarks.peers import networks
from benchmarks.peers.counting import Counting
from benchmarks.peers.environment import prepare
from torch import Tensor, nn

import epsball as eb

Run = Callable[[nn.Module, Tensor, Tensor, int], Tensor]


def nearest(model: nn.Module, x: Tensor, y: Tensor, passes: int) -> Tensor:
    return eb.recipe("nearest", groups="pixels", bounds=(0.0, 1.0), passes=passes)(model, x, y).perturbed


def doubled(model: nn.Module, x: Tensor, y: Tensor, passes: int) -> Tensor:
    """Run the group recipe at growing k, each time on the samples that are left."""
    found, left = x.clone(), torch.arange(len(x))
    number = x.shape[2] * x.shape[3]
    sizes = [2**i for i in range(int(math.log2(number)) + 1)]
    steps = max(1, passes // (9 * len(sizes)))  # nine class gradients a step
    for k in sizes:
        each = max(1, k // steps)
        attack = eb.recipe(f"linear-pixel-{k // each}", k=each, eps=1.0, bounds=(0.0, 1.0))
        result = attack(model, x[left], y[left])
        found[left[result.success]] = result.perturbed[result.success]
        left = left[~result.success]
        if len(left) == 0:
            break
    return found


def of_adv_lib() -> dict[str, Run]:
    from adv_lib import attacks as al

    return {
        "adv-lib sigma-zero": lambda m, x, y, passes: al.sigma_zero(m, x, y, num_steps=passes),
        "adv-lib FMN l0": lambda m, x, y, passes: al.fmn(m, x, y, 0, steps=passes),
        "adv-lib PDPGD l0": lambda m, x, y, passes: al.pdpgd(m, x, y, 0, num_steps=passes),
    }


def of_foolbox() -> dict[str, Run]:
    import foolbox

    def run(attack: object) -> Run:
        def one(m: nn.Module, x: Tensor, y: Tensor, passes: int) -> Tensor:
            made = attack(passes)  # type: ignore[operator]
            wrapped = foolbox.PyTorchModel(m, bounds=(0.0, 1.0), device=x.device)
            return made(wrapped, x, foolbox.criteria.Misclassification(y), epsilons=None)[1]

        return one

    return {
        "Foolbox FMN l0": run(lambda passes: foolbox.attacks.L0FMNAttack(steps=passes)),
        "Foolbox Brendel-Bethge l0": run(lambda passes: foolbox.attacks.L0BrendelBethgeAttack(steps=passes)),
    }


def of_torchattacks() -> dict[str, Run]:
    import torchattacks

    return {
        "torchattacks SparseFool": lambda m, x, y, passes: torchattacks.SparseFool(m, steps=max(1, passes // 10))(x, y)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="mnist-lenet5", choices=sorted(networks.SUBJECTS))
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--passes", type=int, default=100)
    parser.add_argument("--only", default="", help="run the rows whose name contains this")
    arguments = parser.parse_args()
    prepare()
    torch.manual_seed(0)
    runs: dict[str, Run] = {"epsball nearest": nearest, "epsball linear-pixel-k": doubled}
    for library in (of_adv_lib, of_foolbox, of_torchattacks):
        try:
            runs |= library()
        except ImportError as error:
            print(f"{library.__name__[3:]} could not be imported: {error}")
    model = networks.load(arguments.network)
    x, y, _ = networks.samples(arguments.network, model, arguments.samples)
    print(f"{arguments.network}, {len(x)} samples, {arguments.passes} gradients")
    print(f"{'attack':28} {'mean':>7} {'median':>7} {'fooled':>7} {'forwards':>9} {'backwards':>9}")
    for name, run in runs.items():
        if arguments.only not in name:
            continue
        counting = Counting(model)
        try:
            perturbed = run(counting, x.clone(), y.clone(), arguments.passes).detach()
        except Exception as error:  # a peer's own: it is a row of the table
            print(f"{name:28} {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        with torch.no_grad():
            fooled = (model(perturbed).argmax(1) != y) & ((perturbed >= 0) & (perturbed <= 1)).flatten(1).all(1)
        pixels = (perturbed != x).any(1).flatten(1).sum(1).double()
        pixels = torch.where(fooled, pixels, float(x[0, 0].numel()))
        passes = counting.forwards / len(x), counting.backwards / len(x)
        print(
            f"{name:28} {pixels.mean():7.2f} {pixels.median():7.1f} {fooled.double().mean():7.2f} "
            f"{passes[0]:9.1f} {passes[1]:9.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
