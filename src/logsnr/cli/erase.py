"""``logsnr erase``: a small delta that takes concepts out of a model and keeps the others."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from logsnr.cli.console import Console, Flag, Model, check_writable, peak_memory_mb
from logsnr.core.errors import InputError
from logsnr.erasure.config import EraseConfig, preset

if TYPE_CHECKING:
    from logsnr.models.delta import Delta
    from logsnr.models.pipeline import Pipeline

_OPTIONS = (
    "anchor",
    "preserved",
    "protected",
    "modules",
    "adapter_rank",
    "strength",
    "learning_rate",
    "adversary",
    "loss_weighting",
)
_NESTED = ("run", "candidates", "robust")
_RUN = ("steps", "batch_size", "seed")


@dataclass(frozen=True, kw_only=True)
class Erase(Console):
    """Erase concepts from a model: a delta for `sample --delta`, with what it cost; `evaluate --delta` measures it."""

    model: Model
    """An embedded world (fashion, emoji), a diffusers folder, a .safetensors file or a hub id."""
    target: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = ()
    """Concepts to erase, as bare names."""
    method: str = "eap"
    """eap (adversarial preservation), eap-projected (with the kept prompts protected), eap-paper (as released), robust
    (against attacks too), esd, esd-x0, esd-preserve, spm, advunlearn, age, ca, mace, uce, uce-tensor or rece."""
    config: Path | None = None
    """A JSON file of any options of EraseConfig, over those of the method; the options below come after it."""
    after: tuple[Path, ...] = ()
    """Earlier deltas to build on, in their order: what they erased and held stays so, unless it is erased now; edits
    keys and values. The share of it that stays is protected_energy, by default all."""
    anchor: str | None = None
    """The prompt that a target is led towards; "" by default."""
    preserved: tuple[str, ...] | None = None
    """Prompts that closed forms and a fixed adversary hold in place."""
    protected: tuple[str, ...] | None = None
    """Prompts whose keys and values stay as they are, for eap-projected; of a world, by default all its others."""
    modules: tuple[str, ...] | None = None
    """Parameters to edit: xattn, xattn-kv, selfattn, noxattn, notime, full, or regular expressions."""
    adapter_rank: int | None = None
    """Train low-rank adapters of this rank instead of whole matrices."""
    strength: float | None = None
    """The most that a weight can move over the whole run, as a share of the weights' root mean square; 0.4."""
    learning_rate: float | None = None
    """A learning rate in place of the one that strength and steps make."""
    adversary: str | None = None
    """Who chooses the concept to hold in place: gumbel, exhaustive, random, pgd, directions, fixed or none."""
    loss_weighting: str | None = None
    """Whether errors are those of the noise (epsilon), of clean data (x0), or min_snr."""
    steps: int | None = None
    """Steps of training."""
    batch_size: int | None = None
    """Targets in one step."""
    seed: int | None = None
    """Seed of everything that is drawn."""
    export: tuple[Literal["peft", "diffusers", "kohya", "comfyui"], ...] = ()
    """Write the delta for other programs too, to OUT/FORMAT: low-rank adapters, or for comfyui the whole difference."""
    rank: int = 16
    """Rank of the adapters; what they leave out is printed, and OUT/rank-RANK has it as a delta to measure."""
    list_candidates: Flag = False
    """Print what the adversary may choose from, nearest first, and what is left out; and stop."""
    out: Path = Path("out")
    """Folder of the run; the delta stands in OUT/delta."""
    resume: Flag = False
    """Go on from the last checkpoint in OUT."""
    dry_run: Flag = False
    """Build everything, train one step, and print evaluations, memory, time and what would be written."""

    def run(self) -> int:
        from logsnr.erasure.targets import with_words
        from logsnr.worlds.load import is_world, load, load_world

        if self.rank < 1:
            raise InputError(f"rank is {self.rank}: an adapter has at least rank 1")
        config = self._config()
        check_writable(self.out)
        if (self.out / "delta").exists():
            raise InputError(f"{self.out / 'delta'} exists already: choose another --out, or remove it first")
        pipe = load(self.model)
        if is_world(self.model):
            config = with_words(load_world(self.model).captions, config)
        config = self._build_on(pipe, config)
        if self.list_candidates:
            return self._list(pipe, config)
        return self._dry_run(pipe, config) if self.dry_run else self._erase(pipe, config)

    def _config(self) -> EraseConfig:
        """The method's options, then those of the file, then those given."""
        from logsnr.core.config import from_dict, read_json, to_dict

        found = to_dict(preset(self.method, *(self.target or ("?",))))
        given: dict[str, Any] = read_json(self.config) if self.config else {}
        if not isinstance(given, dict) or not all(isinstance(given.get(name, {}), dict) for name in _NESTED):
            raise InputError(f"{self.config} is no JSON object of options: write names and values of EraseConfig")
        options = {name: getattr(self, name) for name in _OPTIONS if getattr(self, name) is not None}
        run = {name: getattr(self, name) for name in _RUN if getattr(self, name) is not None}
        if self.target:
            options["targets"] = self.target
        elif "targets" not in given:
            raise InputError("there is nothing to erase: say --target NAME, or name targets in --config")
        merged = {**found, **given, **options}
        merged |= {name: {**found[name], **given.get(name, {})} for name in _NESTED}
        merged["run"] |= {**run, "resume": self.resume}
        return from_dict(EraseConfig, merged)

    def _build_on(self, pipe: Pipeline, config: EraseConfig) -> EraseConfig:
        """The earlier deltas put into the pipeline, and what they erased and held protected."""
        from logsnr.erasure.targets import names_any
        from logsnr.models.delta import Delta

        if not self.after:
            return config
        protected = list(config.protected)
        modules = ("xattn-kv",) if config.modules == EraseConfig.modules else config.modules
        for folder in self.after:
            delta = Delta.from_pretrained(folder)
            delta.merge(pipe)
            earlier = delta.record.config
            protected += [*delta.record.targets, *earlier.get("preserved", ()), *earlier.get("protected", ())]
        kin = {*config.targets, *config.candidates.exclude}
        kept = [prompt for prompt in dict.fromkeys(protected) if not names_any(prompt, kin)]
        return replace(config, protected=tuple(kept), modules=modules)

    def _erase(self, pipe: Pipeline, config: EraseConfig) -> int:
        from logsnr.erasure.erase import erase_steps

        start = time.monotonic()
        config = replace(config, run=replace(config.run, out=self.out / "work"))
        delta: Delta | None = self.follow(erase_steps(pipe, config))
        if delta is None:
            return 130
        delta.save_pretrained(self.out / "delta")
        values = _values(delta, self.out / "delta", time.monotonic() - start)
        values["exports"] = self._export(pipe, delta)
        self.result(values, _lines(delta, values))
        return 0

    def _export(self, pipe: Pipeline, delta: Delta) -> dict[str, Any]:
        """The delta in other formats, and as the adapters have it."""
        from logsnr.models.export import export_delta, truncated

        written: dict[str, Any] = {}
        for name in self.export:
            written[name] = asdict(export_delta(delta, pipe, self.out / name, name, rank=self.rank))
        if set(written) - {"comfyui"}:
            truncated(delta, pipe, self.rank).save_pretrained(self.out / f"rank-{self.rank}")
        return written

    def _list(self, pipe: Pipeline, config: EraseConfig) -> int:
        from logsnr.erasure.erase import candidates_of

        found = candidates_of(pipe, config)
        if not found:
            raise InputError(f"{self.method} searches no candidates: use eap, with the adversary gumbel or exhaustive")
        lists = {one.target: dict(zip(one.names, one.distances, strict=True)) for one in found}
        lines = [f"{target}: {name} {gap:.4g}" for target, near in lists.items() for name, gap in near.items()]
        values = {"candidates": lists, "excluded": list(found[0].excluded)}
        self.result(values, [*lines, f"left out: {', '.join(found[0].excluded) or 'none'}"])
        return 0

    def _dry_run(self, pipe: Pipeline, config: EraseConfig) -> int:
        from logsnr.erasure.erase import erase

        start, first = time.monotonic(), replace(config, run=replace(config.run, steps=1))
        found = erase(pipe, config=first).record.metrics
        seconds, spent = time.monotonic() - start, found.get("network_evaluations", 1)
        whole = found.get("pilot_evaluations", 0) + config.run.steps * found.get("expected_evaluations_a_step", 0)
        values = {
            "network_evaluations": round(whole),
            "seconds_estimated": round(seconds * whole / spent, 1),
            "memory_mb": peak_memory_mb(),
            "would_write": [str(self.out / "delta"), str(self.out / "work")],
        }
        self.result(values, [f"{name}: {value}" for name, value in values.items()])
        return 0


def _values(delta: Delta, place: Path, seconds: float) -> dict[str, Any]:
    metrics = delta.record.metrics
    return {
        "delta": str(place),
        "network_evaluations": metrics.get("network_evaluations", 0),
        "evaluation_equivalents": metrics.get("evaluation_equivalents", 0),
        "seconds": round(seconds, 1),
        "candidates": metrics.get("candidates", {}),
    }


def _lines(delta: Delta, values: dict[str, Any]) -> list[str]:
    numbers = sum(tensor.numel() for tensor in delta.tensors.values())
    return [
        f"{', '.join(delta.record.targets)} erased in {len(delta.tensors)} tensors ({numbers:,} numbers)",
        f"{values['network_evaluations']:,} network evaluations, {values['seconds']} s: {values['delta']}",
        *(
            f"{name}: {found['path']}, {found['error']:.1%} of the change is not in it"
            for name, found in values["exports"].items()
        ),
        "what it erased and what it hurt is not measured yet: see logsnr evaluate --protocol erasure",
    ]
