"""The manifest of a public model: every change of a file, of the manifest or of its signature is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from logsnr.hiding.errors import KeyFormatError, TamperedKeyError
from logsnr.hiding.manifest import check_manifest, write_manifest
from logsnr.hiding.signing import new_signing_key, read_signing_key


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, str]:
    """A signed folder, and the public key that signed it."""
    public = tmp_path / "public"
    (public / "unet").mkdir(parents=True)
    (public / "model_index.json").write_text("{}")
    (public / "unet" / "weights").write_bytes(bytes(1000))
    signer = new_signing_key(tmp_path / "signer")
    write_manifest(public, read_signing_key(tmp_path / "signer"))
    return public, signer


def test_what_is_as_it_was_published_is_accepted(published: tuple[Path, str]) -> None:
    public, signer = published
    assert check_manifest(public)
    assert check_manifest(public, signer)
    found = json.loads((public.parent / "manifest.json").read_text())
    assert list(found["files"]) == ["model_index.json", "unet/weights"]
    assert found["signer"] == signer


def _rewrite(public: Path) -> None:
    write_manifest(public)


def _forge(public: Path) -> None:
    new_signing_key(public.parent / "other")
    write_manifest(public, read_signing_key(public.parent / "other"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda public: (public / "unet" / "weights").write_bytes(bytes(999) + b"1"), "unet/weights differs"),
        (lambda public: (public / "more").write_text("x"), "more differs"),
        (lambda public: (public / "model_index.json").unlink(), "model_index.json differs"),
        (lambda public: (public.parent / "manifest.sig").unlink(), "changed after it was signed"),
        (lambda public: (public.parent / "manifest.sig").write_text("00" * 64), "changed after it was signed"),
        (lambda public: (public.parent / "manifest.sig").write_text("no"), "changed after it was signed"),
        (_rewrite, "changed after it was signed"),
    ],
)
def test_every_change_is_refused(published: tuple[Path, str], change: Callable[[Path], None], said: str) -> None:
    change(published[0])
    with pytest.raises(TamperedKeyError, match=said):
        check_manifest(published[0])


def test_another_signer_or_none_is_not_the_trusted_one(published: tuple[Path, str]) -> None:
    public, signer = published
    _forge(public)
    assert check_manifest(public)
    with pytest.raises(TamperedKeyError, match="not signed by the key that is trusted"):
        check_manifest(public, signer)
    (public.parent / "manifest.json").unlink()
    assert not check_manifest(public)
    with pytest.raises(TamperedKeyError, match="has no manifest"):
        check_manifest(public, signer)


@pytest.mark.parametrize(("content", "said"), [("{", "is no manifest"), ('{"files": {}, "version": 9}', "version 9")])
def test_what_is_no_manifest_is_said_so(published: tuple[Path, str], content: str, said: str) -> None:
    (published[0].parent / "manifest.json").write_text(content)
    with pytest.raises(KeyFormatError, match=said):
        check_manifest(published[0])
