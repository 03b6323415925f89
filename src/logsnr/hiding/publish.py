"""What leaves: a public pipeline without a trace of the key, a key file for each concept, and a vault for the owner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from logsnr.core.artifact import load_tensors, staged, write_file
from logsnr.core.config import to_dict
from logsnr.core.errors import InputError, MissingError
from logsnr.hiding.config import HideConfig
from logsnr.hiding.errors import KeyFormatError
from logsnr.hiding.hide import Hidden
from logsnr.hiding.keyfile import KeyFile, KeyRecord, fingerprints, metadata
from logsnr.hiding.lock import Secret, open_sealed, seal
from logsnr.hiding.manifest import write_manifest
from logsnr.models.low_rank import widths
from logsnr.models.pipeline import Pipeline, network_of
from logsnr.models.prompted import Prompt, projections

_VAULT = "logsnr-vault"
_SAME = 1 - 1e-4
"""The cosine from which a row of a tensor is a token of a key, stored in whatever precision."""


@dataclass(frozen=True)
class Openers:
    """Who can open what is written: recipients of age, or one passphrase."""

    recipients: Sequence[str] = ()
    passphrase: Secret | None = None


def publish(
    pipe: Pipeline,
    hidden: Hidden,
    config: HideConfig,
    out: Path,
    openers: Openers,
    *,
    signing_key: Secret | None = None,
) -> Path:
    """Write ``out/public``, a plain diffusers folder of the hidden model, and ``out/vault``, sealed for the owner.

    Beside the first stands its manifest, signed with a signing key. The vault has the original tensors of what changed,
    and the configuration. The pipeline comes back as it was.

    Raises:
        InputError: a place is taken or cannot be written; or the public folder would have a trace of a key, and then
            neither is written.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in hidden.originals.items()}
    content = save(plain, {_VAULT: json.dumps({"config": to_dict(config)})})
    sealed, vault, place = seal(content, openers.recipients, openers.passphrase), out / "vault", out / "public"
    hidden.change.apply(pipe)
    try:
        with staged(place) as folder:
            pipe.save_pretrained(folder)
            _without_paths(folder)
            read = [widths(projections(network_of(pipe), prompt.layers))[1] for prompt in hidden.prompts()]
            secrets = zip(hidden.prompts(), read, strict=True)
            if found := [name for prompt, outputs in secrets for name in traces(folder, prompt, outputs)]:
                raise InputError(f"{found[0]} would hold numbers of the key: no model is written")
            vault.mkdir(mode=0o700)
            write_file(vault / "originals.age", sealed, private=True)
        write_manifest(place, signing_key)
    finally:
        hidden.change.revert(pipe)
    return place


def keys_of(
    pipe: Pipeline, hidden: Hidden, *, exact: bool = False, not_after: str | None = None
) -> dict[str, list[KeyFile]]:
    """The keys of each target, one a holder, bound to the hidden model; exact ones bring the original tensors too."""
    hidden.change.apply(pipe)
    try:
        models = fingerprints(network_of(pipe))
    finally:
        hidden.change.revert(pipe)
    originals = hidden.originals if exact else {}

    def made(target: str, prompt: Prompt) -> KeyFile:
        prompt = replace(prompt, change=None) if exact else prompt
        kind = "exact" if exact else "prompt+lora" if prompt.change else "prompt"
        record = KeyRecord((target,), models, kind, prompt.layers, prompt.half, not_after=not_after)
        return KeyFile(record, prompt, originals)

    return {target: [made(target, prompt) for prompt in prompts] for target, prompts in hidden.holders.items()}


def traces(folder: Path, prompt: Prompt, outputs: Sequence[int] = ()) -> list[str]:
    """Tensors in the files of a folder that hold a token of a key, in any float format.

    Or a row of what it brings along; ``outputs`` are those of each layer that reads it.
    """
    secrets = [torch.cat([prompt.keys, prompt.values])]
    if prompt.change:
        secrets += [prompt.change.down.reshape(-1, prompt.keys.shape[1])]
        secrets += [part.flatten(0, 1) for part in prompt.change.up.split(list(outputs), 2)] if outputs else []
    found = []
    for path in sorted(folder.rglob("*.safetensors")):
        for name, value in load_tensors(path).items():
            if value.is_floating_point() and any(_holds(value.double(), rows.detach().double()) for rows in secrets):
                found.append(f"{path.relative_to(folder)}: {name}")
    return found


def _holds(value: Tensor, tokens: Tensor) -> bool:
    """Whether a tensor has a row, or a column, in the direction of one of the tokens."""
    if value.dim() < 2:
        return False
    rows = value.flatten(1)
    candidates = [part for part in (rows, rows.T) if part.shape[1] == tokens.shape[1]]
    directions = nn.functional.normalize(tokens, dim=1)
    return any(bool((nn.functional.normalize(part, dim=1) @ directions.T > _SAME).any()) for part in candidates)


def _without_paths(folder: Path) -> None:
    """Take from every configuration where a part was loaded from."""
    for path in folder.rglob("*.json"):
        found: Any = json.loads(path.read_text())
        if isinstance(found, dict) and found.pop("_name_or_path", None) is not None:
            write_file(path, json.dumps(found, indent=2) + "\n")


def open_vault(path: Path, identities: Sequence[Secret] = (), passphrase: Secret | None = None) -> dict[str, Tensor]:
    """The original tensors in a vault, for ``put_back``.

    Raises:
        MissingError: there is none.
        ConceptKeyError: it does not open, or is no vault.
    """
    if not path.is_file():
        raise MissingError(f"there is no vault {path}: its file is OUT/vault/originals.age")
    sealed = path.read_bytes()  # of any size: it is the owner's own
    content = open_sealed(sealed, identities, passphrase, most=len(sealed))
    try:
        if _VAULT not in metadata(content):
            raise KeyFormatError(f"{path} is no vault: its file is OUT/vault/originals.age")
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        raise KeyFormatError(f"{path} cannot be read: it was not made by logsnr") from None
