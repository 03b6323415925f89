"""``logsnr doctor``: versions, devices, data found, and what to install."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from logsnr.cli.console import Console

_NEEDED = ("logsnr", "torch", "diffusers", "transformers", "accelerate", "safetensors", "tyro")
_OPTIONAL = {"tensorboard": "track", "fastapi": "serve", "torch-fidelity": "eval", "mkdocs": "docs"}


@dataclass(frozen=True, kw_only=True)
class Doctor(Console):
    """Tell what this machine has for logsnr, and what to install for the rest."""

    def run(self) -> int:
        versions = {"python": platform.python_version(), **{name: _version(name) for name in (*_NEEDED, *_OPTIONAL)}}
        data = _data()
        missing = [
            f"pip install 'logsnr[{extra}]' for {name}" for name, extra in _OPTIONAL.items() if not versions[name]
        ]
        missing += [what for what in data.values() if what.startswith("missing")]
        values = {"versions": versions, "devices": _devices(), "data": data, "missing": missing}
        lines = [f"{name:16}{found or 'not installed'}" for name, found in versions.items()]
        lines += [f"{name:16}{where}" for name, where in {**values["devices"], **data}.items()]
        self.result(values, lines + [f"to install: {line}" for line in missing])
        return 0


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    import torch

    devices: dict[str, Any] = {"cpu": f"{torch.get_num_threads()} threads"}
    if torch.cuda.is_available():
        devices |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        devices["mps"] = "available"
    return devices


def _data() -> dict[str, str]:
    from logsnr.data.emoji_drawings import find_fluent, find_noto, find_twemoji
    from logsnr.data.fashion import find_fashion
    from logsnr.worlds.config import RECIPES
    from logsnr.worlds.load import WORLDS, find_model

    places = {f"world {name}": partial(find_model, name) for name in dict.fromkeys((*RECIPES, *WORLDS))}
    places |= {"fashion-mnist": find_fashion, "twemoji": find_twemoji, "noto": find_noto, "fluent": find_fluent}
    return {name: _place(find) for name, find in places.items()}


def _place(find: Callable[[], Any]) -> str:
    from logsnr.core.errors import MissingError

    try:
        return str(find())
    except MissingError as error:
        return f"missing: {error}"
