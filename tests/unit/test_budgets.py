"""Files and functions stay small, and every public function says its types."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "logsnr"
FILES = sorted(SOURCE.rglob("*.py"))
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _label(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method, nested ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def public_functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Function, bool]]:
    """(name, function, whether it is a method) of module-level functions and methods that do not begin with _."""
    for node in body:
        if isinstance(node, Function):
            if not node.name.startswith("_") or node.name in ("__init__", "__call__"):
                yield prefix + node.name, node, bool(prefix)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from public_functions(node.body, prefix)


def missing_annotations(function: Function, *, is_method: bool) -> list[str]:
    """Names of parameters without an annotation, and "return"; a method's first parameter needs none."""
    decorators = {node.id for node in function.decorator_list if isinstance(node, ast.Name)}
    positional = [*function.args.posonlyargs, *function.args.args]
    if is_method and "staticmethod" not in decorators:
        positional = positional[1:]
    rest = [arg for arg in (function.args.vararg, function.args.kwarg) if arg]
    missing = [arg.arg for arg in (*positional, *function.args.kwonlyargs, *rest) if arg.annotation is None]
    if function.returns is None and function.name != "__init__":
        missing.append("return")
    return missing


def test_there_are_sources() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=_label)
def test_a_file_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES_OF_A_FILE


@pytest.mark.parametrize("path", FILES, ids=_label)
def test_functions_are_short(path: Path) -> None:
    lengths = {
        f"{function.name}:{function.lineno}": (function.end_lineno or function.lineno) - function.lineno + 1
        for function in functions(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert {name: length for name, length in lengths.items() if length > MOST_LINES_OF_A_FUNCTION} == {}


@pytest.mark.parametrize("path", FILES, ids=_label)
def test_public_functions_are_annotated(path: Path) -> None:
    found = {
        name: missing
        for name, function, is_method in public_functions(ast.parse(path.read_text(encoding="utf-8")).body)
        if (missing := missing_annotations(function, is_method=is_method))
    }
    assert found == {}


def test_the_checks_see_what_is_wrong() -> None:
    tree = ast.parse(
        "def bare(a, *, b: int): ...\n"
        "def _private(a): ...\n"
        "class Public:\n"
        "    def __init__(self, a: int): ...\n"
        "    def method(self, a, **rest) -> None: ...\n"
        "    @staticmethod\n"
        "    def free(a) -> None: ...\n"
    )
    found = {name: missing_annotations(node, is_method=method) for name, node, method in public_functions(tree.body)}
    assert found == {
        "bare": ["a", "return"],
        "Public.__init__": [],
        "Public.method": ["a", "rest"],
        "Public.free": ["a"],
    }
