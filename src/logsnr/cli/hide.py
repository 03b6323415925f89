"""``logsnr hide``: a public model without concepts, and a key file for each that brings it back."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from logsnr.cli.console import Flag, Model, check_writable, peak_memory_mb
from logsnr.cli.opening import Sealing
from logsnr.core.errors import InputError
from logsnr.hiding.config import HideConfig, hide_preset

if TYPE_CHECKING:
    from logsnr.hiding.hide import Hidden
    from logsnr.models.pipeline import Pipeline

_OPTIONS = ("layers", "num_tokens", "learning_rate", "anchors")
_RUN = ("steps", "batch_size", "seed")


@dataclass(frozen=True, kw_only=True)
class Hide(Sealing):
    """Hide concepts: OUT/public is a plain pipeline that does not draw them, the key file brings them back."""

    model: Model
    """An embedded world (fashion, emoji), a diffusers folder, a .safetensors file or a hub id."""
    target: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = ()
    """Concepts to hide, as bare names; each gets a key of its own."""
    method: str = "balanced"
    """balanced, robust (against keys that an attacker trains) or paper (as its authors ran it)."""
    config: Path | None = None
    """A JSON file of any options of HideConfig, over those of the method; the options below come after it."""
    key: Path | None = None
    """The key file to write; of several concepts a folder, with one for each in their order; by default OUT/keys."""
    owner: tuple[str, ...] = ()
    """Recipients who can open the vault; by default the passphrase of the key does. Needed beside --recipient."""
    kind: Literal["prompt", "exact"] = "prompt"
    """What a key holds: a prompt, or the original weights too, which bring the model back bit by bit."""
    not_after: str | None = None
    """The last moment at which the key is to be used, as 2027-01-31T00:00:00+00:00: advice that logsnr follows."""
    layers: str | None = None
    """Layers that read the key: mid, midout or all."""
    num_tokens: int | None = None
    """Tokens of a key."""
    learning_rate: float | None = None
    """Learning rate of the network."""
    anchors: tuple[str, ...] | None = None
    """Prompts that are kept; of a world, by default all that its captions say of other concepts."""
    steps: int | None = None
    """Steps of training, of keys and network together."""
    batch_size: int | None = None
    """Samples of each kind in one step."""
    seed: int | None = None
    """Seed of everything that is drawn."""
    sign: Path | None = None
    """A signing key of `key new-signer`: signs the sidecar of every key file."""
    public_names: Flag = False
    """Name the hidden concepts in the sidecars, in clear."""
    out: Path = Path("out")
    """Folder of the run; the model stands in OUT/public, what its owner needs in OUT/vault."""
    resume: Flag = False
    """Go on from the last checkpoint in OUT."""
    dry_run: Flag = False
    """Build everything, train one step, and print evaluations, memory, time and what would be written."""

    def run(self) -> int:
        from logsnr.hiding.hide import with_captions
        from logsnr.worlds.load import is_world, load, load_world

        config = self._config()
        self._check(config)
        pipe = load(self.model)
        if is_world(self.model):
            config = with_captions(load_world(self.model).captions, config)
        return self._dry_run(pipe, config) if self.dry_run else self._hide(pipe, config)

    def _check(self, config: HideConfig) -> None:
        """Refuse, before any work, what could not be written in the end."""
        from logsnr.hiding.keyfile import check_moment

        places = self._places(config.targets)
        for folder in (self.out, *(place.parent for place in places.values())):
            check_writable(folder)
        for place in (self.out / "public", self.out / "vault", *places.values()):
            if place.exists():
                raise InputError(f"{place} exists already: choose another place, or remove it first")
        if (self.out / "work").exists() and not (self.resume and (self.out / "work" / "run").is_dir()):
            raise InputError(f"{self.out / 'work'} is there: add --resume to go on with it, or choose another --out")
        if self.kind == "exact" and len(config.targets) > 1:
            raise InputError("an exact key brings all that was hidden back: hide one concept, or take the kind prompt")
        if self.recipient and not self.owner:
            raise InputError("say who the vault is for, which has the original weights: --owner age1..., yourself")
        if self.not_after:
            check_moment(self.not_after)

    def _config(self) -> HideConfig:
        """The method's options, then those of the file, then those given."""
        from logsnr.core.config import from_dict, read_json, to_dict

        found = to_dict(hide_preset(self.method, *(self.target or ("?",))))
        given: dict[str, Any] = read_json(self.config) if self.config else {}
        nested = ("run", "weights")
        if not isinstance(given, dict) or not all(isinstance(given.get(name, {}), dict) for name in nested):
            raise InputError(f"{self.config} is no JSON object of options: write names and values of HideConfig")
        options = {name: getattr(self, name) for name in _OPTIONS if getattr(self, name) is not None}
        run = {name: getattr(self, name) for name in _RUN if getattr(self, name) is not None}
        if self.target:
            options["targets"] = self.target
        elif "targets" not in given:
            raise InputError("there is nothing to hide: say --target NAME, or name targets in --config")
        merged = {**found, **given, **options} | {name: {**found[name], **given.get(name, {})} for name in nested}
        merged["run"] |= {**run, "resume": self.resume}
        return from_dict(HideConfig, merged)

    def _places(self, targets: tuple[str, ...]) -> dict[str, Path]:
        """The key file of each target."""
        if self.key and len(targets) == 1:
            return {targets[0]: self.key}
        folder = self.key or self.out / "keys"
        return {target: folder / f"key-{number}.key" for number, target in enumerate(targets, 1)}

    def _hide(self, pipe: Pipeline, config: HideConfig) -> int:
        from logsnr.hiding.hide import hide_steps

        start, work = time.monotonic(), self.out / "work"
        signing, openers, owner = self._signing(), self.openers(), self._owner()  # before hours of training
        self._fits(pipe, config)
        work.mkdir(mode=0o700, parents=True, exist_ok=True)  # its checkpoints hold the keys
        config = replace(config, run=replace(config.run, out=work / "run"))
        hidden: Hidden | None = self.follow(hide_steps(pipe, config))
        if hidden is None:
            return 130
        values = self._write(pipe, hidden, config, openers, owner or openers, signing)
        shutil.rmtree(work)
        values |= {"network_evaluations": hidden.cost.network_evaluations}
        values["seconds"] = round(time.monotonic() - start, 1)
        self.result(values, _lines(config, values))
        return 0

    def _owner(self) -> Any:
        from logsnr.hiding.lock import check_recipients

        check_recipients(self.owner)
        return (self.owner, None) if self.owner else None

    def _fits(self, pipe: Pipeline, config: HideConfig) -> None:
        """Refuse an exact key that would be too large."""
        from logsnr.hiding.lock import MOST_BYTES
        from logsnr.models.parameters import select_parameters
        from logsnr.models.pipeline import network_of

        changed = select_parameters(network_of(pipe), config.modules).values()
        size = sum(parameter.numel() * parameter.element_size() for parameter in changed)
        if self.kind == "exact" and size > 0.9 * MOST_BYTES:
            raise InputError(
                f"an exact key of {size:,} bytes is too large, {MOST_BYTES:,} are allowed: edit fewer parameters, or "
                "take the kind prompt"
            )

    def _signing(self) -> Any:
        from logsnr.hiding.sidecar import read_signing_key

        return read_signing_key(self.sign) if self.sign else None

    def _write(
        self, pipe: Pipeline, hidden: Hidden, config: HideConfig, openers: Any, owner: Any, signing: Any
    ) -> dict[str, Any]:
        """The keys with their sidecars, then the vault and the public model."""
        from logsnr.hiding.publish import Openers, keys_of, publish
        from logsnr.hiding.sidecar import describe

        keys = keys_of(pipe, hidden, exact=self.kind == "exact", not_after=self.not_after)
        places = self._places(config.targets)
        for target, key in keys.items():
            places[target].parent.mkdir(parents=True, exist_ok=True)
            key.save(places[target], *openers)
            listed = {f"recipient {place}": text for place, text in enumerate(openers[0], 1)}
            sidecar = describe(key, places[target].read_bytes(), listed, public_names=self.public_names)
            (sidecar.signed(signing) if signing else sidecar).save(places[target])
        model = publish(pipe, hidden, config, self.out, Openers(*owner))
        written = [str(place) for place in places.values()]
        found = written if len(written) > 1 else written[0]
        return {"model": str(model), "vault": str(self.out / "vault"), "key": found}

    def _dry_run(self, pipe: Pipeline, config: HideConfig) -> int:
        from logsnr.hiding.hide import hide

        start = time.monotonic()
        each = config.prompt_steps + 1
        hidden = hide(pipe, config=replace(config, run=replace(config.run, steps=each)))
        seconds, spent = time.monotonic() - start, hidden.cost
        fixed = spent.forward.get("bank", 0)
        whole = fixed + (spent.network_evaluations - fixed) / each * config.run.steps
        values = {
            "network_evaluations": round(whole),
            "seconds_estimated": round(seconds * whole / spent.network_evaluations, 1),
            "memory_mb": peak_memory_mb(),
            "would_write": [str(self.out / "public"), *map(str, self._places(config.targets).values())],
        }
        self.result(values, [f"{name}: {value}" for name, value in values.items()])
        return 0


def _lines(config: HideConfig, values: dict[str, Any]) -> list[str]:
    keys = values["key"] if isinstance(values["key"], list) else [values["key"]]
    return [
        f"{', '.join(config.targets)} hidden in {values['model']}; {', '.join(keys)} brings it back",
        f"{values['network_evaluations']:,} network evaluations, {values['seconds']} s; yours alone: {values['vault']}",
        "hidden is not erased: whoever has the weights and enough images can train the concept anew",
    ]
