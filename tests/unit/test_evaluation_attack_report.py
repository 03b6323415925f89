"""The report of an attack: what is above the control, every prompt as text, and what is not proven."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from logsnr.evaluation.attack_report import write_attack_report

VALUES = {
    "success_rate": 0.5,
    "success_interval": (0.4, 0.6),
    "control_rate": 0.1,
    "curve": [(0.0, 0.2), (10.0, 0.5)],
    "control_curve": [(0.0, 0.1)],
    "network_evaluations": 1234,
    "prompts": ["a <b> fox", "boot & bag"],
    "target": "a fox",
    "unrelated": "a crown",
    "protocol": {"attack": "p4d-n", "model": "emoji", "seed": 7},
}


def test_it_says_what_is_above_the_control_and_what_is_not_proven(tmp_path: Path) -> None:
    write_attack_report(tmp_path, VALUES, Image.new("RGB", (4, 4)))
    text = (tmp_path / "report.html").read_text()
    for said in (
        "p4d-n on a fox",
        "+40.0%",
        "asked for a crown, reaches 10.0%",
        "1,234",
        "seed 7",
        "What is not proven",
    ):
        assert said in text
    assert "a &lt;b&gt; fox" in text
    assert "<b>" not in text
    rows = text.split("What it reached")[1].split("</table>")[0].split("<tr>")[2:]
    assert [row.count("<td") for row in rows] == [3, 3]
    assert "0.500" in rows[1], "a budget that the control did not need has a row too"


def test_an_attack_that_seeks_no_prompt_lists_none(tmp_path: Path) -> None:
    write_attack_report(tmp_path, VALUES | {"prompts": []}, Image.new("RGB", (4, 4)))
    assert "The prompts" not in (tmp_path / "report.html").read_text()
