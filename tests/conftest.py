"""What every test file shares: the `--slow` option, one torch thread, and `helpers` on the import path."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode does not do it: `from helpers import ...`


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take more than a few seconds")


def pytest_configure(config: pytest.Config) -> None:
    # The tests' tensors are too small to share among threads, and runs beside each other must not fight for cores.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


OPERATORS = ("nms", "qnms")


def lend_operators():
    """Define the schemas that torchvision's Python code refers to, where its compiled operators do not load."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in OPERATORS:
        try:
            getattr(torch.ops.torchvision, name)
        except AttributeError:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


@pytest.fixture(scope="session")
def adapter():
    """Import an optional adapter, or skip with the reason."""
    kept = []

    def get(name):
        try:
            return pytest.importorskip(name, reason=f"{name} is an optional extra", exc_type=ImportError)
        except (RuntimeError, AttributeError):  # torchvision beside a torch that it was not compiled for
            kept.append(lend_operators())
            return pytest.importorskip(name, reason=f"{name} is an optional extra", exc_type=ImportError)

    return get
