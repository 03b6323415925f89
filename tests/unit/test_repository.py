"""What the repository must not hold: pickles, machine paths, names that say nothing, hosts of registries."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(path for part in ("src", "benchmarks") for path in (ROOT / part).rglob("*.py"))
PICKLING = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
EMPTY_NAMES = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "base.py", "misc.py"}
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cff", ".json", ".jsonl", ".html", ".css", ".js", ".cfg", ""}
# A path of somebody's machine: /home/..., not the end of a longer path such as out/work/ or of an address.
MACHINE_PATH = re.compile(r"(?<![\w.~}\])*-])/(?:root|tmp|home|work|opt|mnt|Users|private)/")
# Written in two parts, so that this file does not hold what it looks for.
HOSTS = tuple(
    left + right
    for left, right in (
        ("pypi", ".org"),
        ("pythonhosted", ".org"),
        ("npmjs", ".org"),
        ("npmjs", ".com"),
        ("crates", ".io"),
        ("anaconda", ".org"),
        ("deb.debian", ".org"),
        ("download.pytorch", ".org"),
        ("proxy.golang", ".org"),
    )
)


def _label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tracked_files() -> list[Path]:
    """Files under version control or about to be; none outside a git work tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return sorted(path for name in result.stdout.split("\0") if name and (path := ROOT / name).is_file())


def tracked_texts() -> dict[str, str]:
    """Name and content of the tracked text files."""
    texts = (path for path in tracked_files() if path.suffix in TEXT)
    return {_label(path): path.read_text(encoding="utf-8", errors="replace") for path in texts}


def pickle_uses(source: str) -> list[str]:
    """Imports of pickling modules, and calls that read or write a pickle."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PICKLING]
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in PICKLING:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name, values = ast.unparse(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords}
            unsafe = name == "torch.load" and values.get("weights_only") != "True"
            if unsafe or name == "torch.save" or values.get("allow_pickle", "False") != "False":
                found.append(name)
    return found


@pytest.mark.parametrize("path", PROGRAMS, ids=_label)
def test_no_pickle_is_read_or_written(path: Path) -> None:
    assert pickle_uses(path.read_text(encoding="utf-8")) == []


def test_the_pickle_check_sees_every_form() -> None:
    source = "import pickle\nfrom joblib import dump\ntorch.load(f)\ntorch.save(x, f)\nnp.load(f, allow_pickle=True)\n"
    assert sorted(pickle_uses(source)) == ["joblib", "np.load", "pickle", "torch.load", "torch.save"]
    assert pickle_uses("torch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)\nimport json\n") == []


def test_no_file_name_is_empty_of_meaning() -> None:
    files = {*tracked_files(), *PROGRAMS}
    assert sorted(_label(path) for path in files if path.name in EMPTY_NAMES) == []


def test_no_text_names_a_path_of_one_machine() -> None:
    texts = {name: text for name, text in tracked_texts().items() if not name.startswith("tests/")}
    assert {name: found.group() for name, text in texts.items() if (found := MACHINE_PATH.search(text))} == {}


@pytest.mark.parametrize("text", ["x = '/{}/x'", "see `/{}/x`", "(/{}/x)", "OUT=/{}/x"])
def test_the_path_check_sees_machine_paths(text: str) -> None:
    assert MACHINE_PATH.search(text.format("root"))


@pytest.mark.parametrize("text", ["out/{}/x", "an.example/{}/x", "{{out}}/{}/x", "/usr/share/{}/x"])
def test_the_path_check_passes_other_paths(text: str) -> None:
    assert not MACHINE_PATH.search(text.format("work"))


def test_no_text_names_the_host_of_a_registry() -> None:
    found = {name: [host for host in HOSTS if host in text] for name, text in tracked_texts().items()}
    assert {name: hosts for name, hosts in found.items() if hosts} == {}
