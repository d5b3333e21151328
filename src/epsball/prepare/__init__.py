"""Frozen copies of a model that compute the same function faster, for the passes of an attack."""

from epsball.prepare.choose import prepared
from epsball.prepare.copies import Prepared, several_backwards
from epsball.prepare.forms import check_prepare, parts
from epsball.prepare.settle import settled

__all__ = ["Prepared", "check_prepare", "parts", "prepared", "settled", "several_backwards"]
