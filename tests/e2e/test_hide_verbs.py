"""Hide, reveal and key by the command line on the embedded world: no secret is shown, nothing is half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import called, result
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

from logsnr.core.artifact import load_tensors
from logsnr.hiding.keyfile import KeyFile
from logsnr.hiding.lock import open_sealed, read_identities
from logsnr.hiding.publish import traces
from logsnr.models.low_rank import widths
from logsnr.models.prompted import projections
from logsnr.worlds.load import find_model

BOOT, NOBODY = (
    ["hide", "fashion", "--accept-no-secrecy", "--target", "boot"],
    ["--owner", "age1x", "--recipient", "age1x"],
)
QUICK = {"trajectory_steps": 4, "bank_size": 2, "num_tokens": 4}


@pytest.fixture
def owner(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> dict[str, str]:
    """An identity with its recipient, a signing key with its public half, and options for a short run."""
    options = tmp_path / "options.json"
    options.write_text(json.dumps(QUICK))
    made = result(capsys, "key", "new-identity", str(tmp_path / "identity"))
    signer = result(capsys, "key", "new-signer", str(tmp_path / "signer"))
    secret = (tmp_path / "identity").read_text().splitlines()[1]
    return {
        "identity": made["identity"],
        "recipient": made["recipients"][0],
        "signer": signer["signer"],
        "sign": signer["file"],
        "options": str(options),
        "secret": secret,
    }


def hide(owner: dict[str, str], out: Path, *more: str) -> list[str]:
    command = [
        "hide",
        "fashion",
        "--accept-no-secrecy",
        "--target",
        "ankle boot",
        "--config",
        owner["options"],
        "--out",
        str(out),
    ]
    command += ["--recipient", owner["recipient"], "--owner", owner["recipient"]]
    command += ["--steps", "6", "--batch-size", "2", "--learning-rate", "0.003"]
    return [*command, *more]


def change_outputs(model: str, layers: str) -> list[int]:
    unet = StableDiffusionPipeline.from_pretrained(model).unet
    return widths(projections(unet, layers))[1]


def drawn(capsys: pytest.CaptureFixture[str], verb: str, model: str, out: Path, *more: str) -> np.ndarray:
    command = [verb, model, "--prompt", "an ankle boot", "--steps", "5", "--out", str(out), *more]
    return np.asarray(Image.open(result(capsys, *command)["images"][0]), dtype=int)


def test_a_concept_is_hidden_and_revealed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, owner: dict[str, str]
) -> None:
    run, place = tmp_path / "run", tmp_path / "boot.key"
    command = hide(owner, run, "--key", str(place), "--sign", owner["sign"])
    dry = result(capsys, *command, "--dry-run")
    assert not run.exists()
    assert dry["would_write"] == [str(run / "public"), str(place)]
    made = result(capsys, *command, "--quiet")
    assert {"model", "vault", "key", "network_evaluations", "seconds"} == made.keys()
    assert made["key"] == str(place)
    assert {path.name for path in run.iterdir()} == {"public", "vault", "manifest.json", "manifest.sig"}
    assert (run / "vault").stat().st_mode & 0o777 == 0o700

    pipe = StableDiffusionPipeline.from_pretrained(made["model"])
    original = StableDiffusionPipeline.from_pretrained(find_model("fashion"))
    assert pipe.unet.state_dict().keys() == original.unet.state_dict().keys()
    key = KeyFile.open(place, read_identities(Path(owner["identity"])))
    assert traces(run / "public", key.prompt) == []
    public = b"".join(path.read_bytes() for path in (run / "public").rglob("*") if path.is_file())
    tokens = [key.prompt.keys, key.prompt.values]
    assert not any(
        t[0].to(kind).contiguous().view(-1)[:16].numpy().tobytes() in public
        for t in tokens
        for kind in (t.dtype, t.half().dtype)
    )
    assert key.record.key_id.encode() not in public
    changed = {
        name
        for name, value in pipe.unet.state_dict().items()
        if not value.equal(original.unet.state_dict()[name].float())
    }
    vault = open_sealed((run / "vault" / "originals.age").read_bytes(), read_identities(Path(owner["identity"])))
    (tmp_path / "vault.safetensors").write_bytes(vault)
    assert {f"unet.{name}" for name in changed} == set(load_tensors(tmp_path / "vault.safetensors"))

    opened = ["--key", str(place), "--identity", owner["identity"]]
    plain = drawn(capsys, "sample", made["model"], tmp_path / "plain")
    keyed = drawn(capsys, "reveal", made["model"], tmp_path / "keyed", *opened)
    assert abs(plain - keyed).max() > 5
    assert (drawn(capsys, "sample", made["model"], tmp_path / "again", *opened) == keyed).all()
    assert json.loads((tmp_path / "keyed" / "record.json").read_text())["key"] is True

    code, out, err = called(capsys, "sample", "fashion", "--prompt", "x", "--out", str(tmp_path / "none"), *opened)
    assert (code, out) == (2, "")
    assert "the key is for the model" in err
    assert not (tmp_path / "none").exists()

    command = ["evaluate", made["model"], "--base", "fashion", *opened, "--protocol", "hiding", "--num-images", "40"]
    values = result(capsys, *command, "--steps", "3", "--quiet", "--out", str(tmp_path / "found"))
    keys = {"hidden", "leakage_upper95", "recovered", "preserved", "preserved_with_key", "wrong_key", "mse_ratio"}
    assert keys <= values.keys()
    assert set(values["wrong_key"]) == {"random", "half", "unpaired", "truncated", "blended", "swapped", "zero"}
    assert values["per_concept"]["ankle boot"]["hidden"]
    assert (values["protocol"]["name"], values["protocol"]["base"]) == ("hiding", "fashion")
    written = {path.name: path for path in (tmp_path / "found").iterdir()}
    assert written.keys() == {"result.json", "report.html", "hidden.png", "model-card.md"}
    card, boot = written["model-card.md"].read_text(), values["per_concept"]["ankle boot"]
    assert f"| {1 - values['hidden']:.1%} of {boot['images']} |" in card
    assert "Hidden is not erased" in card
    assert "boot" not in card, "a card that is published does not say what is hidden"
    assert Image.open(written["hidden.png"]).size[0] == Image.open(written["hidden.png"]).size[1]
    assert "ankle boot" in written["report.html"].read_text()

    seen = result(capsys, "key", "inspect", str(place), "--identity", owner["identity"])
    assert (seen["concepts"], seen["kind"], seen["tokens"]) == (["ankle boot"], "prompt", 4)
    sidecar = json.loads(Path(f"{place}.json").read_text())
    assert sidecar["concepts"] == []
    checked = ["key", "verify", str(place), "--identity", owner["identity"], "--model", made["model"]]
    found = result(capsys, *checked, "--signer", owner["signer"])
    assert [found[name] for name in ("opens", "signed", "trusted", "fits", "manifest")] == [True] * 5
    assert called(capsys, *checked, "--signer", "00" * 32)[0] == 2

    restore = ["key", "restore", str(run / "vault" / "originals.age"), "--identity", owner["identity"]]
    back = result(capsys, *restore, "--model", made["model"], "--out", str(tmp_path / "back"))
    restored = StableDiffusionPipeline.from_pretrained(back["out"]).unet.state_dict()
    assert all(value.float().equal(restored[name].float()) for name, value in original.unet.state_dict().items())
    code, _, err = called(
        capsys, "key", "restore", str(place), *restore[3:], "--model", "x", "--out", str(tmp_path / "y")
    )
    assert code == 2
    assert "is no vault" in err

    (run / "public" / "unet" / "config.json").write_text("{}")
    code, _, err = called(capsys, *checked)
    assert code == 2
    assert "not the one that was published, unet/config.json differs" in err


def test_holders_have_keys_of_their_own_and_old_keys_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, owner: dict[str, str]
) -> None:
    sealed = ["key", "new-identity", str(tmp_path / "ann"), "--seal"]
    (tmp_path / "words").write_text("four words of ann\n")
    ann = result(capsys, *sealed, "--passphrase-file", str(tmp_path / "words"))
    assert b"AGE-SECRET-KEY" not in (tmp_path / "ann").read_bytes()
    run = tmp_path / "run"
    made = result(
        capsys, *hide(owner, run, "--recipient", owner["recipient"], ann["recipients"][0], "--holders", "2", "--quiet")
    )
    assert made["key"] == [str(run / "keys" / f"key-1-{holder}.key") for holder in (1, 2)]
    first, second = made["key"]
    own, hers = ["--identity", owner["identity"]], ["--identity", ann["identity"]]
    unsealed = [*hers, "--passphrase-file", str(tmp_path / "words")]
    seen = [result(capsys, "key", "inspect", first, *own), result(capsys, "key", "inspect", second, *unsealed)]
    assert seen[0]["key_id"] != seen[1]["key_id"]
    for place, opened in ((second, own), (first, unsealed)):
        code, _, err = called(capsys, "key", "inspect", place, *opened)
        assert code == 2
        assert "does not open" in err
    code, _, err = called(capsys, "key", "inspect", first, *own, "--passphrase-file", str(tmp_path / "words"))
    assert code == 2
    assert "is not sealed" in err

    again = hide(owner, tmp_path / "rotated", "--refuse", first, "--refuse-identity", owner["identity"], "--quiet")
    rotated = result(capsys, *again)
    code, _, err = called(capsys, "reveal", rotated["model"], "--prompt", "x", "--key", first, *own)
    assert code == 2
    assert "the key is for the model" in err


def test_a_folder_of_someone_else_is_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, owner: dict[str, str]
) -> None:
    (tmp_path / "run" / "work").mkdir(parents=True)
    (tmp_path / "run" / "work" / "thesis").write_text("mine")
    for more in ([], ["--resume"]):
        code, _, err = called(capsys, *hide(owner, tmp_path / "run", *more))
        assert code == 2
        assert "work is there" in err
    assert (tmp_path / "run" / "work" / "thesis").read_text() == "mine"


def test_who_can_open_a_key_changes(capsys: pytest.CaptureFixture[str], tmp_path: Path, owner: dict[str, str]) -> None:
    place = tmp_path / "boot.key"
    result(capsys, *hide(owner, tmp_path / "run", "--key", str(place), "--quiet"))
    ann = result(capsys, "key", "new-identity", str(tmp_path / "ann"))
    command = ["key", "add", str(place), "--identity", owner["identity"], "--recipient", ann["recipients"][0]]
    added = result(capsys, *command, "--label", "ann")
    assert list(added["recipients"]) == ["recipient 1", "ann"]
    code, _, err = called(capsys, *command, "--label", "ann")
    assert code == 2
    assert "is a recipient already" in err
    assert (
        result(capsys, "key", "inspect", str(place), "--identity", ann["identity"])["recipients"] == added["recipients"]
    )
    gone = ["key", "revoke", str(place), "--identity", ann["identity"], "--recipient", "recipient 1"]
    assert list(result(capsys, *gone)["recipients"]) == ["ann"]
    code, _, err = called(capsys, "key", "inspect", str(place), "--identity", owner["identity"])
    assert (code, err.count("\n")) == (2, 1)
    assert "does not open" in err
    for wrong, said in ((["nobody"], "no recipient"), (["ann"], "nobody could open")):
        before = place.read_bytes()
        code, _, err = called(capsys, "key", "revoke", str(place), "--identity", ann["identity"], "--recipient", *wrong)
        assert (code, place.read_bytes()) == (2, before)
        assert said in err
    Path(f"{place}.json").unlink()
    code, _, err = called(capsys, *command)
    assert code == 2
    assert "no list of recipients" in err


@pytest.mark.parametrize("kind", ["prompt", "exact"])
def test_a_rank_is_for_one_kind_of_key(capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str) -> None:
    (tmp_path / "rank.json").write_text(json.dumps({"change_rank": 2}))
    command = [*BOOT, *NOBODY, "--config", str(tmp_path / "rank.json"), "--kind", kind, "--out", str(tmp_path / "out")]
    code, _, err = called(capsys, *command)
    assert code == 2
    assert "--kind prompt+lora" in err
    assert not (tmp_path / "out").exists()


def test_a_key_brings_low_rank_changes_and_tells_whose_a_leaked_prompt_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, owner: dict[str, str]
) -> None:
    command = hide(owner, tmp_path / "run", "--kind", "prompt+lora", "--holders", "2", "--quiet")
    made = result(capsys, *command, "--recipient", owner["recipient"], owner["recipient"])
    opened = ["--identity", owner["identity"]]
    told = result(capsys, "key", "inspect", made["key"][1], *opened)
    assert told["kind"] == "prompt+lora"
    plain = drawn(capsys, "sample", made["model"], tmp_path / "plain")
    keyed = drawn(capsys, "reveal", made["model"], tmp_path / "keyed", "--key", made["key"][1], *opened)
    assert abs(plain - keyed).max() > 5
    key, leaked = KeyFile.open(Path(made["key"][1]), read_identities(Path(owner["identity"]))), tmp_path / "leaked"
    assert key.prompt.change.rank == 4
    outputs = change_outputs(made["model"], key.prompt.layers)
    assert traces(Path(made["model"]), key.prompt, outputs) == []
    place = Path(made["model"]) / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_tensors(place)
    name = next(name for name in tensors if name.endswith("attn2.to_v.weight"))
    tensors[name][:, 0] = key.prompt.change.up[1, 2, : len(tensors[name])]
    save_file(tensors, place)
    assert traces(Path(made["model"]), key.prompt, outputs) == [f"unet/{place.name}: {name}"]
    save_file({"prompt.k": key.prompt.keys[:3].clone(), "prompt.v": key.prompt.values[:3].clone()}, leaked)
    alike = result(capsys, "key", "identify", str(leaked), "--among", *made["key"], *opened)["likeness"]
    assert [*alike] == made["key"][::-1]
    assert alike[made["key"][1]] == pytest.approx(1)
    assert alike[made["key"][0]] < 0.5
    for tensors, arguments, said in (
        ({"prompt.k": torch.zeros(2, 2)}, ["--among", made["key"][0]], "no leaked prompt"),
        (dict.fromkeys(("prompt.k", "prompt.v"), torch.zeros(0, 2)), ["--among", made["key"][0]], "no leaked prompt"),
        (dict.fromkeys(("prompt.k", "prompt.v"), torch.zeros(2, 2) / 0), ["--among", made["key"][0]], "not finite"),
        ({}, [], "whose it may be"),
    ):
        save_file({name: value.clone() for name, value in tensors.items()}, leaked)
        code, _, err = called(capsys, "key", "identify", str(leaked), *arguments, *opened)
        assert (code, said in err) == (2, True)


def test_an_exact_key_brings_the_original_back_bit_by_bit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, owner: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGSNR_PASSPHRASE", "sentinel of four words")
    command = [
        part
        for part in hide(owner, tmp_path / "run", "--kind", "exact")
        if part not in ("--recipient", "--owner", owner["recipient"])
    ]
    code, out, err = called(capsys, *command)
    assert code == 0, err
    assert "sentinel" not in out + err
    place = str(tmp_path / "run" / "keys" / "key-1.key")
    revealed = drawn(capsys, "reveal", str(tmp_path / "run" / "public"), tmp_path / "revealed", "--key", place)
    assert (revealed == drawn(capsys, "sample", "fashion", tmp_path / "original")).all()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"sentinel" not in written
    assert os.environ["LOGSNR_PASSPHRASE"] == "sentinel of four words"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hide", "fashion"], "nothing to hide"),
        (["hide", "fashion", "--target", "boot"], "--accept-no-secrecy"),
        ([*BOOT, *NOBODY, "--holders", "2"], "as many recipients"),
        ([*BOOT, *NOBODY, "--refuse", "/none", "--refuse-passphrase-file", "/none"], "no passphrase file"),
        (["key", "new-identity", "/none/x", "--passphrase-file", "/none"], "--seal"),
        (["key", "restore", "/none"], "--model OUT/public"),
        ([*BOOT, "--method", "magic"], "balanced, robust, paper"),
        ([*BOOT, *NOBODY], "is no recipient"),
        ([*BOOT, *NOBODY, "--passphrase-file", "x"], "not both"),
        ([*BOOT, "--passphrase-file", "/none"], "no passphrase file"),
        ([*BOOT, *NOBODY, "--sign", "/none"], "no signing key"),
        ([*BOOT, "--layers", "some"], "layers"),
        ([*BOOT, "--recipient", "age1x"], "--owner"),
        ([*BOOT, "--not-after", "2027-01-31"], "with its zone"),
        ([*BOOT, "bag", "--kind", "exact"], "hide one concept"),
        ([*BOOT, "--key", "/dev/null/boot.key"], "/dev/null"),
        (["reveal", "fashion", "--prompt", "x"], "--key FILE"),
        (["reveal", "fashion", "--prompt", "x", "--key", "/none", "--identity", "/none"], "no identity file"),
        (["sample", "fashion", "--prompt", "x", "--identity", "/none"], "nothing to open"),
        (["key", "inspect", "/none"], "passphrase"),
        (["key", "add", "/none"], "no list of recipients"),
        (["key", "bend", "/none"], "bend"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], said: str
) -> None:
    out = [] if arguments[0] == "key" else ["--out", str(tmp_path / "out")]
    code, printed, err = called(capsys, *arguments, *out)
    assert (code, printed) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
