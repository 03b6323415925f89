"""A few-step `fashion`: one and two calls of a consistency model beside its teacher with 1 to 20.

    python benchmarks/consistency_few.py train --seed 0 [--path distil] [--steps 4000]
    python benchmarks/consistency_few.py look --seed 100 --options '{...}'
    python benchmarks/consistency_few.py teacher

A path is the preset distil, or slct_small started from the teacher or from scratch. ``train`` makes a model, chooses
its guidance and its second call's level by images and a judge that report nothing, and measures it; ``teacher``
measures the teacher at 1, 2, 4, 8 and 20 evaluations by the guidance, and then the solver, that were best in the same
way, tables calibrated for that guidance among them. Accuracies are the second judge's; distances are Frechet distances
in its features, of 10,000 images to the training images. What is done is kept in results/consistency/; models and looks
go to runs/. ``look`` tries other options with seeds from 100 on, on 2,000 images, and keeps nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench import REPORTED, TUNING, Bench
from record import RESULTS
from ship_solvers import config as calibration

import logsnr
from logsnr.consistency.config import ConsistencyConfig, consistency_preset
from logsnr.consistency.train import train_on_world
from logsnr.core.artifact import write_json
from logsnr.core.config import from_dict, to_dict
from logsnr.solvers.config import SampleConfig
from logsnr.train.trackers import last_seconds
from logsnr.worlds.load import load_world

KEPT, WORK = RESULTS / "consistency", Path("runs") / "consistency"
SEED, TUNED = 1000, 100
"""Added to the seeds of runs; those from 100 on are for tuning."""
GUIDANCE = (1.0, 1.25, 1.5, 2.0)
MIDDLE = (0.34, 0.5, 0.74, 1.06, 1.48, 2.8, 5.0)
"""Levels of the second call that are tried, for latents of unit deviation; the paper's grid is for 1/2."""
CALLS, CALIBRATED = (1, 2, 4, 8, 20), (4, 8, 20)


WAYS: list[dict[str, Any]] = [
    *({"grid": grid} for grid in ("log-snr", "log-snr-early", "karras", "tangent")),
    *({"order": 1}, {"order": 3}, {"corrector": True}, {"rho": 0.3}, {"grid": "log-snr-early", "order": 1}),
]
"""Solvers of the teacher that are tried at the guidance that was best by its own scheduler."""
PATHS: dict[str, dict[str, Any]] = {
    "distil": {"name": "distil"},
    "teacher": {"name": "slct_small"},
    "scratch": {"name": "slct_small", "start_from": "scratch", "start_levels": 10},
}


def config_of(path: str, seed: int, steps: int, changes: dict[str, Any]) -> ConsistencyConfig:
    """What is trained."""
    preset = consistency_preset(**PATHS[path], learning_rate=1e-3)
    run = replace(preset.run, steps=steps, seed=SEED + seed, cpu=True, clip=1.0, decay="cosine", log_every=50)
    found = to_dict(replace(preset, run=run))
    return from_dict(ConsistencyConfig, {**found, **changes, "run": {**found["run"], **changes.get("run", {})}})


def trained(config: ConsistencyConfig, place: Path) -> tuple[Any, float]:
    """The pipeline, and the seconds that its steps took over all legs; what was cut goes on."""
    torch.set_num_threads(1)
    world, pipe, seconds = load_world("fashion"), logsnr.load("fashion"), 0.0
    config = replace(config, run=replace(config.run, out=place / "work", resume=(place / "work").exists()))
    steps = train_on_world(pipe, world, config, WORK)
    while True:
        try:
            found = next(steps)
        except StopIteration as ended:
            return ended.value, seconds or last_seconds(place / "work" / "log.jsonl")
        seconds = found.seconds
        if found.step % 250 == 0:
            print(found.step, round(found.seconds), found.logs, flush=True)


def of_model(bench: Bench, chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """One and two calls at the chosen guidance and level."""
    rows, config = [], replace(REPORTED, first_seed=40_000)
    for calls in (1, 2):
        bench.pipe.scheduler.register_to_config(middle_sigmas=[[chosen["middle"]]])
        sampling = SampleConfig(steps=calls, guidance_scale=chosen[f"guidance_{calls}"])
        rows.append(bench.row(f"{calls} calls", sampling, config))
    return rows


def choose(bench: Bench) -> dict[str, Any]:
    """The guidance of one call, and guidance and level of two, with the least distance on tuning images.

    A network whose guidance is its own is called once a step, at 1.
    """
    found: dict[str, Any] = {}
    scales = (1.0,) if len(bench.pipe.scheduler.config.guidance or ()) == 1 else GUIDANCE
    ones = {w: bench.row(f"1, {w}", SampleConfig(steps=1, guidance_scale=w), TUNING) for w in scales}
    found["guidance_1"] = min(ones, key=lambda w: ones[w]["frechet_distance"])
    twos = {}
    for middle in MIDDLE:
        bench.pipe.scheduler.register_to_config(middle_sigmas=[[middle]])
        sampling = SampleConfig(steps=2, guidance_scale=found["guidance_1"])
        twos[middle] = bench.row(f"2, {middle}", sampling, TUNING)["frechet_distance"]
    found["middle"] = min(twos, key=lambda middle: twos[middle])
    bench.pipe.scheduler.register_to_config(middle_sigmas=[[found["middle"]]])
    again = {w: bench.row(f"2, {w}", SampleConfig(steps=2, guidance_scale=w), TUNING) for w in scales}
    found["guidance_2"] = min(again, key=lambda w: again[w]["frechet_distance"])
    return {**found, "looks": {"one": {w: row["frechet_distance"] for w, row in ones.items()}, "two": twos}}


def teacher() -> None:
    """The teacher at every number of evaluations, by the guidance and then the solver that were best in looks."""
    place, tuning, bench = KEPT / "teacher.json", Bench("fashion", tuning=True), Bench("fashion")
    searched = {"guidance": list(GUIDANCE), "ways": WAYS, "calibrated": list(CALIBRATED), "looks": TUNING.num_images}
    known = json.loads(place.read_text()) if place.exists() else {"searched": searched, "rows": []}
    if known["searched"] != searched:
        raise SystemExit(f"{place} comes from another search: remove it first")
    rows, kept = known["rows"], WORK / "looks.json"
    looks: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}

    def distance(way: SampleConfig) -> float:
        name = json.dumps(to_dict(way), sort_keys=True)
        if name not in looks:
            looks[name] = tuning.row(f"look {way.steps}", way, TUNING)["frechet_distance"]
            write_json(kept, looks)
        return looks[name]

    for calls in CALLS[len(rows) :]:
        guided = min((SampleConfig(steps=calls, guidance_scale=w) for w in GUIDANCE), key=distance)
        ways = [guided, *(replace(guided, **change) for change in WAYS)]
        if calls in CALIBRATED:
            ways.append(replace(SampleConfig(guidance_scale=guided.guidance_scale), solver=str(table(guided))))
        rows.append(bench.row(f"{calls} calls", min(ways, key=distance), replace(REPORTED, first_seed=40_000)))
        write_json(place, {"searched": searched, "rows": rows})


def table(way: SampleConfig) -> Path:
    """A solver table calibrated for this number of evaluations and guidance."""
    place = WORK / f"table-{way.steps}-{way.guidance_scale}.json"
    if not place.exists():
        pipe, captions = logsnr.load("fashion"), load_world("fashion").captions
        prompts = [captions.prompt(label, template) for template in range(4) for label in range(10)]
        options = {"guidance_scale": way.guidance_scale, "config": calibration(way.steps)}
        logsnr.calibrate(pipe, prompts, **options)[0].save(place)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "look", "teacher"])
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--path", choices=list(PATHS), default="distil")
    parser.add_argument("--options", metavar="JSON", default="{}")
    chosen = parser.parse_args()
    look = chosen.what == "look"
    if chosen.what != "teacher" and (chosen.seed is None or (chosen.seed >= TUNED) != look):
        parser.error(f"look needs a --seed from {TUNED} on, train one below")
    if chosen.options != "{}" and not look:
        parser.error("--options is for look")
    if chosen.what == "teacher":
        teacher()
        return
    config = config_of(chosen.path, chosen.seed, chosen.steps, json.loads(chosen.options))
    plain, own = to_dict(ConsistencyConfig()), recipe(config)
    changed = {name: value for name, value in own.items() if value != plain[name]}
    told = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]
    tuning = Bench("fashion", tuning=True)
    tuning.pipe, seconds = trained(config, WORK / f"{told}-{chosen.seed}")
    found = choose(tuning)
    print(json.dumps(found), round(seconds), flush=True)
    if look:
        return
    bench = Bench("fashion")
    bench.pipe = tuning.pipe
    bench.pipe.save_pretrained(WORK / f"few-{chosen.path}-{chosen.seed}")
    row = {"recipe": told, "config": recipe(config), "seed": chosen.seed, "train_seconds": seconds, "chosen": found}
    write_json(KEPT / f"few-{chosen.path}-{chosen.seed}.json", {**row, "rows": of_model(bench, found)})


def recipe(config: ConsistencyConfig) -> dict[str, Any]:
    """What is the same in runs of other seeds."""
    found = to_dict(config)
    return {
        **found,
        "run": {name: value for name, value in found["run"].items() if name not in ("seed", "out", "resume")},
    }


if __name__ == "__main__":
    main()
