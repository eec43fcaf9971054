"""What a promise is, and where they are found."""

import dataclasses
import importlib
import pathlib
from typing import Callable

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "promises"
_found = []


@dataclasses.dataclass(frozen=True)
class Promise:
    module: str
    name: str
    seconds: int
    link: dict
    run: Callable


def promise(seconds=60, **link):
    """Marks a test; its name says what holds. `seconds` is its deadline, `link` what lies between the
    namespaces (see lib/network.py). The function gets a `lib.world.World`."""

    def mark(function):
        _found.append(Promise(function.__module__.rsplit(".", 1)[-1], function.__name__, seconds, link, function))
        return function

    return mark


def discover():
    """Every promise, by module and then in the order in which they stand."""
    for path in sorted(FOLDER.glob("*.py")):
        importlib.import_module(f"promises.{path.stem}")
    return list(_found)


def load(module, name):
    importlib.import_module(f"promises.{module}")
    return next(p for p in _found if p.name == name)
