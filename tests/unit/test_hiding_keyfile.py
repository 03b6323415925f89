"""The key file: whatever is changed in it is refused with its own error, and to everyone else it is an age file."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import tiny_sd
from safetensors.torch import load, save

from logsnr.core.errors import InputError, MissingError
from logsnr.hiding import keyfile, lock, sidecar
from logsnr.hiding.errors import (
    ConceptKeyError,
    KeyExpiredError,
    KeyFormatError,
    KeyShapeError,
    ModelMismatchError,
    TamperedKeyError,
    WrongKeyError,
)
from logsnr.hiding.keyfile import KeyFile, KeyRecord, fingerprints
from logsnr.hiding.lock import Secret, new_identity, open_sealed, read_identities, read_passphrase, seal
from logsnr.hiding.reveal import reveal
from logsnr.hiding.sidecar import Sidecar
from logsnr.hiding.signing import new_signing_key, read_signing_key
from logsnr.models.low_rank import LowRank
from logsnr.models.prompted import Prompt, change_widths, prompt_width
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import sample

IDENTITY, RECIPIENT = new_identity()
NETWORK = tiny_sd().unet


def key(tokens: int = 2, **record: object) -> KeyFile:
    keys, values = torch.randn(2, tokens, 16, generator=torch.Generator().manual_seed(0))
    return KeyFile(KeyRecord(("an ankle boot",), fingerprints(NETWORK), **record), Prompt(keys, values))


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    made, place = key(half="conditional", layers="all"), tmp_path / "boot.key"
    other, third = new_identity(), new_identity()
    made.save(place, [RECIPIENT, other[1]])
    for identity in (IDENTITY, other[0]):
        found = KeyFile.open(place, [third[0], identity])
        assert found.record == made.record
        assert torch.equal(found.prompt.keys, made.prompt.keys)
        assert torch.equal(found.prompt.values, made.prompt.values)
        assert (found.prompt.layers, found.prompt.half) == ("all", "conditional")
    with pytest.raises(WrongKeyError):
        KeyFile.open(place, [third[0]])
    with pytest.raises(WrongKeyError):
        KeyFile.open(place, [])
    assert place.stat().st_mode & 0o777 == 0o600
    content = place.read_bytes()
    assert b"boot" not in content
    assert made.record.key_id.encode() not in content
    assert [path.name for path in tmp_path.iterdir()] == ["boot.key"]
    with pytest.raises(MissingError):
        KeyFile.open(tmp_path / "none.key", [IDENTITY])


def test_a_passphrase_opens_it_alone(tmp_path: Path) -> None:
    key().save(tmp_path / "key", passphrase=Secret("four words of one"))
    assert KeyFile.open(tmp_path / "key", passphrase=Secret("four words of one")).record.concepts == ("an ankle boot",)
    with pytest.raises(WrongKeyError, match="does not open"):
        KeyFile.open(tmp_path / "key", passphrase=Secret("four words of two"))
    with pytest.raises(WrongKeyError, match="opens with a passphrase"):
        KeyFile.open(tmp_path / "key", [IDENTITY])
    for given_ in ({}, {"recipients": [RECIPIENT], "passphrase": Secret("x")}):
        with pytest.raises(InputError, match="not both"):
            key().save(tmp_path / "other", **given_)
    with pytest.raises(InputError, match="is no recipient"):
        key().save(tmp_path / "other", ["age1nobody"])
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_every_flipped_byte_and_every_cut_is_refused() -> None:
    content = seal(b"a key's content" * 5, [RECIPIENT])
    assert open_sealed(content, [IDENTITY]) == b"a key's content" * 5
    for place in range(len(content)):
        for bit in (1, 128):
            flipped = bytearray(content)
            flipped[place] ^= bit
            with pytest.raises(ConceptKeyError):
                open_sealed(bytes(flipped), [IDENTITY])
        with pytest.raises(ConceptKeyError):
            open_sealed(content[:place], [IDENTITY])
    with pytest.raises(ConceptKeyError):
        open_sealed(content + b"x", [IDENTITY])


@pytest.mark.parametrize("work", ["40", "999", "023", "-3", "x"])
def test_absurd_work_is_refused_before_it_is_done(work: str) -> None:
    header = f"age-encryption.org/v1\n-> scrypt wP6kfbC6u7L5gTJVLevUPA {work}\nziyy\n--- 6k1x\n".encode()
    with pytest.raises(KeyFormatError, match="work"):
        open_sealed(header + bytes(64), passphrase=Secret("x"))


def test_what_is_no_key_file_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyFormatError, match="is no key file"):
        open_sealed(b"PK\x03\x04", [IDENTITY])
    monkeypatch.setattr(lock, "MOST_BYTES", 10)
    with pytest.raises(KeyFormatError, match="has 21 bytes"):
        open_sealed(bytes(21), [IDENTITY])
    monkeypatch.setattr(keyfile, "MOST_BYTES", 10)
    with pytest.raises(InputError, match="key files have at most 10"):
        key().save(Path("never.key"), [RECIPIENT])
    assert not Path("never.key").exists()


def changed(**record: object) -> bytes:
    content = key().to_bytes()
    return save(load(content), {"logsnr-key": json.dumps({**asdict(key().record), **record})})


def with_tensors(**tensors: torch.Tensor) -> bytes:
    return save({**load(key().to_bytes()), **tensors}, {"logsnr-key": json.dumps(asdict(key().record))})


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"", KeyFormatError, "record cannot be read"),
        (b"\xff" * 40, KeyFormatError, "record cannot be read"),
        (save({"prompt.k": torch.zeros(1, 2)}), KeyFormatError, "record cannot be read"),
        (changed(version=2), KeyFormatError, "newer logsnr"),
        (changed(secret=1), KeyFormatError, "record cannot be read"),
        (changed(concepts="boot"), KeyFormatError, "record cannot be read"),
        (changed(concepts=[]), KeyFormatError, "names no concept"),
        (changed(not_after="2030-01-01"), KeyFormatError, "record cannot be read"),
        (changed(layers="some"), KeyFormatError, "not known here"),
        (changed(kind="spell"), KeyFormatError, "not known here"),
        (changed(kind="exact"), KeyShapeError, "other tensors"),
        (key().to_bytes()[:-3], KeyFormatError, "cannot be read"),
        (with_tensors(**{"prompt.v": torch.zeros(3, 16)}), KeyShapeError, "one shape"),
        (with_tensors(**{"prompt.v": torch.full((2, 16), torch.nan)}), KeyShapeError, "finite"),
        (with_tensors(**{"original.unet.x": torch.zeros(2)}), KeyShapeError, "other tensors"),
        (with_tensors(extra=torch.zeros(2)), KeyShapeError, "other tensors"),
    ],
)
def test_what_is_inside_is_read_with_suspicion(content: bytes, kind: type[ConceptKeyError], said: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        KeyFile.from_bytes(content)
    assert caught.value.__cause__ is None
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_inside_is_a_key_error_or_harmless(data: st.DataObject) -> None:
    content = bytearray(key().to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = KeyFile.from_bytes(bytes(content))
    except ConceptKeyError:
        return
    assert found.prompt.keys.shape == found.prompt.values.shape


def test_an_exact_key_brings_the_original_tensors() -> None:
    plain = key(kind="exact")
    made = replace(plain, originals={"unet.conv_in.weight": NETWORK.conv_in.weight.detach()})
    found = KeyFile.from_bytes(made.to_bytes())
    assert torch.equal(found.originals["unet.conv_in.weight"], NETWORK.conv_in.weight)


def test_a_key_brings_its_low_rank_change() -> None:
    inputs, outputs = change_widths(NETWORK, "mid")
    draws = torch.Generator().manual_seed(0)
    change = LowRank(*(torch.randn(2, 3, size, generator=draws) for size in (inputs, outputs)))
    plain = key(kind="prompt+lora")
    made = replace(plain, prompt=replace(plain.prompt, change=change))
    found = KeyFile.from_bytes(made.to_bytes())
    found.check(NETWORK)
    assert torch.equal(found.prompt.change.down, change.down)
    assert torch.equal(found.prompt.change.up, change.up)
    with pytest.raises(KeyShapeError, match="no low-rank change"):
        KeyFile.from_bytes(plain.to_bytes())
    with pytest.raises(KeyShapeError, match="other tensors"):
        KeyFile.from_bytes(replace(made, record=replace(made.record, kind="prompt")).to_bytes())
    for broken in (LowRank(change.down[:, 1:], change.up), LowRank(change.down, change.up / 0)):
        with pytest.raises(KeyShapeError, match="low-rank change"):
            KeyFile.from_bytes(replace(made, prompt=replace(made.prompt, change=broken)).to_bytes())
    other = replace(made.prompt, change=LowRank(change.down, change.up[..., 1:]))
    with pytest.raises(KeyShapeError, match="other layers"):
        replace(made, prompt=other).check(NETWORK)


def test_a_key_is_for_one_model_and_its_casts() -> None:
    made, network = key(), copy.deepcopy(NETWORK)
    made.check(network)
    made.check(copy.deepcopy(NETWORK).half())
    made.check(copy.deepcopy(NETWORK).bfloat16())
    with torch.no_grad():
        weight = network.conv_in.weight[0, 0, 0, 0]
        weight.copy_(torch.nextafter(weight, weight + 1))
    with pytest.raises(ModelMismatchError, match=fingerprints(NETWORK)[0][:16]):
        made.check(network)
    narrow = replace(made, prompt=Prompt(torch.zeros(2, 4), torch.zeros(2, 4)))
    with pytest.raises(KeyShapeError, match="width 4"):
        narrow.check(NETWORK)


def test_dates_are_advice_that_is_followed() -> None:
    now = datetime(2030, 1, 2, tzinfo=UTC)
    early, late = ((now + timedelta(days=days)).isoformat() for days in (-1, 1))
    key(not_before=early, not_after=late).check(NETWORK, now)
    for text in ("2030-01-01", "tomorrow"):
        with pytest.raises(InputError, match="no moment with its zone"):
            key(not_after=text)
    with pytest.raises(KeyExpiredError, match="valid from"):
        key(not_before=late).check(NETWORK, now)
    with pytest.raises(KeyExpiredError, match="until"):
        key(not_after=early).check(NETWORK, now)


def test_secrets_do_not_show_themselves(tmp_path: Path) -> None:
    secret = Secret("sesame")
    assert "sesame" not in f"{secret!r} {secret} {[secret]}"
    for act in (lambda: pickle.dumps(secret), lambda: secret == "sesame", lambda: hash(secret)):
        with pytest.raises(TypeError):
            act()
    assert "sesame" not in repr(KeyFile(KeyRecord(("sesame",), ("m",)), Prompt(torch.zeros(1, 2), torch.zeros(1, 2))))
    for module in (keyfile, lock, sidecar):
        assert "pickle" not in Path(module.__file__).read_text().replace("pickles", "").replace("pickled", "")
    broken = tmp_path / "identity"
    broken.write_text("AGE-SECRET-KEY-1SESAME\n")
    with pytest.raises(InputError) as caught:
        open_sealed(seal(b"x", [RECIPIENT]), read_identities(broken))
    assert "SESAME" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_passphrases_come_from_a_file_the_environment_or_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "words"
    file.write_text("one two\nthree\n")
    assert read_passphrase(file).reveal() == "one two"
    monkeypatch.setenv("LOGSNR_PASSPHRASE", "from outside")
    assert read_passphrase().reveal() == "from outside"
    monkeypatch.delenv("LOGSNR_PASSPHRASE")
    monkeypatch.setattr("getpass.getpass", lambda asked: f"typed at {asked}")
    assert read_passphrase(ask="Passphrase: ").reveal() == "typed at Passphrase: "
    with pytest.raises(InputError, match="differ"):
        read_passphrase(ask="Passphrase: ", twice=True)
    monkeypatch.setattr("getpass.getpass", lambda asked: "twice")
    assert read_passphrase(ask="Passphrase: ", twice=True).reveal() == "twice"
    with pytest.raises(MissingError, match="--passphrase-file"):
        read_passphrase()
    with pytest.raises(MissingError, match="no passphrase file"):
        read_passphrase(tmp_path / "none")
    file.write_text("\n")
    with pytest.raises(InputError, match="empty"):
        read_passphrase(file)
    with pytest.raises(InputError, match="holds no identity"):
        read_identities(file)
    with pytest.raises(MissingError, match="no identity file"):
        read_identities(tmp_path / "none")


def test_a_sidecar_tells_the_file_apart_and_is_signed(tmp_path: Path) -> None:
    place, public = tmp_path / "boot.key", new_signing_key(tmp_path / "signer.pem")
    other = new_signing_key(tmp_path / "other.pem")
    key().save(place, [RECIPIENT])
    content, made = place.read_bytes(), key()
    plain = sidecar.describe(made, content, {"ann": RECIPIENT})
    plain.signed(read_signing_key(tmp_path / "signer.pem")).save(place)
    found = Sidecar.open(place)
    assert found is not None
    assert (found.key_id, found.model, found.concepts) == (made.record.key_id, made.record.models[0], ())
    found.check(content)
    found.check(content, trusted=public)
    with pytest.raises(TamperedKeyError, match="not the one"):
        found.check(content + b"x")
    with pytest.raises(TamperedKeyError, match="not signed by the key"):
        found.check(content, trusted=other)
    with pytest.raises(TamperedKeyError, match="not signed by the key"):
        plain.check(content, trusted=public)
    with pytest.raises(TamperedKeyError, match="changed after"):
        replace(plain, signer=public).check(content, trusted=public)  # the name of who is trusted, and no signature
    changes = ({"recipients": {"eve": RECIPIENT}}, {"signer": other}, {"signature": "00"}, {"concepts": ("x",)})
    for change in (*changes, {"signature": None}, {"signer": None}):
        with pytest.raises(TamperedKeyError, match="changed after"):
            replace(found, **change).check(content)
    assert (tmp_path / "signer.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="is there already"):
        new_signing_key(tmp_path / "signer.pem")
    (tmp_path / "signer.pem").write_text("nothing")
    with pytest.raises(InputError, match="no Ed25519 key"):
        read_signing_key(tmp_path / "signer.pem")
    sidecar.beside(place).write_text('{"version": 9}')
    with pytest.raises(KeyFormatError, match="is no sidecar"):
        Sidecar.open(place)
    assert Sidecar.open(tmp_path / "none") is None


@pytest.mark.skipif(shutil.which("age") is None, reason="age is not installed")
def test_age_itself_opens_it_and_makes_what_opens_here(tmp_path: Path) -> None:
    identity = tmp_path / "identity.txt"
    subprocess.run(["age-keygen", "-o", str(identity)], check=True, capture_output=True)
    recipient = identity.read_text().split("public key: ")[1].split()[0]
    made = key()
    made.save(tmp_path / "key", [RECIPIENT, recipient])
    opened = subprocess.run(["age", "-d", "-i", str(identity), str(tmp_path / "key")], check=True, capture_output=True)
    assert opened.stdout == made.to_bytes()
    (tmp_path / "plain").write_bytes(made.to_bytes())
    command = ["age", "-r", recipient, "-o", str(tmp_path / "theirs"), str(tmp_path / "plain")]
    subprocess.run(command, check=True, capture_output=True)
    assert KeyFile.open(tmp_path / "theirs", read_identities(identity)).record == made.record


def test_reveal_samples_with_a_key_that_fits_and_refuses_another() -> None:
    pipe = tiny_sd()
    width = prompt_width(pipe.unet, "mid")
    tokens = 3 * torch.randn(2, 4, width, generator=torch.Generator().manual_seed(0))
    record = KeyRecord(("an ankle boot",), fingerprints(pipe.unet), layers="mid")
    fitting, quick = KeyFile(record, Prompt(*tokens)), SampleConfig(steps=2)
    revealed = reveal(pipe, "a boot", fitting, seeds=[3, 4], config=quick).images
    assert torch.equal(revealed, sample(pipe, "a boot", seeds=[3, 4], key=fitting.prompt, config=quick).images)
    assert not torch.equal(revealed, sample(pipe, "a boot", seeds=[3, 4], config=quick).images)
    weight = pipe.unet.conv_in.weight
    original = {"unet.conv_in.weight": weight.detach().clone()}
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(ModelMismatchError):
        reveal(pipe, "a boot", fitting, config=quick)
    exact = KeyFile(replace(record, models=fingerprints(pipe.unet), kind="exact"), fitting.prompt, original)
    doubled, first = weight.detach().clone(), reveal(pipe, "a boot", exact, config=quick).images
    assert torch.equal(weight, doubled), "the pipeline is as it was"
    assert torch.equal(reveal(pipe, "a boot", exact, config=quick).images, first)
    with torch.no_grad():
        weight.copy_(original["unet.conv_in.weight"])
    assert torch.equal(sample(pipe, "a boot", seeds=[0], config=quick).images, first), "what the original draws"
