"""What waits while modules come in and a model is built, so that a start takes less time.

Python's search for garbage cycles: what is made then stays for good, and each search goes through all of it again, a
fifth of the time. scipy.optimize, of which transformers wants one function for losses that nobody here uses. And the
stub files for editors that gradio writes beside each of its components at every import, half of that import's time.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

_lock = threading.RLock()
_open: list[bool] = []  # for each block that is open, whether the search was on when the first of them began


@contextmanager
def quick_imports() -> Iterator[None]:
    """Inside, modules come in and models are built faster; nothing that they can do is missing then or later.

    Several threads may be inside at once; with the last one all is as it was.
    """
    with _lock:
        _open.append(_open[0] if _open else gc.isenabled())
        gc.disable()
        if len(_open) == 1:
            sys.meta_path.insert(0, _no_stubs)
        sys.modules.setdefault(_Optimize.NAME, _Optimize())
    try:
        yield
    finally:
        with _lock:
            was_on = _open.pop()
            if not _open:
                _Optimize.leave()
                sys.meta_path.remove(_no_stubs)
                if was_on:
                    gc.enable()


class _Optimize(ModuleType):
    """Stands in for scipy.optimize until something else than that one function is asked of it."""

    NAME, FUNCTION = "scipy.optimize", "linear_sum_assignment"

    def __init__(self) -> None:
        super().__init__(self.NAME)

    @classmethod
    def leave(cls) -> None:
        """Make way for the real one."""
        with _lock:
            if isinstance(sys.modules.get(cls.NAME), cls):
                del sys.modules[cls.NAME]

    def __getattr__(self, name: str) -> Any:
        if name == self.FUNCTION:
            return _assign_later
        if name.startswith("__"):  # asked by the machinery of imports
            raise AttributeError(name)
        return getattr(_real(), name)


def _assign_later(*args: Any, **options: Any) -> Any:
    """`scipy.optimize.linear_sum_assignment`, brought in by its first call."""
    return getattr(_real(), _Optimize.FUNCTION)(*args, **options)


def _real() -> ModuleType:
    _Optimize.leave()
    return import_module(_Optimize.NAME)


class _NoStubs(MetaPathFinder):
    """Finds gradio's maker of components as ever, but for its writing of stub files."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """See `MetaPathFinder`."""
        spec = PathFinder.find_spec(name, path, target) if name == "gradio.component_meta" else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _WithoutStubs(name, spec.loader.path)
        return spec


class _WithoutStubs(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        module.create_or_modify_pyi = lambda *_: None


_no_stubs = _NoStubs()
