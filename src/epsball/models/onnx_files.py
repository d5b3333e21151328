"""ONNX files, converted to PyTorch by onnx2torch so that their gradients can be computed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from epsball.errors import InputError
from epsball.models.fixed_batch import AnyBatch
from epsball.models.optional import import_adapter

__all__ = ["load_onnx"]

FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}  # onnx.TensorProto.DataType


def load_onnx(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network in an .onnx file as a module x -> outputs, and what is known of it.

    A file made for a fixed batch size runs in parts of that size, unless it takes larger batches and gives each sample
    the same output in them.
    """
    onnx = import_adapter("onnx", "onnx")
    onnx2torch = import_adapter("onnx2torch", "onnx")
    try:
        raw = path.read_bytes()
        proto = onnx.load(str(path))
        onnx.checker.check_model(proto)
    except Exception as error:  # protobuf, onnx and the file system each raise their own
        raise InputError(f"{path}: not a sound ONNX file ({_first(error)}); export it again.") from error
    shape = _input(proto, path)
    names = [value.name for value in proto.graph.output]
    # The names become attributes in generated code; nobody needs them.
    for place, node in enumerate(proto.graph.node):
        node.name = f"node_{place}"
    try:
        module = onnx2torch.convert(proto)
    except NotImplementedError as error:
        raise InputError(
            f"{path}: onnx2torch cannot convert it ({_first(error)}); it may know an older version of this operator: "
            "try torch.onnx.export(..., opset_version=13, dynamo=False); or export the network with torch.export to a "
            ".pt2, or give it as file.py:factory."
        ) from error
    except Exception as error:
        raise InputError(f"{path}: onnx2torch cannot convert it: {type(error).__name__}: {_first(error)}") from error
    known: dict[str, Any] = {"kind": "ONNX file", "digest": hashlib.sha256(raw).hexdigest(), "outputs": names}
    batch = shape[0] if shape else None
    if batch is None or _takes_any(module, shape):
        return module, known
    return AnyBatch(module, batch, batch), known | {"fixed_batch": batch}


def _input(proto: Any, path: Path) -> list[int | None]:
    """Return the shape of the one floating input, None where a size is free, or refuse it."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise InputError(f"expected a network of one input, got {len(inputs)} in {path}; export a module of x alone.")
    kind = inputs[0].type.tensor_type
    if kind.elem_type not in FLOATS:
        raise InputError(
            f"expected a network of floating inputs, got integers in {path}, which have no gradient; export the part "
            "after the embedding or the scaling of levels."
        )
    sizes = [size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim]
    return [size if size else None for size in sizes]


def _takes_any(module: nn.Module, shape: list[int | None]) -> bool:
    """Tell whether a network that declares a fixed batch gives twice as many samples the same outputs."""
    if None in shape:
        return False
    batch, *sample = (int(size or 1) for size in shape)
    x = torch.rand(2 * batch, *sample, generator=torch.Generator().manual_seed(0))
    modes = {part: part.training for part in module.modules()}
    try:
        for part in modes:
            part.training = False
        with torch.no_grad():
            whole, first, second = (module(part) for part in (x, x[:batch], x[batch:]))
    except Exception:  # made for its own batch size only
        return False
    finally:
        for part, mode in modes.items():
            part.training = mode
    found, parts = _tensors(whole), zip(_tensors(first), _tensors(second), strict=True)
    return all(
        a.shape[:1] == (2 * batch,) and torch.allclose(a, torch.cat([b, c]), rtol=1e-4, atol=1e-5)
        for a, (b, c) in zip(found, parts, strict=True)
    )


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
