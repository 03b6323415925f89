"""Tables of measured figures in the documentation are those of the committed results."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import continual_report
import hiding_report
from record import DOCS, RESULTS, in_page

from logsnr.core.config import read_json

Tables = Callable[[dict[str, Any]], dict[str, list[list[str]]]]


@pytest.mark.parametrize(("page", "tables"), [("hiding", hiding_report.tables), ("continual", continual_report.tables)])
def test_a_page_has_the_tables_of_its_result(page: str, tables: Tables) -> None:
    text, found = (DOCS / f"{page}.md").read_text(), tables(read_json(RESULTS / f"{page}.json"))
    assert found
    for name, table in found.items():
        assert len({len(row) for row in table}) == 1, "every line has as many columns"
        assert in_page(text, name, table) == text, f"write {name!r} anew"


def test_a_table_goes_between_its_marks_alone() -> None:
    page = "before\n<!-- a -->\nold\n<!-- /a -->\nafter\n"
    assert in_page(page, "a", [["", "x"], ["one", "2"]]) == (
        "before\n<!-- a -->\n|  | x |\n|---|---|\n| one | 2 |\n<!-- /a -->\nafter\n"
    )
    with pytest.raises(ValueError, match="no <!-- b -->"):
        in_page(page, "b", [[""]])
