"""What a .pt2 file may hold: torch.export.load would unpickle parts of it and run others; so it is read first."""

from __future__ import annotations

import ast
import io
import json
import re
from typing import Any

import torch

from epsball.errors import InputError

__all__ = ["check_archive"]

NAMESPACES = ("aten", "prims", "torchvision", "quantized_decomposed")
# Operators of these namespaces that reach beyond tensors.
BARRED = ("from_file",)
HIGHER_ORDER = ("wrap_with_set_grad_enabled", "wrap_with_autocast", "cond", "while_loop", "scan", "associative_scan")
OPERATORS = re.compile(
    r"_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
MATHS = re.compile(r"math\.(ceil|floor|sqrt|trunc|exp|log|log2|pow)|torch\.(_?sym_\w+)")
# Names, types, versions, paths of modules: nothing that Python's parser could run where generated code holds it.
PLAIN = re.compile(r"[\w.+\-:/<> ]*")
# What sizes are computed with: sympy's classes, and those of torch.utils._sympy.functions.
CALLS = {
    "Symbol",
    "Integer",
    "Float",
    "Rational",
    "Add",
    "Mul",
    "Pow",
    "Max",
    "Min",
    "Mod",
    "Abs",
    "Eq",
    "Ne",
    "Lt",
    "Le",
}
CALLS |= {"Gt", "Ge", "And", "Or", "Not", "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt"}
CALLS |= {"FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv"}
CALLS |= {"IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat"}
CALLS |= {"Identity", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"}
SYMBOL = re.compile(r"_?[a-z]{1,8}_?\d+|int_oo|oo")
FREE = {"metadata", "stack_trace", "guards_code", "as_string", "as_strings"}
# Structures of inputs and outputs; torch imports what other types name in their context.
STRUCTURES = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def check_archive(raw: bytes, path: str) -> None:
    """Refuse a .pt2 file that holds pickled objects or compiled code, or whose graph is more than torch's operators.

    raw: the content of the file. It is read with the reader that torch.export.load uses, so both see the same records.
    """
    try:
        from torch.export.pt2_archive._package import PT2ArchiveReader
    except ImportError as error:
        raise InputError(
            f"{path}: reading .pt2 files needs torch 2.8 or newer, this is {torch.__version__}."
        ) from error
    try:
        with PT2ArchiveReader(io.BytesIO(raw)) as reader:
            records = {name: reader.read_bytes(name) for name in reader.get_file_names() if _small(name)}
            names = reader.get_file_names()
    except Exception as error:  # the reader raises RuntimeError and more
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: not a sound .pt2 file of torch.export.save ({reason}); it is damaged, or of an older torch."
        ) from error
    programs = [name for name in names if name.startswith("models/")]
    if programs != ["models/model.json"]:
        raise InputError(f"{path}: expected one exported program named model, found {', '.join(programs) or 'none'}.")
    for name in names:
        if name.startswith("data/aotinductor/") or name.endswith((".so", ".cubin", ".o")):
            raise InputError(f"{path}: holds compiled code ({name}), which is not run; export with torch.export.save.")
        if name.startswith(("data/weights/", "data/constants/")) and name.endswith(".pt"):
            raise InputError(f"{path}: holds pickled weights ({name}), as older torch wrote them; export it again.")
    for name, content in records.items():
        if name.endswith("_config.json"):
            _check_payload(content, name, path)
        elif name.endswith(".pt"):
            _check_tensors(content, name, path)
        elif name == "models/model.json":
            _check_program(content, path)


def _small(name: str) -> bool:
    return name.endswith(("_config.json", ".pt")) or name.startswith("models/")


def _check_payload(content: bytes, name: str, path: str) -> None:
    for entry in _json(content, name, path).get("config", {}).values():
        held = str(entry.get("path_name", ""))
        if entry.get("use_pickle") or "custom_obj" in held or "opaque_obj" in held:
            raise InputError(
                f"{path}: holds the pickled object {held!r}, and nothing is unpickled; export plain tensors."
            )
        if not re.fullmatch(r"[\w.\-]+", held):
            raise InputError(f"{path}: {name} names the record {held!r}; the file is damaged or hostile.")


def _check_tensors(content: bytes, name: str, path: str) -> None:
    """torch.export.load falls back to unpickling where this would fail, so it must not."""
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path}: {name} holds more than plain tensors, and nothing is unpickled; export with example inputs that "
            "are tensors."
        ) from error


def _check_program(content: bytes, path: str) -> None:
    _walk(_json(content, "models/model.json", path), "", path)


def _walk(value: Any, key: str, path: str) -> None:
    if key in FREE:
        return
    if key in ("in_spec", "out_spec"):
        _check_structure(value, path)
    elif isinstance(value, dict):
        for name, inner in value.items():
            _plain(name, "key", path)
            _walk(inner, name, path)
    elif isinstance(value, list):
        for inner in value:
            _walk(inner, key, path)
    elif isinstance(value, str):
        if key in ("target", "as_operator"):
            _check_operator(value, path)
        elif key == "expr_str":
            _check_expression(value, path)
        elif key in ("name", "as_name", "forward_arg_names"):
            if value and not re.fullmatch(r"[A-Za-z_]\w*", value):
                raise _hostile(path, "name", value)
        else:
            _plain(value, key, path)


def _plain(text: str, what: str, path: str) -> None:
    if not PLAIN.fullmatch(text):
        raise _hostile(path, what, text)


def _check_structure(text: Any, path: str) -> None:
    """Refuse a structure that is more than tuples, lists and dicts with plain keys."""
    try:
        protocol, spec = json.loads(text)
        known = protocol == 1 and _plain_structure(spec)
    except (TypeError, ValueError, RecursionError):
        known = False
    if not known:
        raise _hostile(path, "structure", str(text))


def _plain_structure(spec: Any) -> bool:
    if not isinstance(spec, dict) or set(spec) != {"type", "context", "children_spec"}:
        return False
    kind, context, children = spec["type"], spec["context"], spec["children_spec"]
    if kind is None:
        return context is None and children == []
    if kind not in STRUCTURES or not isinstance(context, str) or not isinstance(children, list):
        return False
    keys = json.loads(context)
    if kind in ("builtins.tuple", "builtins.list"):
        fits = keys is None
    else:
        fits = isinstance(keys, list) and all(type(key) in (str, int) for key in keys) and len(keys) == len(children)
    return fits and all(map(_plain_structure, children))


def _check_operator(target: str, path: str) -> None:
    parts = target.split(".")
    ours = parts[:2] == ["torch", "ops"] and all(re.fullmatch(r"\w+", part) and "__" not in part for part in parts)
    if ours and len(parts) == 5 and parts[2] in NAMESPACES and parts[3] not in BARRED and _dispatched(*parts[2:]):
        return
    if ours and len(parts) == 4 and parts[2] == "higher_order" and parts[3] in HIGHER_ORDER:
        return
    if OPERATORS.fullmatch(target) or MATHS.fullmatch(target):
        return
    raise InputError(
        f"{path}: its graph calls {target!r}, which is not one of torch's own operators; give the model as "
        "file.py:factory, whose code you can read."
    )


def _dispatched(namespace: str, name: str, overload: str) -> bool:
    """Tell an operator on tensors from a built-in of TorchScript, such as aten::save, which writes a file."""
    full = f"{namespace}::{name}" + ("" if overload == "default" else f".{overload}")
    # Only torch's own are all registered by now; TorchScript's built-ins share their namespace.
    return namespace != "aten" or bool(torch._C._dispatch_has_kernel(full))


def _check_expression(text: str, path: str) -> None:
    """Refuse a size expression that is more than arithmetic on symbols: it is evaluated."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _hostile(path, "size", text) from error
    allowed = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Name, ast.Constant, ast.operator)
    for node in nodes:
        known = isinstance(node, (*allowed, ast.keyword, ast.unaryop, ast.cmpop, ast.expr_context))
        if isinstance(node, ast.Call):
            known = isinstance(node.func, ast.Name) and node.func.id in CALLS
        elif isinstance(node, ast.Name):
            known = node.id in CALLS or bool(SYMBOL.fullmatch(node.id))
        elif isinstance(node, ast.Constant):  # text is the name of a symbol
            text_is = isinstance(node.value, str) and bool(SYMBOL.fullmatch(node.value))
            known = text_is or isinstance(node.value, (int, float))
        if not known:
            raise _hostile(path, "size", text)


def _hostile(path: str, what: str, text: str) -> InputError:
    return InputError(f"{path}: the {what} {text[:60]!r} has no place in an exported program; damaged or hostile.")


def _json(content: bytes, name: str, path: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {name} in it is not sound JSON; the file is damaged.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: {name} in it is not a JSON object; the file is damaged.")
    return found
