"""``erase``: from a pipeline and the names of concepts to a delta that removes them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from logsnr.core.config import to_dict
from logsnr.core.steps import finish
from logsnr.erasure.ablation import ConceptAblation
from logsnr.erasure.candidates import Candidates, find_candidates, keep_candidates
from logsnr.erasure.closed_form import edit_closed_form
from logsnr.erasure.config import EraseConfig, preset
from logsnr.erasure.mace import mace_steps
from logsnr.erasure.method import OutputErasure
from logsnr.models.delta import Delta
from logsnr.models.pipeline import Pipeline, check_pipeline
from logsnr.models.text import check_targets
from logsnr.train.loop import Progress, fit

_CLOSED = ("uce", "rece")
_SEARCHING = ("gumbel", "exhaustive", "random")


def erase(
    pipe: Pipeline,
    *targets: str,
    config: EraseConfig | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Delta:
    """A delta of the pipeline that does not draw the targets; the pipeline itself comes back as it was.

    Give names, for the preset "eap", or a whole ``config``. ``delta.apply(pipe)`` erases.

    Raises:
        InputError: nothing to erase, a target longer than the text window, an empty selection of parameters, or no
            candidate is left.
        UnsupportedError: a pipeline of another kind, or a quantised or offloaded one.
    """
    return finish(erase_steps(pipe, config or preset("eap", *targets)), progress)


def erase_steps(pipe: Pipeline, config: EraseConfig) -> Generator[Progress, None, Delta]:
    """Yield after every step of training, and return the delta; closing it saves a checkpoint if the run has a folder.

    The errors are ``erase``'s.
    """
    start = time.perf_counter()
    check_pipeline(pipe)
    check_targets(pipe, config.targets)
    if config.method in _CLOSED:
        return _recorded(edit_closed_form(pipe, config), config, start)
    if config.method == "mace":
        return _recorded((yield from mace_steps(pipe, config)), config, start)
    method = make_method(pipe, config)
    try:
        if method.candidates and (cache := _cache(config)):
            keep_candidates(cache, pipe, config.candidates, method.candidates)
        yield from fit(method, None, config.run)
        return _recorded(method.delta(), config, start)
    finally:
        method.scores.restore()


def make_method(pipe: Pipeline, config: EraseConfig) -> OutputErasure:
    """What ``fit`` trains, for looks at a run between its steps; ``scores.restore()`` gives the pipeline back."""
    if config.method == "ca":
        return ConceptAblation(pipe, config)
    return OutputErasure(pipe, config, candidates_of(pipe, config))


def candidates_of(pipe: Pipeline, config: EraseConfig) -> list[Candidates]:
    """The candidates of each target; none where the configuration does not search among any."""
    if config.method in (*_CLOSED, "ca") or config.adversary not in _SEARCHING:
        return []
    return find_candidates(pipe, config.targets, config.candidates, cache=_cache(config))


def _cache(config: EraseConfig) -> Path | None:
    """Where a run keeps its candidates, for when it goes on."""
    return config.run.out / "candidates.json" if config.run.out else None


def _recorded(delta: Delta, config: EraseConfig, start: float) -> Delta:
    if not delta.tensors:
        warnings.warn("no parameter has changed: raise the strength or the number of steps", stacklevel=3)
    metrics: dict[str, Any] = {**delta.record.metrics, "seconds": round(time.perf_counter() - start, 1)}
    return Delta(delta.tensors, replace(delta.record, config=to_dict(config), metrics=metrics))
