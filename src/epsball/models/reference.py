"""What `--model` may say: a name of the catalogue, or where a model of one's own comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from epsball import networks
from epsball.data.user_code import is_reference
from epsball.errors import InputError, unknown_name

__all__ = ["Reference", "parse"]

Kind = Literal["catalogue", "python", "pt2", "onnx", "timm"]

WEIGHTS = (".pt", ".pth", ".safetensors", ".bin", ".ckpt", ".pkl", ".ts")
FORMS = "file.py:factory, package.module:factory, FILE.pt2, FILE.onnx or timm:NAME"


@dataclass(frozen=True)
class Reference:
    """Where a model comes from: its kind, and the text that names it."""

    kind: Kind
    text: str

    @property
    def own(self) -> bool:
        """Whether the model is the user's, not one of the catalogue."""
        return self.kind != "catalogue"


def parse(text: str) -> Reference:
    """Return what the text of `--model` means; no file is read. InputError if it means nothing."""
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"expected model as a name of the catalogue, {FORMS}, got {text!r}.")
    lowered = text.lower()
    if text in networks.CATALOGUE:
        return Reference("catalogue", text)
    if lowered.startswith("timm:"):
        return Reference("timm", text)
    if is_reference(text):
        return Reference("python", text)
    if lowered.endswith(".pt2"):
        return Reference("pt2", text)
    if lowered.endswith(".onnx"):
        return Reference("onnx", text)
    if lowered.endswith(WEIGHTS):
        raise InputError(
            f"expected a model, got {text!r}, which by its name holds weights: give the code that builds the network "
            f"beside them, --model file.py:factory --weights {text}, or export it with torch.export to a .pt2."
        )
    if lowered.endswith(".py"):
        raise InputError(f"expected the name of a factory after the file, {text}:factory, got {text!r}.")
    error = unknown_name("network", text, networks.CATALOGUE)
    raise InputError(f"{error} For a model of your own give {FORMS}.")
