"""``logsnr key``: identities and signing keys, and who can open a key file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from logsnr.cli.console import Flag
from logsnr.cli.opening import Opening
from logsnr.core.errors import InputError

if TYPE_CHECKING:
    from logsnr.hiding.lock import Secret

Action = Literal["new-identity", "new-signer", "inspect", "verify", "add", "revoke", "restore", "identify"]


@dataclass(frozen=True, kw_only=True)
class Key(Opening):
    """Make identities, and see and change who can open a key file. A copy made earlier opens as it did: see `hide`."""

    action: Annotated[Action, tyro.conf.Positional]
    """new-identity and new-signer write FILE; inspect and verify read the key FILE; add and revoke write it anew;
    restore reads the vault FILE; identify says which of --among a leaked prompt FILE comes from."""
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A key file; for new-identity and new-signer the file to write; for restore OUT/vault/originals.age; for identify
    a safetensors file with prompt.k and prompt.v."""
    seal: Flag = False
    """new-identity: seal the identity itself under a passphrase."""
    out: Path | None = None
    """restore: the folder to write the original model to."""
    among: tuple[Path, ...] = ()
    """identify: the key files of all holders, which --identity opens."""
    recipient: tuple[str, ...] = ()
    """Recipients to add or revoke: age1..., public SSH keys, or to revoke the labels that they have in the sidecar."""
    label: str | None = None
    """The label of a recipient that is added."""
    model: str | None = None
    """verify: the model that the key has to fit, as its manifest says; restore: the public model."""
    signer: str | None = None
    """verify: the public key whose signature is trusted, as `key new-signer` printed it."""
    sign: Path | None = None
    """add, revoke: the signing key for the new sidecar."""
    public_names: Flag = False
    """add, revoke: name the hidden concepts in the sidecar, in clear."""

    def run(self) -> int:
        values, lines = getattr(self, f"_{self.action.replace('-', '_')}")()
        self.result(values, lines)
        return 0

    def _new_identity(self) -> tuple[dict[str, Any], list[str]]:
        from logsnr.core.artifact import write_file
        from logsnr.hiding.lock import new_identity, seal

        if self.file.exists():
            raise InputError(f"{self.file} is there already: choose another place")
        if self.passphrase_file and not self.seal:
            raise InputError("a passphrase is for an identity that is sealed: say --seal")
        passphrase = self._new_passphrase() if self.seal else None
        identity, recipient = new_identity()
        content = f"# public key: {recipient}\n{identity.reveal()}\n".encode()
        write_file(self.file, seal(content, passphrase=passphrase) if passphrase else content, private=True)
        return {"recipients": [recipient], "identity": str(self.file)}, [f"{recipient}: keep {self.file} to yourself"]

    def _new_passphrase(self) -> Secret:
        from logsnr.hiding.lock import read_passphrase

        return read_passphrase(self.passphrase_file, ask="Passphrase for the identity: ", twice=True)

    def _new_signer(self) -> tuple[dict[str, Any], list[str]]:
        from logsnr.hiding.signing import new_signing_key

        public = new_signing_key(self.file)
        return {"signer": public, "file": str(self.file)}, [f"{public}: keep {self.file} to yourself"]

    def _inspect(self) -> tuple[dict[str, Any], list[str]]:
        from logsnr.hiding.sidecar import Sidecar

        found, sidecar = self.open(self.file), Sidecar.open(self.file)
        record = {name: value for name, value in asdict(found.record).items() if name != "models"}
        listed = dict(sidecar.recipients) if sidecar else {}
        values = {
            **record,
            "tokens": len(found.prompt.keys),
            "rank": found.prompt.change.rank if found.prompt.change else 0,
            "recipients": listed,
            "fingerprint": found.record.models[0],
        }
        return values, [f"{name}: {value}" for name, value in values.items()]

    def _verify(self) -> tuple[dict[str, Any], list[str]]:
        from logsnr.hiding.manifest import check_manifest
        from logsnr.hiding.sidecar import Sidecar
        from logsnr.models.pipeline import network_of
        from logsnr.worlds.load import load

        found, sidecar = self.open(self.file, trusted=self.signer), Sidecar.open(self.file)
        found.check_dates()
        manifest = bool(self.model) and check_manifest(Path(self.model), self.signer)
        if self.model:
            found.check(network_of(load(self.model)))
        signed = "signed by the key that is trusted" if self.signer else "signed" if sidecar and sidecar.signer else ""
        values = {
            "opens": True,
            "signed": bool(sidecar and sidecar.signer),
            "trusted": self.signer is not None,
            "fits": True if self.model else None,
            "manifest": manifest,
            "recipients": dict(sidecar.recipients) if sidecar else {},
            "fingerprint": found.record.models[0],
        }
        fits = f"it fits {self.model}" + (", which is as its manifest says" if manifest else "") if self.model else ""
        said = [f"{self.file} opens", signed or "nobody has signed it", fits]
        return values, [", ".join(part for part in said if part)]

    def _add(self) -> tuple[dict[str, Any], list[str]]:
        listed = self._listed()
        for text in self._named():
            free = (f"recipient {number}" for number in count(1))
            label = self.label or next(name for name in free if name not in listed)
            if label in listed:
                raise InputError(f"{label!r} is a recipient already: choose another --label, or revoke it first")
            listed[label] = text
        return self._seal_anew(listed)

    def _revoke(self) -> tuple[dict[str, Any], list[str]]:
        listed, gone = self._listed(), set(self._named())
        if unknown := gone - {*listed, *listed.values()}:
            raise InputError(f"{min(unknown)!r} is no recipient of {self.file}: it has {', '.join(listed)}")
        closed = {text for label, text in listed.items() if gone & {label, text}}
        kept = {label: text for label, text in listed.items() if text not in closed}
        if not kept:
            raise InputError("nobody could open the key any more: add another recipient first, or remove the file")
        return self._seal_anew(kept)

    def _restore(self) -> tuple[dict[str, Any], list[str]]:
        """The original model, from the public one and the vault."""
        from logsnr.core.artifact import staged
        from logsnr.hiding.publish import open_vault
        from logsnr.hiding.reveal import put_back
        from logsnr.worlds.load import load

        if not self.model or not self.out:
            raise InputError("say which model was hidden, --model OUT/public, and where to write it, --out FOLDER")
        originals = open_vault(self.file, **self.secrets())
        pipe = load(self.model)
        put_back(pipe, originals)
        with staged(self.out) as folder:
            pipe.save_pretrained(folder)
        return {"out": str(self.out), "tensors": len(originals)}, [f"{self.out} is the original model"]

    def _identify(self) -> tuple[dict[str, Any], list[str]]:
        """Whose prompt a leaked one is."""
        from logsnr.core.artifact import load_tensors
        from logsnr.hiding.holders import by_chance, likeness
        from logsnr.models.prompted import Prompt

        if not self.among:
            raise InputError("say whose it may be: --among KEY KEY ..., the key files of all holders")
        tensors = load_tensors(self.file)
        keys, values = tensors.get("prompt.k"), tensors.get("prompt.v")
        if keys is None or values is None or keys.dim() != 2 or keys.shape != values.shape or not len(keys):
            raise InputError(f"{self.file} is no leaked prompt: it needs prompt.k and prompt.v, (tokens, width) each")
        if not (keys.isfinite().all() and values.isfinite().all()):
            raise InputError(f"{self.file} has numbers that are not finite: no likeness can be told")
        holders = [self.open(place).prompt for place in self.among]
        alike = likeness(Prompt(keys, values), holders)
        found = dict(sorted(zip(map(str, self.among), alike, strict=True), key=lambda pair: -pair[1]))
        chance = by_chance(len(holders[0].keys), keys.shape[1])
        lines = [f"{value:.2f}  {place}" for place, value in found.items()]
        return {"likeness": found, "by_chance": chance}, [*lines, f"{chance:.2f}  is about what chance gives"]

    def _named(self) -> tuple[str, ...]:
        if not self.recipient:
            raise InputError(f"say who: --recipient, to {self.action}")
        if self.label and len(self.recipient) > 1:
            raise InputError("one label is for one recipient: add them one by one")
        return self.recipient

    def _listed(self) -> dict[str, str]:
        """The recipients so far, which only the sidecar knows."""
        from logsnr.hiding.sidecar import Sidecar

        sidecar = Sidecar.open(self.file)
        if sidecar is None or not sidecar.recipients:
            raise InputError(
                f"{self.file} has no list of recipients: age files do not tell who opens them, and one with a "
                "passphrase has none; keep the sidecar, or hide again"
            )
        return dict(sidecar.recipients)

    def _seal_anew(self, listed: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
        """The same key for other recipients, under a fresh file key, and its sidecar."""
        from logsnr.hiding.lock import check_recipients
        from logsnr.hiding.sidecar import Sidecar, describe
        from logsnr.hiding.signing import public_half, read_signing_key

        before, signing = Sidecar.open(self.file), read_signing_key(self.sign) if self.sign else None
        if before and before.signer and not signing:
            raise InputError("the sidecar is signed: say --sign FILE, so that the new one is too")
        check_recipients(list(listed.values()))
        found = self.open(self.file, trusted=public_half(signing) if signing else None)  # the list is as we signed it
        found.save(self.file, list(listed.values()))
        names = self.public_names or bool(before and before.concepts)
        sidecar = describe(found, self.file.read_bytes(), listed, public_names=names)
        (sidecar.signed(signing) if signing else sidecar).save(self.file)
        values = {"recipients": listed, "fingerprint": found.record.models[0]}
        return values, [f"{self.file} opens for {', '.join(listed)}; copies made before open as they did"]
