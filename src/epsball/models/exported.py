"""Exported programs: the .pt2 files of torch.export.save."""

from __future__ import annotations

import hashlib
import io
import logging
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from epsball.errors import InputError
from epsball.models.fixed_batch import AnyBatch
from epsball.models.pt2_archive import check_archive

__all__ = ["ExportedModel", "load_again", "load_exported"]


def load_exported(path: Path, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """Return the program in a .pt2 file as a module x -> outputs for any batch size, and what is known of it.

    The file is checked first: one that would be unpickled, or whose graph calls anything but torch's own operators, is
    refused. A program exported for a fixed batch size runs in parts of that size.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return _load(raw, path, device)


def _load(raw: bytes, path: Path, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    check_archive(raw, str(path))
    quiet = logging.getLogger("torch.export")
    level, quiet.level = quiet.level, logging.ERROR
    try:
        program = torch.export.load(io.BytesIO(raw))
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        shape = _input(program, path)
        # Guards would be text from the file that is run; shapes are checked here instead.
        module = program.module(check_guards=False)
    except InputError:
        raise
    except Exception as error:  # a damaged file may raise nearly any type
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: not a sound exported program ({reason}); export it again with this torch."
        ) from error
    finally:
        quiet.level = level
    least, most = _batch_range(program, shape)
    known: dict[str, Any] = {"kind": "exported program (.pt2)", "digest": hashlib.sha256(raw).hexdigest()}
    size = most is not None and least == most
    if size:
        known["fixed_batch"] = most
    sizes = [None if isinstance(n, torch.SymInt) else int(n) for n in shape[1:]]
    return ExportedModel(AnyBatch(module, least, most), tuple(sizes), str(path), known["digest"]), known


def load_again(raw: bytes, path: str, dtype: torch.dtype | None, device: torch.device) -> nn.Module:
    """Return the module of `load_exported` from what `ExportedModel.parts` returned; path: for messages."""
    module, _ = _load(raw, Path(path), device)
    for each in module.modules():
        each.training = False  # eval() is refused by exported programs
    return module.to(dtype=dtype)


class ExportedModel(nn.Module):
    """The program behind a check of the sizes it was exported for; digest: of its file."""

    def __init__(self, program: nn.Module, sizes: tuple[int | None, ...], path: str, digest: str) -> None:
        super().__init__()
        self.program, self.sizes, self.path, self.digest = program, sizes, path, digest

    def parts(self, device: torch.device) -> tuple[bytes, str, torch.dtype | None, torch.device]:
        """Return what `load_again` makes it of on a device; InputError if the file has changed."""
        raw = Path(self.path).read_bytes()
        if hashlib.sha256(raw).hexdigest() != self.digest:
            raise InputError(f"expected {self.path} as it was when it was loaded, got another file; start again.")
        dtype = next((t.dtype for t in chain(self.parameters(), self.buffers()) if t.is_floating_point()), None)
        return raw, self.path, dtype, device

    def forward(self, x: Tensor) -> Any:
        """Return the program's outputs for x (B, *S)."""
        fits = len(self.sizes) == x.dim() - 1 and all(
            n in (None, m) for n, m in zip(self.sizes, x.shape[1:], strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if n is None else str(n) for n in self.sizes)
            raise InputError(
                f"expected samples of shape ({wanted}), for which {self.path} was exported, got {tuple(x.shape[1:])}; "
                "give such data, --resize HEIGHTxWIDTH, or export it with dynamic_shapes."
            )
        return self.program(x)


def _input(program: Any, path: Path) -> tuple[Any, ...]:
    """Return the shape of the one floating tensor that the program takes, or refuse it."""
    names = list(program.graph_signature.user_inputs)
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    if len(names) != 1 or names[0] not in nodes:
        raise InputError(f"expected a program of one input, got {len(names)} in {path}; export a module of x alone.")
    value = nodes[names[0]].meta.get("val")
    if not isinstance(value, Tensor) or value.dim() < 2:
        raise InputError(f"expected a program that takes a batch (B, *S), got another input in {path}.")
    if not value.is_floating_point():
        raise InputError(
            f"expected a program of floating inputs, got {value.dtype} in {path}: integers have no gradient; export "
            "the part after the embedding or the scaling of levels."
        )
    return tuple(value.shape)


def _batch_range(program: Any, shape: tuple[Any, ...]) -> tuple[int, int | None]:
    """Return the least and the greatest batch size of the program; None: no greatest."""
    batch = shape[0]
    if not isinstance(batch, torch.SymInt):
        return int(batch), int(batch)
    allowed = program.range_constraints.get(batch.node.expr)
    if allowed is None:
        return 1, None
    # Without a limit the upper end is one of sympy's infinities.
    most = int(allowed.upper) if getattr(allowed.upper, "is_Integer", False) else 2**31
    return max(1, int(allowed.lower)), most if most < 2**31 else None
