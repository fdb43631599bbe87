"""Names that a package offers without importing what defines them (PEP 562)."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence


def attach(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable, Callable, list[str]]:
    """Make the lazy face of a package.

    Args:
        package: The package's `__name__`.
        names: Which submodule (or, with a dot, module) defines which public names.

    Returns:
        `__getattr__`, `__dir__` and `__all__` for the package's `__init__`.
    """
    home = {
        name: module if "." in module else f"{package}.{module}"
        for module, public in names.items()
        for name in public
    }

    def __getattr__(name: str):
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__, lambda: sorted({*vars(sys.modules[package]), *home}), sorted(home)
