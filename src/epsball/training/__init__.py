"""Training of the catalogue's networks: seeded, resumable, recorded on a card, written in one step."""

from epsball.training.fit import Progress
from epsball.training.train import TrainingResult, test_error, train

__all__ = ["Progress", "TrainingResult", "test_error", "train"]
