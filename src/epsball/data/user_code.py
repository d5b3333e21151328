"""Python code of the user's own, named as `package.module:name` or `file.py:name`: importing it runs it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from epsball.errors import InputError

__all__ = ["call", "is_reference", "load_object", "source_digest"]

_FILE = re.compile(r"(?P<where>.+\.py):(?P<name>[A-Za-z_][\w.]*)")
_MODULE = re.compile(r"(?P<where>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_][\w.]*)")

# What each user file imported from its own folder.
_NEIGHBOURS: dict[Path, dict[str, ModuleType]] = {}


def is_reference(text: str) -> bool:
    """Return whether the text is `file.py:name` or `package.module:name`; nothing is looked up."""
    return bool(_FILE.fullmatch(text) or _MODULE.fullmatch(text))


def load_object(text: str, what: str) -> Any:
    """Import the file or module and return what it calls `name`; its code is run, as `python file.py` would.

    what: "model" or "data", for the messages. While a file is imported its folder, and for a module the working
    directory, stand first on the import path. What a file imports from its own folder is its own: another file may have
    a neighbour of the same name. InputError where the code is absent, fails, or has no such name.
    """
    match = _FILE.fullmatch(text) or _MODULE.fullmatch(text)
    if match is None:
        raise InputError(f"expected {what} as file.py:name or package.module:name, got {text!r}.")
    where, name = match["where"], match["name"]
    module = _import_file(where, what) if where.endswith(".py") else _import_module(where, what)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"{what}: {where} has no {name!r}; it defines {_public(module)}.")
        found = getattr(found, part)
    return found


def call(factory: Any, text: str, what: str, *arguments: Any) -> Any:
    """Call the user's factory; InputError with its own error where it fails."""
    where = _FILE.fullmatch(text) or _MODULE.fullmatch(text)
    if where is None or not where["where"].endswith(".py"):
        with _first_on_path(os.getcwd()), _explained(text, what):
            return factory(*arguments)
    with _neighbours(Path(where["where"]).expanduser().resolve()), _explained(text, what):
        return factory(*arguments)


def source_digest(text: str) -> str | None:
    """Return the sha256, in hex, of the file that the reference names; None where it has no file."""
    match = _FILE.fullmatch(text) or _MODULE.fullmatch(text)
    where = "" if match is None else match["where"]
    file = where if where.endswith(".py") else getattr(sys.modules.get(where), "__file__", None)
    try:
        return None if file is None else hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest()
    except OSError:
        return None


def _import_file(where: str, what: str) -> ModuleType:
    path = Path(where).expanduser()
    if not path.is_file():
        raise InputError(f"{what}: {where} does not exist or is not a file; give file.py:name.")
    path = path.resolve()
    key = f"epsball_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if key in sys.modules:
        del sys.modules[key]  # the file may have changed since
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{what}: {where} cannot be imported as Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses look their module up
    _NEIGHBOURS.pop(path, None)
    try:
        with _neighbours(path), _explained(where, what):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(key, None)
        raise
    return module


def _import_module(where: str, what: str) -> ModuleType:
    with _first_on_path(os.getcwd()), _explained(where, what):
        return importlib.import_module(where)


@contextmanager
def _explained(where: str, what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and end the program
        if isinstance(error, MemoryError):
            raise
        raise InputError(
            f"{what}: {where} failed with {type(error).__name__}: {error}; {_place(error)}run it by itself to see more."
        ) from error


def _place(error: BaseException) -> str:
    """Say in which line of which file it went wrong."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"line {trace.tb_lineno} of {trace.tb_frame.f_code.co_filename}; "


@contextmanager
def _first_on_path(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


@contextmanager
def _neighbours(file: Path) -> Iterator[None]:
    """Import from a file's folder; what comes from there is kept for this file, not in sys.modules."""
    own = _NEIGHBOURS.setdefault(file, {})
    for name, module in own.items():
        sys.modules.setdefault(name, module)
    before = set(sys.modules) - {name for name, module in own.items() if sys.modules[name] is module}
    try:
        with _first_on_path(str(file.parent)):
            yield
    finally:
        if file.parent.name not in ("site-packages", "dist-packages"):  # installed packages are everyone's
            new = [name for name in sys.modules if name not in before]
            roots = {name for name in new if "." not in name and _lies_in(sys.modules[name], file.parent)}
            own.update({name: sys.modules.pop(name) for name in new if name.partition(".")[0] in roots})


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Tell whether a top-level module is a .py file or a package directly in the folder."""
    file = getattr(module, "__file__", None)
    places = [Path(place).parent for place in getattr(module, "__path__", ())]
    places += [Path(file).parent] if file and file.endswith(".py") and not places else []
    return any(place.resolve() == folder for place in places)


def _public(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if not name.startswith("_") and callable(value)]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing that can be called"
