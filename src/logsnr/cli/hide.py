"""``logsnr hide``: a public model without concepts, and a key file for each that brings it back."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from logsnr.cli.console import Flag, Model, check_writable, peak_memory_mb
from logsnr.cli.opening import Opening, Sealing
from logsnr.core.errors import InputError
from logsnr.hiding.config import HideConfig, hide_preset

if TYPE_CHECKING:
    from logsnr.hiding.hide import Hidden
    from logsnr.models.pipeline import Pipeline

_OPTIONS = ("holders", "layers", "num_tokens", "learning_rate", "anchors")
_WRITTEN = ("public", "vault", "manifest.json", "manifest.sig")
_RUN = ("steps", "batch_size", "seed")
_RANK = 4
"""Of a key's low-rank changes."""


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
    """The key file to write; of several concepts or holders a folder, with one for each in their order; by default
    OUT/keys."""
    holders: int | None = None
    """Keys of each concept: with as many recipients, one for each, so that who leaks one is known by it."""
    refuse: tuple[Path, ...] = ()
    """Key files of earlier hidings, which must not open this one: so a key that got out is rotated."""
    refuse_identity: Path | None = None
    """The identity that opens those; else a passphrase does."""
    refuse_passphrase_file: Path | None = None
    """The passphrase of those."""
    original_is_private: Flag = False
    """The original weights are and stay with you: with them beside the public model, nothing is hidden."""
    accept_no_secrecy: Flag = False
    """They are known, and that is accepted: anyone can tell what was hidden, and has it. Say one of these two."""
    owner: tuple[str, ...] = ()
    """Recipients who can open the vault; by default the passphrase of the key does. Needed beside --recipient."""
    kind: Literal["prompt", "prompt+lora", "exact"] = "prompt"
    """What a key holds: a prompt; low-rank changes beside it; or the original weights too, which bring the model back
    bit by bit."""
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
    """A signing key of `key new-signer`: signs the sidecar of every key file, and the manifest of the public model."""
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
        from logsnr.core.moment import parse_moment

        if not (self.original_is_private or self.accept_no_secrecy or self.dry_run):
            raise InputError(
                "whoever has the original weights, too, has all that is hidden: say --original-is-private if nobody "
                "else has them, or --accept-no-secrecy"
            )
        places = self._places(config)
        for folder in (self.out, *(place.parent for place in places)):
            check_writable(folder)
        for place in (*(self.out / name for name in _WRITTEN), *places):
            if place.exists():
                raise InputError(f"{place} exists already: choose another place, or remove it first")
        if (self.out / "work").exists() and not (self.resume and (self.out / "work" / "run").is_dir()):
            raise InputError(f"{self.out / 'work'} is there: add --resume to go on with it, or choose another --out")
        if config.change_rank and self.kind != "prompt+lora":
            raise InputError(f"change_rank is for --kind prompt+lora, and not for {self.kind}: say that one")
        if config.objective == "remove":
            raise InputError("what is removed has no key: take the objective recover, or `logsnr erase`")
        if self.kind == "exact" and len(config.targets) > 1:
            raise InputError("an exact key brings all that was hidden back: hide one concept, or take the kind prompt")
        if config.holders > 1 and self.recipient and len(self.recipient) != config.holders:
            raise InputError(f"{config.holders} holders need as many recipients: {len(self.recipient)} are given")
        if self.recipient and not self.owner:
            raise InputError("say who the vault is for, which has the original weights: --owner age1..., yourself")
        if self.not_after:
            parse_moment(self.not_after)

    def _config(self) -> HideConfig:
        """The method's options, then those of the file, then those given."""
        from logsnr.core.config import from_dict, read_json, to_dict

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
        asked = {**given, **options}
        keys = from_dict(HideConfig, {name: asked[name] for name in ("targets", "holders") if name in asked})
        found = to_dict(hide_preset(self.method, *keys.targets, holders=keys.holders))
        merged = {**found, **given, **options} | {name: {**found[name], **given.get(name, {})} for name in nested}
        merged["run"] |= {**run, "resume": self.resume}
        if self.kind == "prompt+lora":
            merged["change_rank"] = merged["change_rank"] or _RANK
        return from_dict(HideConfig, merged)

    def _places(self, config: HideConfig) -> list[Path]:
        """The key file of each target and holder."""
        count, folder = len(config.targets), self.key or self.out / "keys"
        if self.key and count == config.holders == 1:
            return [self.key]
        if config.holders == 1:
            return [folder / f"key-{target}.key" for target in range(1, count + 1)]
        holders = range(1, config.holders + 1)
        return [folder / f"key-{target}-{holder}.key" for target in range(1, count + 1) for holder in holders]

    def _hide(self, pipe: Pipeline, config: HideConfig) -> int:
        from logsnr.hiding.hide import hide_steps

        start, work = time.monotonic(), self.out / "work"
        refused, signing, openers, owner = self._refused(), self._signing(), self.openers(), self._owner()
        self._fits(pipe, config)
        work.mkdir(mode=0o700, parents=True, exist_ok=True)  # its checkpoints hold the keys
        config = replace(config, run=replace(config.run, out=work / "run"))
        hidden: Hidden | None = self.follow(hide_steps(pipe, config, refused))
        if hidden is None:
            return 130
        values = self._write(pipe, hidden, config, openers, owner or openers, signing)
        shutil.rmtree(work)
        values |= {"network_evaluations": hidden.cost.network_evaluations}
        values["seconds"] = round(time.monotonic() - start, 1)
        self.result(values, _lines(config, values))
        return 0

    def _refused(self) -> list[Any]:
        """The prompts of keys that must not open any more."""
        opening = Opening(identity=self.refuse_identity, passphrase_file=self.refuse_passphrase_file)
        return [opening.open(place).prompt for place in self.refuse]

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
        from logsnr.hiding.signing import read_signing_key

        return read_signing_key(self.sign) if self.sign else None

    def _write(
        self, pipe: Pipeline, hidden: Hidden, config: HideConfig, openers: Any, owner: Any, signing: Any
    ) -> dict[str, Any]:
        """The keys with their sidecars, then the vault and the public model."""
        from logsnr.hiding.publish import Openers, keys_of, publish
        from logsnr.hiding.sidecar import describe

        made = keys_of(pipe, hidden, exact=self.kind == "exact", not_after=self.not_after).values()
        keys = [(holder, key) for holders in made for holder, key in enumerate(holders)]
        places, (recipients, passphrase) = self._places(config), openers
        for place, (holder, key) in zip(places, keys, strict=True):
            place.parent.mkdir(parents=True, exist_ok=True)
            listed = {f"recipient {number}": text for number, text in enumerate(recipients, 1)}
            if config.holders > 1 and recipients:
                listed = {f"recipient {holder + 1}": recipients[holder]}
            key.save(place, list(listed.values()), passphrase)
            sidecar = describe(key, place.read_bytes(), listed, public_names=self.public_names)
            (sidecar.signed(signing) if signing else sidecar).save(place)
        model = publish(pipe, hidden, config, self.out, Openers(*owner), signing_key=signing)
        written = [str(place) for place in places]
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
            "would_write": [str(self.out / "public"), *map(str, self._places(config))],
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
