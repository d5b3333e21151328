"""Data sets: samples in data units, in their official order, with their source and digest."""

from epsball.data.catalogue import CATALOGUE, Entry, entry, load, names
from epsball.data.dataset import Dataset, digest_of
from epsball.data.download import Origin, data_root

__all__ = ["CATALOGUE", "Dataset", "Entry", "Origin", "data_root", "digest_of", "entry", "load", "names"]
