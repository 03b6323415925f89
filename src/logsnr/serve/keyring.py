"""The key files of a folder, each opened once by the server's identity, and what unlocks a set of concepts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from logsnr.core.errors import BrokenError, InputError, MissingError
from logsnr.hiding.errors import ConceptKeyError, KeyExpiredError
from logsnr.hiding.keyfile import KeyFile, read_key
from logsnr.hiding.lock import Secret, open_sealed, read_identities
from logsnr.hiding.sidecar import Sidecar
from logsnr.models.prompted import Prompt, side_by_side
from logsnr.serve.errors import RefusedError


@dataclass(frozen=True)
class Unlocked:
    """What a request samples with: a prompt, or the name of an exact key whose weights a pipeline of its own has."""

    prompt: Prompt | None = None
    exact: str | None = None


@dataclass(frozen=True, repr=False)
class Keyring:
    """Opened keys by the concepts that they bring back; of several for one, the first valid by its file's name."""

    by_concept: dict[str, list[KeyFile]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Keyring({len(self.by_concept)} concepts)"

    def valid(self, concepts: Sequence[str]) -> tuple[str, ...]:
        """Those of these concepts that have a key here, within its dates."""
        return tuple(concept for concept in concepts if self._key(concept))

    def _key(self, concept: str) -> KeyFile | None:
        for key in self.by_concept.get(concept, []):
            with suppress(KeyExpiredError):
                key.check_dates()
                return key
        return None

    def unlocked(self, concepts: Sequence[str]) -> Unlocked:
        """What brings these concepts back, together.

        Raises:
            RefusedError: 403, a concept has no valid key here; 400, keys that cannot be read together.
        """
        found = [self._key(concept) for concept in concepts]
        keys = {key.record.key_id: key for key in found if key}
        if None in found:
            raise RefusedError(403, "no_key", "a concept that was asked for has no valid key here")
        return _together(list(keys.values()))

    def exact(self) -> dict[str, KeyFile]:
        """The keys that hold original weights, by their names."""
        keys = (key for several in self.by_concept.values() for key in several)
        return {key.record.key_id: key for key in keys if key.originals}


def open_keyring(folder: Path | None, identity: Path | None, network: nn.Module) -> Keyring:
    """Every key file of a folder; sidecars that are there have to fit.

    Raises:
        MissingError: there is no such folder, or no key in it.
        InputError: the identity cannot be read.
        ConceptKeyError: a file does not open, is damaged, or belongs to another model: none is passed over.
    """
    if folder is None or identity is None:
        return Keyring()
    if not folder.is_dir():
        raise MissingError(f"there is no folder of keys {folder}: make it, and put key files of `hide` into it")
    places = sorted(place for place in folder.iterdir() if place.is_file() and not _beside(place))
    if not places:
        raise MissingError(f"{folder} holds no key: put key files of `hide` into it, or leave --key-dir out")
    identities, found = read_identities(identity), dict[str, list[KeyFile]]()
    for place in places:
        key = _open(place, identities, network)
        for concept in key.record.concepts:
            found.setdefault(concept, []).append(key)
    return Keyring(found)


def _beside(place: Path) -> bool:
    """Whether a file is a sidecar, or hidden."""
    return place.suffix == ".json" or place.name.startswith(".")


def _open(place: Path, identities: Sequence[Secret], network: nn.Module) -> KeyFile:
    """A key whose model is this one; its dates are looked at whenever it is used."""
    try:
        content, sidecar = read_key(place), Sidecar.open(place)
        if sidecar is not None:
            sidecar.check(content)
        key = KeyFile.from_bytes(open_sealed(content, identities))
        key.check_model(network)
    except ConceptKeyError as error:
        raise type(error)(f"{place}: {error}") from None
    except OSError as error:
        raise BrokenError(f"{place} cannot be read: {error.strerror}") from None
    return key


def _together(keys: Sequence[KeyFile]) -> Unlocked:
    """Keys that are read at once: their tokens stand side by side, in the order of the request."""
    if not keys:
        return Unlocked()
    if any(key.originals for key in keys):
        if len(keys) > 1:
            raise RefusedError(
                400, "keys", "a key of the kind exact is used alone: unlock fewer concepts", param="unlock"
            )
        return Unlocked(exact=keys[0].record.key_id)
    try:
        return Unlocked(side_by_side([key.prompt for key in keys]))
    except InputError as error:
        raise RefusedError(400, "keys", str(error), param="unlock") from None
