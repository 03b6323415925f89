"""What a step of adversarial preservation costs, from the released scheme to ours, by the counter; and other prices.

    python benchmarks/erasure_efficiency.py

Of each scheme one step of the network is taken at every level, with the same batch, on `fashion`; nothing is judged
here, equal quality is the table's concern (erasure.py, the arm "EAP, released scheme"). Beside it: the seconds of a
closed form, and how often text is encoded after the start. Ten minutes of a core for results/erasure/efficiency.json.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from erasure import KEPT
from erasure_tasks import task_of

import logsnr
from logsnr.core.artifact import write_json
from logsnr.erasure.config import EraseConfig, preset
from logsnr.erasure.erase import make_method
from logsnr.train.method import Batch
from logsnr.worlds.load import load_world

TARGETS = ("trouser", "dress", "sandal", "shirt", "bag")
BATCH, SEED = 4, 95_000
PAPER = preset("eap-paper", *TARGETS)
SCHEMES: dict[str, EraseConfig] = {
    "released": PAPER,
    "shared sample": replace(PAPER, adversary_schedule="simultaneous", alignment="exact", adversary_grad="full"),
    "and levels by what they cost": replace(preset("eap", *TARGETS), trajectory_steps=50),
    "and 20 levels": preset("eap", *TARGETS),
}
"""Each has what those before it have."""


def measure(name: str, config: EraseConfig) -> dict[str, Any]:
    """The mean cost of a step of the network, over the chances of all levels, each of which is stepped once."""
    pipe, task = logsnr.load("fashion"), task_of(load_world("fashion").captions, TARGETS, SEED, informed=True)
    turns = config.adversary_steps if config.adversary_schedule == "alternating" else 1
    config = replace(config, candidates=task.candidates())
    method, calls = make_method(pipe, config), []
    levels, cost = method.scores.levels, method.scores.cost
    chances = levels.chances or method.pilot()
    pilot, found = cost.evaluation_equivalents, {"evaluation_equivalents_a_row": 0.0, "seconds_a_row": 0.0}
    pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    for place, chance in enumerate(chances):
        levels.chances = [1.0 if place == here else 1e-12 for here in range(len(chances))]
        before, start = cost.evaluation_equivalents, time.perf_counter()
        for turn in range(turns):
            batch = Batch({}, slice(0, BATCH), BATCH, (SEED, turn), torch.device("cpu"))
            method.loss(batch, turn).value.backward()
        spent = {"evaluation_equivalents_a_row": cost.evaluation_equivalents - before}
        spent["seconds_a_row"] = time.perf_counter() - start
        found = {key: value + chance * spent[key] / BATCH for key, value in found.items()}
    method.scores.restore()
    return {
        "scheme": name,
        **found,
        "pilot_evaluation_equivalents": pilot,
        "text_encoder_calls_after_start": len(calls),
    }


def closed_form() -> dict[str, Any]:
    """UCE's seconds on the same targets, everything included."""
    pipe, task = logsnr.load("fashion"), task_of(load_world("fashion").captions, TARGETS, SEED, informed=True)
    start = time.perf_counter()
    logsnr.erase(pipe, config=replace(preset("uce-tensor", *TARGETS), preserved=task.prompts, templates=task.templates))
    return {"scheme": "UCE", "seconds": time.perf_counter() - start}


def main() -> None:
    rows = []
    for name, config in SCHEMES.items():
        rows.append(measure(name, config))
        print(rows[-1], flush=True)
    rows.append(closed_form())
    print(rows[-1], flush=True)
    released = rows[0]["evaluation_equivalents_a_row"]
    for row in rows[:-1]:
        row["ratio"] = row["evaluation_equivalents_a_row"] / released
        row["seconds_ratio"] = row["seconds_a_row"] / rows[0]["seconds_a_row"]
    write_json(KEPT / "efficiency.json", {"batch_size": BATCH, "rows": rows})


if __name__ == "__main__":
    main()
