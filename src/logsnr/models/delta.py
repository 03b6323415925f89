"""An edit of a pipeline as a small file: the changed tensors alone, and which model they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from logsnr.core.artifact import load_tensors, save_tensors, staged, write_file, write_json
from logsnr.core.config import from_dict, read_json, to_dict
from logsnr.core.errors import BrokenError, InputError, UnsupportedError
from logsnr.models.fingerprint import fingerprint

_TENSORS, _RECORD = "delta.safetensors", "delta.json"


@dataclass(frozen=True)
class DeltaRecord:
    """Where a delta comes from. ``base`` has the fingerprint of every component that it changes, before the change."""

    base: dict[str, str]
    method: str
    targets: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


class Delta:
    """New values of some parameters of a pipeline, under ``component.parameter``, such as ``unet.conv_in.weight``."""

    def __init__(self, tensors: Mapping[str, Tensor], record: DeltaRecord):
        self.tensors, self.record = dict(tensors), record
        self._replaced: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()

    def apply(self, pipe: Any, *, force: bool = False) -> None:
        """Put the new values into a pipeline; ``revert`` brings the old ones back, bit by bit.

        Raises:
            InputError: the pipeline is not the one that the delta was made for (``force`` goes on where names and
                shapes still fit), or has this delta already.
            UnsupportedError: its weights are quantised or offloaded.
        """
        parts = self._parts(pipe, force=force)
        for module, values in parts:
            own = dict(module.named_parameters())
            self._replaced[module] = {name: own[name].detach().clone() for name in values}
            _assign(module, values)

    def revert(self, pipe: Any) -> None:
        """Undo ``apply``.

        Raises:
            InputError: this delta is not applied to the pipeline.
        """
        modules: list[Any] = [getattr(pipe, component, None) for component in self._components()]
        if any(module is None or module not in self._replaced for module in modules):
            raise InputError("this delta is not applied to this pipeline: apply it before reverting")
        for module in modules:
            _assign(module, self._replaced.pop(module))

    def merge(self, pipe: Any, *, force: bool = False) -> None:
        """Put the new values into a pipeline for good: nothing is kept to revert to. The errors are ``apply``'s."""
        for module, values in self._parts(pipe, force=force):
            _assign(module, values)

    def differences(self, pipe: Any) -> dict[str, Tensor]:
        """What ``apply`` would add to each parameter, in float32, by its name here. The errors are ``apply``'s."""
        changes = {}
        for component, (module, values) in zip(self._components(), self._parts(pipe, force=False), strict=True):
            own = dict(module.named_parameters())
            for name, value in values.items():
                changes[f"{component}.{name}"] = value.float() - own[name].detach().float()
        return changes

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tensors, the record and a card to a folder, whole or not at all.

        Raises:
            InputError: the folder exists already or cannot be written.
        """
        with staged(Path(folder)) as place:
            write_delta(self, place)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Delta:
        """The delta in a folder.

        Raises:
            MissingError: there is none.
            BrokenError: its files are damaged.
        """
        place = Path(folder)
        values = read_json(place / _RECORD)
        try:
            record = from_dict(DeltaRecord, values)
        except (InputError, TypeError) as error:
            raise BrokenError(f"{place / _RECORD} is no record of a delta: {error}; make the delta again") from error
        return cls(load_tensors(place / _TENSORS), record)

    def _components(self) -> list[str]:
        return list(dict.fromkeys([*self.record.base, *(name.partition(".")[0] for name in self.tensors)]))

    def _parts(self, pipe: Any, *, force: bool) -> list[tuple[nn.Module, dict[str, Tensor]]]:
        """Each changed module with its new values, after all checks."""
        parts = []
        for component in self._components():
            module = getattr(pipe, component, None)
            if not isinstance(module, nn.Module):
                raise InputError(f"this pipeline has no {component}, which the delta changes: take the model it is for")
            check_editable(module, component)
            if module in self._replaced:
                raise InputError("this delta is applied already: revert it first")
            values = {name.partition(".")[2]: value for name, value in self.tensors.items() if _of(name, component)}
            self._check(module, component, values, force=force)
            parts.append((module, values))
        return parts

    def _check(self, module: nn.Module, component: str, values: Mapping[str, Tensor], *, force: bool) -> None:
        found, own = fingerprint(module), dict(module.named_parameters())
        if found != self.record.base.get(component) and not force:
            raise InputError(
                f"this delta belongs to another {component} ({self.record.base.get(component)}, this one is {found}): "
                "take the model that it was made from, with the deltas that it came after"
            )
        for name, value in values.items():
            if name not in own or own[name].shape != value.shape:
                raise InputError(f"{component} has no {name} of shape {tuple(value.shape)}: take the delta's own model")


def check_editable(module: nn.Module, component: str) -> None:
    """Refuse a module whose weights are not plain floating-point numbers in memory.

    Raises:
        UnsupportedError: they are quantised or offloaded.
    """
    if getattr(module, "hf_quantizer", None) or any(not p.is_floating_point() for p in module.parameters()):
        raise UnsupportedError(f"the {component} is quantised, which an edit cannot undo: load it in full precision")
    if any(parameter.is_meta for parameter in module.parameters()):
        raise UnsupportedError(f"the {component} is offloaded, its weights are elsewhere: load it without offloading")


def make_delta(pipe: Any, before: Mapping[str, Mapping[str, Tensor]], record: DeltaRecord) -> Delta:
    """What changed: of each component's parameters in ``before`` (their old values), those that differ now."""
    tensors = {}
    for component, values in before.items():
        own = dict(getattr(pipe, component).named_parameters())
        changed = {name: own[name].detach() for name, value in values.items() if not torch.equal(own[name], value)}
        tensors |= {f"{component}.{name}": value.clone() for name, value in changed.items()}
    return Delta(tensors, record)


def write_delta(delta: Delta, folder: Path) -> None:
    """Write the tensors, the record and a card to a folder that exists."""
    save_tensors(folder / _TENSORS, delta.tensors)
    write_json(folder / _RECORD, to_dict(delta.record))
    write_file(folder / "README.md", _card(delta))


def _of(name: str, component: str) -> bool:
    return name.startswith(f"{component}.")


@torch.no_grad()
def _assign(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    own = dict(module.named_parameters())
    for name, value in values.items():
        own[name].copy_(value)


def _card(delta: Delta) -> str:
    record = delta.record
    size = sum(tensor.numel() for tensor in delta.tensors.values())
    return f"""---
library_name: logsnr
tags: [diffusers, delta]
---

# {record.method}: {", ".join(record.targets)}

{len(delta.tensors)} changed tensors, {size:,} numbers, for the model with the fingerprints in `{_RECORD}`.

```python
import logsnr

delta = logsnr.Delta.from_pretrained("FOLDER")
delta.apply(pipe)   # a wrong base is refused; delta.revert(pipe) undoes it bit by bit
```

What was measured on it, and what was not, is said in the report of `logsnr evaluate --delta`.
{_rows(record.metrics.items())}"""


def _rows(values: Iterable[tuple[str, Any]]) -> str:
    rows = [f"| {name.replace('_', ' ')} | {value} |" for name, value in values]
    return "\n".join(["", "| figure | value |", "|---|---|", *rows, ""]) if rows else ""
