"""Models from anywhere: Python code, exported programs, ONNX files and timm, with their preprocessing wrapped in."""

from epsball.models.door import check_model_door
from epsball.models.loading import load_model
from epsball.models.own_spec import OwnSpec, opened, spec_of
from epsball.models.reference import Reference, parse
from epsball.models.select import Output
from epsball.models.wrapped import Preprocessing, WrappedModel, read_size

__all__ = ["Output", "OwnSpec", "Preprocessing", "Reference", "WrappedModel", "check_model_door", "load_model", "parse"]
__all__ += ["opened", "read_size", "spec_of"]
