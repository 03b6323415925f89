"""Results of consistency_few.py and consistency_vectors.py, put together in results/consistency.json.

python benchmarks/consistency_report.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from record import RESULTS, headline, mean_interval, write_result

NAMES = {"distil": "distilled", "teacher": "from teacher", "scratch": "from scratch"}
HEADLINES: tuple[tuple[str, str, str, int, int, float, Literal[">=", "<="]], ...] = (
    ("one_step_judge_ratio", "judge_accuracy_second", "distil", 1, 20, 0.95, ">="),
    ("one_step_frechet_ratio", "frechet_distance", "distil", 1, 20, 1.5, "<="),
    ("two_step_frechet_ratio", "frechet_distance", "distil", 2, 20, 1.2, "<="),
    ("two_step_frechet_over_teacher_four_steps", "frechet_distance", "distil", 2, 4, 1.0, "<="),
)
"""Name, figure, training path, calls of the model, calls of the teacher, goal; means over seeds."""
FURTHER = (
    ("frechet of one call over the teacher's one", "frechet_distance", 1, ("teacher", 1), 0.5),
    ("frechet of two calls over one", "frechet_distance", 2, ("model", 1), 1.0),
    ("accuracy of two calls over the teacher's twenty", "judge_accuracy_second", 2, ("teacher", 20), 0.9),
    ("seconds of the teacher's twenty over two calls", "seconds", 2, ("teacher", 20), 8.0),
)
"""Further figures of the specification with their targets: the last is how many times longer the teacher takes."""


def few_step(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of teacher and few-step models at every number of calls, and the headlines."""
    if not (folder / "teacher.json").exists():
        return [], []
    teacher = _read(folder / "teacher.json")["rows"]
    rows = [{"model": "teacher", "calls": _calls(row), **row} for row in teacher]
    models = {path: [_read(place) for place in sorted(folder.glob(f"few-{path}-*.json"))] for path in NAMES}
    for path, found in models.items():
        for model in found:
            told = {"model": NAMES[path], "seed": model["seed"], "train_seconds": model["train_seconds"]}
            rows += [{**told, "calls": _calls(row), **row} for row in model["rows"]]
    for name, figure, calls, (whose, evaluations), target in FURTHER:
        ratios = []
        for model in models["distil"]:
            other = _at(teacher if whose == "teacher" else model["rows"], evaluations)[figure]
            ratio = _at(model["rows"], calls)[figure] / other
            ratios.append(1 / ratio if figure == "seconds" else ratio)
        if ratios:
            rows.append({"figure": name, "value": sum(ratios) / len(ratios), "target": target, "seeds": len(ratios)})
    headlines = []
    for name, figure, path, calls, evaluations, goal, sense in HEADLINES:
        ratios = [_at(model["rows"], calls)[figure] / _at(teacher, evaluations)[figure] for model in models[path]]
        if ratios:
            mean = sum(ratios) / len(ratios)
            headlines.append(headline(name, mean, goal, sense, mean_interval(ratios)))
    return rows, headlines


def vectors(folder: Path) -> list[dict[str, Any]]:
    """Rows of the suite of vectors as they were measured."""
    return [{"suite": "vectors", **_read(place)} for place in sorted(folder.glob("vectors-*.json"))]


def _calls(row: dict[str, Any]) -> int:
    return int(row["name"].split()[0])


def _at(rows: Sequence[dict[str, Any]], calls: int) -> dict[str, Any]:
    return next(row for row in rows if _calls(row) == calls)


def _read(place: Path) -> dict[str, Any]:
    return json.loads(place.read_text())


def main() -> None:
    rows, headlines = few_step(RESULTS / "consistency")
    protocol = {
        "name": "consistency",
        "world": "fashion",
        "images": 10_000,
        "judge": "second; every choice was made by the first on other seeds",
        "teacher": "at every number of evaluations by the best guidance of its scheduler, and then the best solver",
        "intervals": "95 %, by resampling training seeds",
    }
    write_result("consistency", protocol, [*rows, *vectors(RESULTS / "consistency")], headlines)


if __name__ == "__main__":
    main()
