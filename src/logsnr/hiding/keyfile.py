"""The key file: a key's tensors as safetensors inside an age file, and what has to be right before it is used."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from logsnr.core.artifact import write_file
from logsnr.core.config import from_dict
from logsnr.core.errors import InputError, MissingError
from logsnr.core.moment import parse_moment
from logsnr.hiding.errors import KeyExpiredError, KeyFormatError, KeyShapeError, ModelMismatchError
from logsnr.hiding.lock import MOST_BYTES, Secret, open_sealed, seal
from logsnr.models.fingerprint import exact_fingerprint
from logsnr.models.low_rank import LowRank
from logsnr.models.prompted import LAYERS, Prompt, change_widths, prompt_width

VERSION, SHORT = 1, 16
KINDS = ("prompt", "prompt+lora", "exact")
_KEYS, _VALUES, _DOWN, _UP, _ORIGINAL = "prompt.k", "prompt.v", "lora.down", "lora.up", "original."


@dataclass(frozen=True)
class KeyRecord:
    """What a key says of itself, inside the file: nothing of it can be read without opening it.

    ``not_before`` and ``not_after`` are dates in ISO form, and advice: whoever can open the file can change its clock.
    """

    concepts: tuple[str, ...]
    models: tuple[str, ...]
    kind: str = "prompt"
    layers: str = "mid"
    half: str = "both"
    key_id: str = field(default_factory=lambda: secrets.token_hex(16))
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    not_before: str | None = None
    not_after: str | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        for text in (self.created, self.not_before, self.not_after):
            if text is not None:
                parse_moment(text)


@dataclass(frozen=True)
class KeyFile:
    """A key: its prompt, with its change for the kind ``prompt+lora``; for ``exact`` the originals too; its record."""

    record: KeyRecord
    prompt: Prompt
    originals: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"KeyFile({self.record.key_id})"

    def save(self, path: Path, recipients: Sequence[str] = (), passphrase: Secret | None = None) -> None:
        """Write the age file, whole or not at all, for the eyes of its owner.

        Raises:
            InputError: nobody, or both kinds of openers, are named; a recipient is none; or it would be far too large.
        """
        content = self.to_bytes()
        if len(content) > MOST_BYTES:
            raise InputError(f"the key would have {len(content):,} bytes, and key files have at most {MOST_BYTES:,}")
        write_file(path, seal(content, recipients, passphrase), private=True)

    @classmethod
    def open(cls, path: Path, identities: Sequence[Secret] = (), passphrase: Secret | None = None) -> KeyFile:
        """Read a key file.

        Raises:
            MissingError: there is none.
            ConceptKeyError: it does not open, is damaged, or is no key file.
        """
        return cls.from_bytes(open_sealed(read_key(path), identities, passphrase))

    def to_bytes(self) -> bytes:
        """What is sealed: safetensors, whose metadata is the record."""
        tensors = {_KEYS: self.prompt.keys, _VALUES: self.prompt.values}
        if self.prompt.change:
            tensors |= {_DOWN: self.prompt.change.down, _UP: self.prompt.change.up}
        tensors |= {f"{_ORIGINAL}{name}": value for name, value in self.originals.items()}
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        return save(plain, {"logsnr-key": json.dumps(asdict(self.record))})

    @classmethod
    def from_bytes(cls, content: bytes) -> KeyFile:
        """The inverse of ``to_bytes``.

        Raises:
            KeyFormatError: it is no key, or one of a later version.
            KeyShapeError: its tensors are not a prompt.
        """
        record = _record(content)
        try:
            tensors = load(content)
        except SafetensorError:
            raise KeyFormatError("the key's tensors cannot be read: it was not made by logsnr") from None
        keys, values = tensors.pop(_KEYS, None), tensors.pop(_VALUES, None)
        if keys is None or values is None or keys.dim() != 2 or keys.shape != values.shape or not len(keys):
            raise KeyShapeError("the key holds no tokens for keys and for values of one shape")
        if not (keys.isfinite().all() and values.isfinite().all()):
            raise KeyShapeError("the key's tokens are no finite numbers")
        change = _change(tensors) if record.kind == "prompt+lora" else None
        if any(not name.startswith(_ORIGINAL) for name in tensors) or bool(tensors) != (record.kind == "exact"):
            raise KeyShapeError(f"the key holds other tensors than one of the kind {record.kind!r} does")
        originals = {name.removeprefix(_ORIGINAL): value for name, value in tensors.items()}
        return cls(record, Prompt(keys, values, record.layers, record.half, change), originals)

    def check(self, network: nn.Module, now: datetime | None = None) -> None:
        """Refuse to be used beyond its dates, on another network, or on one that cannot read it.

        Raises:
            KeyExpiredError, ModelMismatchError, KeyShapeError: as they say.
        """
        self.check_dates(now)
        self.check_model(network)

    def check_model(self, network: nn.Module) -> None:
        """Refuse to be used on another network, or on one that cannot read it.

        Raises:
            ModelMismatchError, KeyShapeError: as they say.
        """
        found, record = exact_fingerprint(network), self.record
        if found not in record.models:
            raise ModelMismatchError(
                f"the key is for the model {record.models[0][:SHORT]}, this one is {found[:SHORT]}"
            )
        if self.prompt.keys.shape[1] != prompt_width(network, record.layers):
            raise KeyShapeError(f"the key's tokens have width {self.prompt.keys.shape[1]}: this network reads others")
        change = self.prompt.change
        if change and (change.down.shape[2], change.up.shape[2]) != change_widths(network, record.layers):
            raise KeyShapeError("the key's low-rank change is one of other layers than this network's")

    def check_dates(self, now: datetime | None = None) -> None:
        """Refuse to be used beyond its dates.

        Raises:
            KeyExpiredError: as said.
        """
        now, record = now or datetime.now(UTC), self.record
        if record.not_before and now < datetime.fromisoformat(record.not_before):
            raise KeyExpiredError(f"the key is valid from {record.not_before} on")
        if record.not_after and now > datetime.fromisoformat(record.not_after):
            raise KeyExpiredError(f"the key was valid until {record.not_after}: ask for a new one")


def _change(tensors: dict[str, Tensor]) -> LowRank:
    """The low-rank change of a key, taken out of its tensors.

    Raises:
        KeyShapeError: it has none.
    """
    down, up = tensors.pop(_DOWN, None), tensors.pop(_UP, None)
    if down is None or up is None or down.dim() != 3 or down.shape[:2] != up.shape[:2] or down.shape[0] != 2:
        raise KeyShapeError("the key holds no low-rank change of one rank, for keys and for values")
    if up.dim() != 3 or not (down.isfinite().all() and up.isfinite().all()):
        raise KeyShapeError("the key's low-rank change is no matrix of finite numbers")
    return LowRank(down, up)


def _record(content: bytes) -> KeyRecord:
    """The record in the header of safetensors.

    Raises:
        KeyFormatError: there is none that can be used.
    """
    try:
        found = json.loads(metadata(content)["logsnr-key"])
        if found["version"] != VERSION:
            known = f"the key has version {found['version']!s:.20}, and {VERSION} is known: get a newer logsnr"
            raise KeyFormatError(known)
        record = from_dict(KeyRecord, found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise KeyFormatError("inside is no key of logsnr: its record cannot be read") from None
    if record.kind not in KINDS or record.layers not in LAYERS or record.half not in ("both", "conditional"):
        raise KeyFormatError(f"the key is of a kind that is not known here: {record.kind!s:.20}, {record.layers!s:.20}")
    if not record.concepts or not record.models:
        raise KeyFormatError("the key names no concept, or no model")
    return record


def metadata(content: bytes) -> dict[str, str]:
    """The metadata in the header of safetensors; a ValueError, KeyError or TypeError if there is none."""
    size = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + size])["__metadata__"])


def read_key(path: Path) -> bytes:
    """The bytes of a key file, as they are.

    Raises:
        MissingError: there is none.
        KeyFormatError: it is far too large.
    """
    if not path.is_file():
        raise MissingError(f"there is no key file {path}")
    size = path.stat().st_size
    if size > 2 * MOST_BYTES:
        raise KeyFormatError(f"{path} has {size:,} bytes: key files have at most {MOST_BYTES:,}")
    return path.read_bytes()


def fingerprints(network: nn.Module) -> tuple[str, ...]:
    """The network's exact fingerprints as it is, and cast to every type that pipelines are loaded in."""
    kinds = (None, torch.float32, torch.float16, torch.bfloat16)
    return tuple(dict.fromkeys(exact_fingerprint(network, kind) for kind in kinds))
