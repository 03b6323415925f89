"""Artifacts appear whole or not at all, and a fingerprint sees every bit."""

import pytest
import torch

from logsnr.core.artifact import fingerprint, load_tensors, save_tensors, staged, write_file, write_json
from logsnr.core.errors import BrokenError, InputError


class Stop(RuntimeError):
    """The failure that a test puts into a block."""


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_staged_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "model"
    with staged(target) as folder:
        (folder / "a.txt").write_text("a")
        assert not target.exists()
    assert everything(tmp_path) == ["deep", "deep/model", "deep/model/a.txt"]


@pytest.mark.parametrize("failure", [Stop, KeyboardInterrupt])
def test_a_failed_block_leaves_nothing_behind(tmp_path, failure):
    with pytest.raises(failure), staged(tmp_path / "deep" / "deeper" / "model") as folder:
        (folder / "a.txt").write_text("a")
        raise failure
    assert everything(tmp_path) == []


def test_a_failed_block_keeps_parents_that_others_use(tmp_path):
    with pytest.raises(Stop), staged(tmp_path / "deep" / "model"):
        (tmp_path / "deep" / "mine").write_text("a")
        raise Stop
    assert everything(tmp_path) == ["deep", "deep/mine"]


def test_an_existing_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with pytest.raises(InputError, match="exists already"), staged(tmp_path / "model"):
        raise AssertionError("the block must not run")
    assert everything(tmp_path) == ["model", "model/old"]


def test_replace_swaps_the_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with staged(tmp_path / "model", replace=True) as folder:
        (folder / "new").write_text("new")
        assert everything(tmp_path / "model") == ["old"]
    assert everything(tmp_path) == ["model", "model/new"]


def test_replace_keeps_the_old_folder_when_the_block_fails(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with pytest.raises(Stop), staged(tmp_path / "model", replace=True):
        raise Stop
    assert everything(tmp_path) == ["model", "model/old"]


def test_replace_restores_the_old_folder_when_the_new_one_is_gone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with pytest.raises(InputError, match="cannot be written"), staged(tmp_path / "model", replace=True) as folder:
        folder.rmdir()
    assert everything(tmp_path) == ["model", "model/old"]


def test_replace_does_not_remove_a_file(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(InputError, match="exists already"), staged(tmp_path / "model", replace=True):
        raise AssertionError("the block must not run")
    assert (tmp_path / "model").read_text() == "mine"


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(InputError, match="cannot be written"), staged(tmp_path / "model"):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "other").write_text("other")
    assert everything(tmp_path) == ["model", "model/other"]


@pytest.mark.parametrize("below", ["file/model", "file/deep/model"])
def test_an_unwritable_place_is_refused_in_one_line(tmp_path, below):
    (tmp_path / "file").write_text("a")
    with pytest.raises(InputError, match="cannot be written") as caught, staged(tmp_path / below):
        raise AssertionError("the block must not run")
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == ["file"]


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_file(path, "one")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert everything(tmp_path) == ["deep", "deep/a.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_file(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_file(path, "new \ud800")
    assert path.read_text() == "old"
    assert everything(tmp_path) == ["a.txt"]


def test_a_taken_name_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be written"):
        write_file(tmp_path / "folder", "a")
    assert everything(tmp_path) == ["folder", "folder/inside"]


@pytest.mark.parametrize("write", [lambda p: write_file(p, "a"), lambda p: save_tensors(p, {"a": torch.zeros(2)})])
def test_writing_below_a_file_is_refused(tmp_path, write):
    (tmp_path / "file").write_text("a")
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "file" / "b")


def test_json_is_readable_by_people(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Zürich", "n": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "name": "Zürich",\n  "n": 1\n}\n'


def test_tensors_survive_with_shared_memory_and_any_layout(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"base": base, "view": base[1:], "turned": base.T, "half": base.half(), "number": torch.tensor(3)}
    save_tensors(tmp_path / "deep" / "a.safetensors", tensors)
    loaded = load_tensors(tmp_path / "deep" / "a.safetensors")
    assert set(loaded) == set(tensors)
    assert all(
        torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype for name, value in tensors.items()
    )
    assert everything(tmp_path) == ["deep", "deep/a.safetensors"]


@pytest.mark.parametrize("keep", [0, 4, 30, 200])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.randn(100)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BrokenError, match=r"a\.safetensors") as caught:
        load_tensors(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BrokenError, match=r"none\.safetensors"):
        load_tensors(tmp_path / "none.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_a_fingerprint_changes_with_one_bit(dtype):
    tensors = {"a": torch.ones(5, dtype=dtype), "b": torch.zeros(2, 3)}
    changed = {"a": tensors["a"].clone(), "b": tensors["b"]}
    changed["a"].view(torch.uint8)[3] ^= 1
    assert fingerprint(tensors) != fingerprint(changed)


def test_a_fingerprint_sees_names_shapes_and_types_but_not_order_or_layout():
    base = torch.arange(6.0).reshape(2, 3)
    prints = [
        fingerprint(x) for x in ({"a": base}, {"b": base}, {"a": base.reshape(3, 2)}, {"a": base.view(torch.int32)})
    ]
    assert len(set(prints)) == 4
    both = {"a": base, "b": torch.zeros(())}
    assert fingerprint(both) == fingerprint({"b": torch.zeros(()), "a": base.T.contiguous().T})
