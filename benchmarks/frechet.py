"""Frechet distances on the trained network at a few calls, and quality against rho.

    python benchmarks/frechet.py --calls 5 8      ours and the peers that got their own grids, 5,000 images each
    python benchmarks/frechet.py --rho 8 20       four values of rho at these numbers of calls, 2,000 images each

Distances are in the second judge's features to the moments of the 60,000 real training images. All methods start from
the same noise with the same prompts (guidance 1), and are made on other noises: "calibrated" knows the network alone;
"matched" has its numbers moved towards real images in the first judge's features, and so is each peer's "grid by
distance", the best of all grids by the same measure on the same noises, then searched like all searched grids. The
plain rows of the peers have their searched grid of the least paired error. Every row is kept in runs/solvers/, so that
hours can be done in pieces; ``--briefly`` leaves out the dear rows that are not there yet: grids by distance, and the
fine solution.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from peers import PEERS, Peer
from problems import fashion
from record import RESULTS
from safetensors.torch import load_file, save_file
from solvers import OPTIMISED, Run, Trial, exponential, full, grids_of, kept, noise_of
from torch import Tensor

import logsnr
from logsnr.core.artifact import write_json
from logsnr.core.types import Level
from logsnr.data.fashion import load_fashion
from logsnr.evaluation.config import MatchConfig
from logsnr.evaluation.matching import match_features
from logsnr.evaluation.quality import class_prompts, real_features, reference
from logsnr.metrics.frechet import frechet_distance, moments
from logsnr.metrics.judge import judge_images
from logsnr.models.pipeline import decode_latents
from logsnr.schedules.grids import early_log_snr, uniform_log_snr
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.reference import END, Model
from logsnr.solvers.sample import sample
from logsnr.solvers.table import SolverTable, load_table
from logsnr.worlds.load import load_world

NUM_IMAGES, FIRST, BATCH, FINE = 5000, 20_000_000, 500, 40
MATCH = MatchConfig()
BY_DISTANCE = ", grid by distance"
RHO, RHO_IMAGES = (0.0, 0.3, 0.6, 1.0), 2000


class Bench:
    """The network, the judges, and the moments of real images in their features."""

    def __init__(self) -> None:
        self.problem, self.pipe, self.world = fashion(1.0), logsnr.load("fashion"), load_world("fashion")
        self.judge, self.chooser = self.world.judge(second=True), self.world.judge(second=False)
        self.real = reference(self.judge, load_fashion("train"), load_fashion("test"))
        self.chosen_by = moments(real_features(self.chooser, load_fashion("train"))[0])

    def features(self, run: Run, grid: Sequence[Level], first: int = FIRST, count: int = NUM_IMAGES) -> Tensor:
        """Second judge's features (count, d) of a solver's images."""
        return judge_images(self.judge, torch.cat(list(self.images(run, grid, first, count))))[0]

    def images(self, run: Run, grid: Sequence[Level], first: int, count: int) -> Iterator[Tensor]:
        """Batches of a solver's images from the noises of seeds from ``first``."""
        for start in range(first, first + count, BATCH):
            z = run(self.model(start, BATCH), noise_of(self.problem, start, BATCH), grid, torch.arange(BATCH))
            yield decode_latents(self.pipe, z.reshape(-1, *self.problem.shape))

    def model(self, first: int, count: int) -> Model:
        """The network with the prompts of the seeds from ``first``."""
        problem = self.problem
        return Model(problem.denoiser, problem.schedule, problem.shape, problem.cond(range(first, first + count)))

    def distance(self, features: Tensor) -> float:
        """Frechet distance to the real training images, in the second judge's features."""
        return frechet_distance(moments(features), self.real.moments)

    def chosen_distance(self, run: Run, grid: list[Level], first: int, count: int) -> float:
        """Frechet distance in the first judge's features, by which grids and our numbers are chosen."""
        images = torch.cat(list(self.images(run, grid, first, count)))
        return frechet_distance(moments(judge_images(self.chooser, images)[0]), self.chosen_by)

    def matched(self, table: SolverTable, first: int) -> tuple[SolverTable, dict[str, Any]]:
        """A table moved towards real images in the first judge's features."""
        count = MATCH.num_fit + MATCH.num_selection

        def seen(samples: Tensor) -> Tensor:
            return judge_images(self.chooser, decode_latents(self.pipe, samples))[0]

        model, noise = self.model(first, count), noise_of(self.problem, first, count)
        return match_features(model, noise, table, seen, self.chosen_by, MATCH)


class Rows:
    """The features and notes of every method at one number of calls, and our calibrated table, kept as they come."""

    def __init__(self, calls: int):
        place = kept("fashion", calls, 10, "-frechet")
        self.notes_path, self.features_path = place, place.with_suffix(".safetensors")
        self.features: dict[str, Tensor] = load_file(self.features_path) if self.features_path.exists() else {}
        self.notes: dict[str, dict[str, Any]] = json.loads(place.read_text()) if place.exists() else {}

    def add(self, name: str, note: dict[str, Any], features: Tensor) -> None:
        """Keep one more method."""
        self.features[name], self.notes[name] = features.contiguous(), note
        self.features_path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.features, self.features_path)
        write_json(self.notes_path, self.notes)
        print(name, note.get("grid"), flush=True)


def compare(bench: Bench, calls: int, *, briefly: bool) -> None:
    """Distances of ours, of three peers, and of the fine solution at one number of calls."""
    trial, rows = Trial(bench.problem, seed=10), Rows(calls)
    unit, matched = trial.model.unit, trial.first + 800_000
    if "ours, matched" not in rows.features:
        table, record = trial.table(full(calls))
        moved, found = bench.matched(table, matched)
        notes = {
            "ours, calibrated": {"grid": record["winner"], "noises": trial.first + 700_000, "table": asdict(table)}
        }
        notes["ours, matched"] = {"grid": "matched", "noises": matched, **found}
        for name, made in {"ours, calibrated": table, "ours, matched": moved}.items():
            rows.add(name, notes[name], bench.features(exponential(made.solver()), made.levels(unit)))
    ours = load_table(rows.notes["ours, calibrated"]["table"]).levels(unit)
    if "ours, default" not in rows.features:
        early = early_log_snr(unit, calls)
        features = bench.features(exponential(Exponential(3, corrector=True)), early)
        rows.add("ours, default", {"grid": "log-snr-early"}, features)
    for peer in (peer for peer in PEERS if peer.name in OPTIMISED):
        if peer.name in rows.features and (briefly or peer.name + BY_DISTANCE in rows.features):
            continue
        for suffix, (name, grid) in peer_grids(bench, trial, peer, calls, ours, matched, briefly=briefly).items():
            rows.add(peer.name + suffix, {"grid": name}, bench.features(peer.run, grid))
    if not briefly and "fine" not in rows.features:
        fine = uniform_log_snr(unit, FINE, end=END)
        rows.add("fine", {"grid": f"{FINE} calls"}, bench.features(exponential(Exponential(3)), fine))
    report(bench, calls, rows)


def peer_grids(
    bench: Bench, trial: Trial, peer: Peer, calls: int, ours: list[Level], first: int, *, briefly: bool
) -> dict[str, tuple[str, list[Level]]]:
    """The peer's searched grid of least paired error, and its searched grid of least distance to real images."""
    grids = grids_of(bench.problem, trial.model, calls, trial.seen, trial.error) | {"calibrated": ours}
    errors = {name: trial.selection_error(peer, grid) for name, grid in grids.items()}
    by_error = min(errors, key=lambda name: errors[name])
    grids["searched"] = trial.searched_grid(peer, grids[by_error])
    made = {"": (f"searched from {by_error}", grids["searched"])}
    if briefly:
        return made
    found = {name: bench.chosen_distance(peer.run, grid, first, MATCH.num_fit) for name, grid in grids.items()}
    by_distance = min(found, key=lambda name: found[name])
    score = partial(bench.chosen_distance, peer.run, first=first, count=MATCH.num_fit // 2)
    closest = trial.searched_grid(peer, grids[by_distance], score)
    return made | {BY_DISTANCE: (f"searched from {by_distance}", closest)}


def report(bench: Bench, calls: int, kept_rows: Rows) -> None:
    """Write the distances, with ours over the best scheduler's."""
    features, rows = kept_rows.features, []
    for name, note in kept_rows.notes.items():
        shown = {key: value for key, value in note.items() if key != "table"}
        rows.append({"method": name, "calls": calls, "frechet_distance": bench.distance(features[name]), **shown})
        print(rows[-1], flush=True)
    peers = [row for row in rows if row["method"] != "fine" and not row["method"].startswith("ours")]
    best = min(peers, key=_distance)["method"]
    ours = [name for name in features if name.startswith("ours")]
    ratios = {name: [best, *interval(bench, features[name], features[best])] for name in ours}
    path = RESULTS / "solvers" / f"fashion-frechet-{calls}.json"
    write_json(path, {"rows": rows, "ratios": ratios, "floor": bench.real.floor})
    print(ratios, flush=True)


def interval(bench: Bench, ours: Tensor, theirs: Tensor) -> tuple[float, float, float]:
    """The ratio of two distances with a 95 % bootstrap interval over images, the same ones for both."""
    draws, values = torch.Generator().manual_seed(0), []
    for _ in range(200):
        rows = torch.randint(len(ours), (len(ours),), generator=draws)
        values.append(bench.distance(ours[rows]) / bench.distance(theirs[rows]))
    low, high = np.quantile(values, [0.025, 0.975])
    return bench.distance(ours) / bench.distance(theirs), float(low), float(high)


def against_rho(bench: Bench, budgets: Sequence[int]) -> None:
    """Quality against the noise multiplier at fixed numbers of calls, as `sample` makes images by default."""
    prompts, labels = class_prompts(
        lambda label, template: bench.world.captions.prompt(label, template), 10, RHO_IMAGES
    )
    seeds, rows, best = range(FIRST, FIRST + RHO_IMAGES), [], {}
    for calls in budgets:
        for rho in RHO:
            config = SampleConfig(steps=calls, rho=rho, guidance_scale=1.0)
            images = sample(bench.pipe, prompts, seeds=seeds, config=config, batch_size=100).images
            features, logits = judge_images(bench.judge, images)
            accuracy = float((logits.argmax(1) == labels).float().mean())
            row: dict[str, Any] = {"calls": calls, "rho": rho, "frechet_distance": bench.distance(features)}
            rows.append({**row, "judge_accuracy_second": accuracy})
            print(rows[-1], flush=True)
        best[str(calls)] = min(rows[-len(RHO) :], key=_distance)["rho"]
        write_json(RESULTS / "solvers" / "fashion-rho.json", {"rows": rows, "best_rho": best, "images": RHO_IMAGES})


def _distance(row: dict[str, Any]) -> float:
    return row["frechet_distance"]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", nargs="+", type=int, default=[])
    parser.add_argument("--briefly", action="store_true")
    parser.add_argument("--rho", nargs="+", type=int, default=[])
    chosen, bench = parser.parse_args(), Bench()
    for calls in chosen.calls:
        compare(bench, calls, briefly=chosen.briefly)
    if chosen.rho:
        against_rho(bench, chosen.rho)


if __name__ == "__main__":
    main()
