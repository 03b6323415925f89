"""Every example runs and leaves what it promises; pages, links, code, commands and names in the documentation exist."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import logsnr
from logsnr.cli.main import parse

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = sorted(DOCS.rglob("*.md"))
PROMISED = {
    "calibrate": ["solver.json", "images.png"],
    "consistency": ["few/model_index.json", "images.png"],
    "continual": ["replay.png", "run/experience-1/unet/config.json"],
    "drop_in_scheduler": ["stock.png", "same.png", "rho.png"],
    "erase": ["delta/delta.safetensors", "images.png"],
    "hide": ["boot.key", "images.png"],
    "explain": ["ode.png", "sde.png"],
    "information": ["information.png"],
    "judge_images": ["judged.png", "judged.json"],
    "own_method": ["digits.png", "weights.safetensors", "run/log.jsonl"],
    "sample_world": ["rho.png"],
    "serve": ["image.png", "serve.db"],
}
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)[^)\n]*\)")
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(
    r"`((?:core|schedules|models|data|metrics|solvers|information|train|evaluation|worlds|erasure|hiding|consistency|continual|attacks|serve)(?:\.\w+)+)`"
)
ENVIRONMENT = {**os.environ, "GOMP_SPINCOUNT": "0", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def page_label(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return [code for name, code in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def nav_pages(entries: list[Any]) -> Iterator[str]:
    """Page names of a navigation, nested sections included."""
    for entry in entries:
        target = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(target, str):
            yield target
        else:
            yield from nav_pages(target)


def existing(name: str) -> bool:
    """Whether a dotted name below ``logsnr`` is a module or something in one."""
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute) or bool(importlib.import_module(name))
    except ImportError:
        return False


def test_every_example_has_its_promise() -> None:
    assert [path.stem for path in EXAMPLES] == sorted(PROMISED)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_leaves_what_it_promises(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(path), str(out)]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {name for name in PROMISED[path.stem] if not (out / name).is_file()} == set()
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_does(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source))
    assert 'if __name__ == "__main__":' in source
    assert len(source.splitlines()) <= 140


def test_the_navigation_lists_every_page_and_no_other() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(nav_pages(settings["nav"])) == [page_label(page) for page in PAGES]
    assert settings["theme"]["font"] is False


@pytest.mark.parametrize("page", PAGES, ids=page_label)
def test_relative_links_and_images_resolve(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    targets = [target for target in LINK.findall(text) if not re.match(r"https?://|#", target)]
    assert [target for target in targets if not (page.parent / target.split("#")[0]).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_label)
def test_python_in_the_documentation_compiles_and_imports_what_exists(page: Path) -> None:
    for code in blocks(page, "python"):
        tree = ast.parse(code, page.name)
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names = [f"{node.module}.{alias.name}" for node in froms for alias in node.names]
        assert [name for name in names if name.startswith("logsnr.") and not existing(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=page_label)
def test_commands_in_the_documentation_can_be_read(page: Path) -> None:
    lines = [line for code in blocks(page, "sh") for line in code.splitlines() if line.startswith("logsnr ")]
    for line in lines:
        assert parse(shlex.split(line)[1:]), line


@pytest.mark.parametrize("page", PAGES, ids=page_label)
def test_names_in_the_documentation_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = {f"logsnr.{name}" for name in NAME.findall(text)} | set(re.findall(r"`(logsnr(?:\.\w+)+)`", text))
    assert [name for name in sorted(names) if not existing(name)] == []


def test_the_interface_page_shows_every_public_name() -> None:
    shown = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in shown if not existing(name)] == []
    homes = {f"{logsnr._HOMES[name]}.{name}" for name in logsnr.__all__ if logsnr._HOMES[name].startswith("logsnr.")}
    assert homes - set(shown) == set()


def table_of(text: str, first: str) -> dict[str, list[str]]:
    """The rows of the table whose first heading is given, by their first cell."""
    body = text.split(f"| {first} |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in body]
    return {row[0]: row[1:] for row in cells}


def test_how_to_choose_quotes_what_was_measured() -> None:
    text = (DOCS / "how-to-choose.md").read_text(encoding="utf-8").split("Errors of order 2")[1]
    rows = json.loads((ROOT / "benchmarks" / "results" / "choosing.json").read_text(encoding="utf-8"))["rows"]
    found = [row for row in rows if row["part"] == "grids"]

    def quoted(grid: str, solver: str) -> list[str]:
        mine = [row["error"] for row in found if (row["grid"], row["solver"]) == (grid, solver)]
        return [f"{value:.3f}".removeprefix("0") for value in mine]

    grids = {"`tangent`, `data_std` of the data": "tangent, data_std"}
    for name, cells in table_of(text, "grid").items():
        assert cells == quoted(grids.get(name, name.strip("`")), "order 2 midpoint"), name
    for name, cells in table_of(text, "solver").items():
        solver = re.sub(r" \(.*\)", "", name).replace("`", "").replace("corrector", "corrected")
        assert cells == quoted("log-snr", solver), name


def test_the_checks_see_what_is_wrong() -> None:
    assert LINK.findall("![a b](images/x.png) and [c](d.md#e)") == ["images/x.png", "d.md#e"]
    assert list(nav_pages([{"a": "a.md"}, {"b": [{"c": "c.md"}, "d.md"]}])) == ["a.md", "c.md", "d.md"]
    assert existing("logsnr.solvers.sample")
    assert existing("logsnr.solvers.sample.sample")
    assert not existing("logsnr.solvers.sample.nothing")
    assert NAME.findall("`solvers.sample.sample`, `planned`") == ["solvers.sample.sample"]
