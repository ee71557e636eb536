"""A module as it was found: whatever an export does to it, or its own methods do, is undone."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OF_TORCH = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


@contextmanager
def left_as_found(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and restore it at the end: its modes, attributes, parameters, buffers,
    gradients and hooks; and the random generators of torch, Python and numpy."""
    generators = random.getstate(), np.random.get_state()
    snapshot = ModuleSnapshot(module)
    try:
        with torch.random.fork_rng(devices=[]):
            module.eval()
            yield
    finally:
        snapshot.restore()
        random.setstate(generators[0])
        np.random.set_state(generators[1])


class ModuleSnapshot:
    """What the attributes of a module and its submodules hold, including their parameters, buffers and hooks.

    Lists, dictionaries and sets are known by their content, tensors by their values, everything else by identity.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._saved: dict[int, _Saved] = {}
        self._attributes = [(submodule, dict(vars(submodule))) for submodule in module.modules()]
        for _, attributes in self._attributes:
            self._save(attributes)

    def _save(self, value: Any) -> None:
        """Save a value that can be changed, and everything in it."""
        if id(value) in self._saved:
            return
        if isinstance(value, Tensor | dict | list | set | deque):
            self._saved[id(value)] = _Saved(value)
        if isinstance(value, dict | list | tuple | set | deque):
            for item in value.values() if isinstance(value, dict) else value:
                self._save(item)

    def changes(self) -> list[str]:
        """The names of the attributes that hold something else now, such as "self.cell.count"."""
        before = {id(submodule): attributes for submodule, attributes in self._attributes}
        found = []
        for path, submodule in self._module.named_modules(prefix="self"):
            old = before.get(id(submodule), {})
            for name, value in vars(submodule).items():
                if name in ("_parameters", "_buffers"):
                    saved = self._saved[id(old[name])].copy if name in old else {}
                    found += [f"{path}.{key}" for key, item in value.items() if self._differs(item, saved.get(key))]
                elif name not in _OF_TORCH and (name not in old or self._differs(value, old[name])):
                    found.append(f"{path}.{name}")
        return found

    def _differs(self, value: Any, old: Any) -> bool:
        if value is not old:
            return not (type(value) is type(old) and isinstance(value, _PLAIN) and value == old)
        saved = self._saved.get(id(value))
        if saved is None:
            return False
        if saved.is_changed():
            return True
        if isinstance(value, dict | list | tuple | set | deque):
            items = value.values() if isinstance(value, dict) else value
            return any(self._differs(item, item) for item in items)
        return False

    def restore(self) -> None:
        """Restore everything."""
        for submodule, attributes in self._attributes:
            vars(submodule).clear()
            vars(submodule).update(attributes)
        for saved in self._saved.values():
            saved.restore()


class _Saved:
    """A value that can be changed, with a copy of its content. The content of its items is not copied."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.copy: Any = value.detach().clone() if isinstance(value, Tensor) else value.copy()
        if isinstance(value, Tensor):
            self._needs_gradient = value.requires_grad
            self._gradient = value.grad if value.is_leaf else None

    def is_changed(self) -> bool:
        if isinstance(self.value, Tensor):
            return not torch.equal(self.value, self.copy)
        if isinstance(self.value, dict):
            return list(self.value) != list(self.copy) or any(
                self.value[key] is not item for key, item in self.copy.items()
            )
        if isinstance(self.value, set):
            return bool(self.value != self.copy)
        return len(self.value) != len(self.copy) or any(
            item is not old for item, old in zip(self.value, self.copy, strict=True)
        )

    def restore(self) -> None:
        if isinstance(self.value, Tensor):
            self._restore_tensor()
        elif self.is_changed():
            self.value.clear()
            if isinstance(self.value, dict | set):
                self.value.update(self.copy)
            else:
                self.value.extend(self.copy)

    def _restore_tensor(self) -> None:
        if self.value.shape != self.copy.shape:
            self.value.data = self.copy
        elif self.is_changed():
            with torch.no_grad():
                self.value.copy_(self.copy)
        if self.value.is_leaf:
            self.value.requires_grad_(self._needs_gradient)
            self.value.grad = self._gradient
