"""The Adversarial Robustness Toolbox 1.20: NumPy arrays in and out, one-hot labels, one batch."""

from __future__ import annotations

from typing import Any

import art.attacks.evasion as ev
import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from benchmarks.peers.adapters.row import FIXED, INF, MINIMAL, Attack, Job
from torch import Tensor, nn


def classifier(job: Job) -> PyTorchClassifier:
    return PyTorchClassifier(
        model=job.model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(job.x.shape[1:]),
        nb_classes=job.classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if job.x.device.type == "cpu" else "gpu",
    )


def _run(attack: Any, job: Job) -> Tensor:
    labels = np.eye(job.classes, dtype=np.float32)[job.y.cpu().numpy()]
    return torch.from_numpy(np.ascontiguousarray(attack.generate(job.x.cpu().numpy(), y=labels))).to(job.x)


def _order(p: float) -> Any:
    return np.inf if p == INF else p if p % 1 else int(p)


def _pgd(job: Job) -> Tensor:
    attack = ev.ProjectedGradientDescent(
        classifier(job),
        norm=_order(job.p),
        eps=job.radius,
        eps_step=2.5 * job.radius / job.budget,
        max_iter=job.budget,
        num_random_init=int(job.budget > 1),
        batch_size=len(job.x),
        verbose=False,
    )
    return _run(attack, job)


def _apgd(loss: str) -> Any:
    def run(job: Job) -> Tensor:
        attack = ev.AutoProjectedGradientDescent(
            classifier(job),
            norm=_order(job.p),
            eps=job.radius,
            eps_step=2.0 * job.radius,
            max_iter=job.budget,
            nb_random_init=1,
            batch_size=len(job.x),
            loss_type=loss,
            verbose=False,
        )
        return _run(attack, job)

    return run


def _acg(job: Job) -> Tensor:
    attack = ev.AutoConjugateGradient(
        classifier(job),
        norm=_order(job.p),
        eps=job.radius,
        eps_step=2.0 * job.radius,
        max_iter=job.budget,
        nb_random_init=1,
        batch_size=len(job.x),
        loss_type="difference_logits_ratio",
        verbose=False,
    )
    return _run(attack, job)


def _deepfool(job: Job) -> Tensor:
    steps = max(1, job.budget // (job.classes + 2))
    return _run(ev.DeepFool(classifier(job), max_iter=steps, batch_size=len(job.x), verbose=False), job)


def _ead(job: Job) -> Tensor:
    attack = ev.ElasticNet(
        classifier(job),
        binary_search_steps=9,
        max_iter=max(1, job.budget // 27),
        decision_rule="L1",
        batch_size=len(job.x),
        verbose=False,
    )
    return _run(attack, job)


PLAIN = (1.0, 2.0, INF)
ATTACKS = [
    Attack("ART", "pgd", FIXED, (1.0, 1.5, 2.0, 3.0, INF), "eps_step=2.5 eps/T, random start for T > 1", _pgd),
    Attack("ART", "apgd-ce", FIXED, PLAIN, "eps_step=2 eps, one start, cross_entropy", _apgd("cross_entropy"), 5),
    Attack("ART", "apgd-dlr", FIXED, PLAIN, "eps_step=2 eps, one start, DLR", _apgd("difference_logits_ratio"), 5),
    Attack("ART", "acg-dlr", FIXED, PLAIN, "eps_step=2 eps, one start, DLR", _acg, 5),
    Attack("ART", "deepfool", MINIMAL, (2.0,), "epsilon=1e-6, nb_grads=10", _deepfool, 12),
    Attack("ART", "ead", MINIMAL, (1.0,), "9 searches of propagations/27 steps, rule L1", _ead, 180),
]
