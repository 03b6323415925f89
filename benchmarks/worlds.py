"""The worlds emoji and fashion-flow: what judges read in their images, and fashion-flow against fashion.

    python benchmarks/worlds.py [--only NAME]              measures the worlds that have weights here; what is known
                                                           of the others stays
    python benchmarks/worlds.py --tune                     compares settings on seeds that are not reported
    python benchmarks/worlds.py --reconstructions FOLDER   what emoji's autoencoder keeps, in a folder of a training

Prompts are worded by held-out templates, figures are by the second judge, 20 evaluations an image. Real images of emoji
are augmented views that no training saw; of 5 % of the pairs of concept and style the denoiser saw none. The last form
needs judges and autoencoder only, and ends with 1 if 4x8x8 latents lose too much to train a denoiser on them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fashion
from bench import DEFAULT, IMAGES, REPORTED, Bench, settings
from diffusers import AutoencoderKL
from record import RESULTS, headline, tell, write_result

import logsnr
from logsnr.core.config import read_json
from logsnr.data.labelled import take_all
from logsnr.evaluation.pairs import ask_pairs, figures_by_both
from logsnr.evaluation.quality import Judges, describe
from logsnr.metrics.bounds import wilson
from logsnr.metrics.judge import Judge
from logsnr.solvers.config import SampleConfig
from logsnr.train.preview import image_grid, save_picture
from logsnr.worlds.autoencoder import reconstruct
from logsnr.worlds.card import write_card
from logsnr.worlds.data import SOURCES
from logsnr.worlds.load import WORLDS

CHOSEN = {
    "emoji": SampleConfig(steps=20, guidance_scale=3.0),
    "fashion-flow": SampleConfig(steps=20, guidance_scale=1.3),
}
"""For emoji what shows the concepts best, for fashion-flow its faithful setting; chosen by ``--tune``."""
SEARCHED = {"emoji": settings((1.5, 2.0, 3.0, 4.0), (0.0, 0.5)), "fashion-flow": settings((1.0, 1.25, 1.5), (0.0, 0.3))}
DEFAULT_SEED = 20_000
COMPARED = replace(REPORTED, num_images=5_000)
"""fashion-flow and fashion beside it."""
PAIRED = replace(REPORTED, num_images=6_000)
"""emoji: each trained pair of concept and style about twice."""
Found = tuple[list[dict[str, Any]], dict[str, float]]


def share(name: str, row: dict[str, Any], figure: str, goal: float) -> dict[str, Any]:
    """A headline of a share of images, with Wilson's interval."""
    value, num = row[figure], row["num_images"]
    return headline(name, value, goal, ">=", wilson(round(value * num), num))


def emoji(bench: Bench) -> Found:
    """Concepts and styles as asked, on trained and on held-out pairs: headlines, and further figures of the card."""
    real, made = bench.real_images(), bench.reconstructions()
    chosen = bench.row("chosen", CHOSEN["emoji"], PAIRED)
    default = bench.row("default", DEFAULT, replace(PAIRED, first_seed=DEFAULT_SEED))
    found = [
        share("concept_top1", chosen, "concept_top1_second", 0.7),
        share("concept_top5", chosen, "concept_top5_second", 0.9),
        share("style_accuracy", chosen, "style_accuracy_second", 0.9),
        share("heldout_pair_top1", chosen["held_out_pairs"], "concept_top1_second", 0.0),
    ]
    return found, {
        "default_accuracy": default["judge_accuracy_second"],
        "default_style_accuracy": default["style_accuracy_second"],
        "real_test_accuracy": real["judge_accuracy_second"],
        "real_style_accuracy": real["style_accuracy_second"],
        "reconstruction_accuracy": made["judge_accuracy_second"],
        "nearest_training_distance": chosen["nearest_training_distance"],
        "nearest_training_distance_of_test": real["nearest_training_distance"],
    }


def flow(bench: Bench) -> Found:
    """fashion's figures on fashion-flow, and its Frechet distance over fashion's, made in the same run."""
    real, made = bench.real_images(), bench.reconstructions()
    faithful = bench.row("faithful", CHOSEN["fashion-flow"], COMPARED)
    default = bench.row("default", DEFAULT, replace(COMPARED, first_seed=DEFAULT_SEED))
    peer = Bench("fashion").row("faithful, fashion", fashion.FAITHFUL, COMPARED)
    bench.rows.append(peer)
    ratio = faithful["frechet_distance"] / peer["frechet_distance"]
    errors = [row["frechet_stderr"] / row["frechet_distance"] for row in (faithful, peer)]
    spread = 2 * ratio * sum(error**2 for error in errors) ** 0.5
    found = [
        share("flow_judge_accuracy", default, "judge_accuracy_second", 0.93),
        headline("flow_frechet_ratio", ratio, 1.5, "<=", (ratio - spread, ratio + spread)),
    ]
    as_fashion = {entry["name"]: entry["value"] for entry in fashion.headlines(bench, made, faithful, default)}
    return found, as_fashion | {"real_test_accuracy": real["judge_accuracy_second"]}


MEASURED: dict[str, Callable[[Bench], Found]] = {"emoji": emoji, "fashion-flow": flow}


def pictures(bench: Bench) -> None:
    """The sheet for card and gallery, and three rows of pairs that were held out, where there are any."""
    sheet = bench.sheet()
    for place in (bench.world.folder / "sheet.png", IMAGES / f"{bench.world.name}-sheet.png"):
        save_picture(sheet, place)
    if pairs := bench.world.source.pairs():
        prompts = ask_pairs(bench.world.captions.prompt, pairs.held_out, 24).prompts
        made = logsnr.sample(bench.pipe, prompts, seeds=range(24), config=CHOSEN[bench.world.name])
        save_picture(image_grid(made.images, columns=8), IMAGES / f"{bench.world.name}-held-out.png")


def main(names: list[str]) -> None:
    """Measure worlds, write their cards and pictures, and the result of all; other worlds keep what it had of them."""
    rows, found, data = [], [], {}
    for name in names:
        bench = Bench(name)
        entries, more = MEASURED[name](bench)
        pictures(bench)
        write_card(bench.world.folder, {entry["name"]: entry["value"] for entry in entries} | more)
        rows += [{"world": name, **_kept(row)} for row in bench.rows]
        found += [{"world": name, **entry} for entry in entries]
        data[name] = bench.world.source.describe()
    place = RESULTS / "emoji.json"  # read late: another process may have measured the other world
    known: dict[str, Any] = read_json(place) if place.exists() else {"rows": [], "headline": [], "protocol": {}}
    rows = [row for row in known["rows"] if row["world"] not in names] + rows
    found = [entry for entry in known["headline"] if entry["world"] not in names] + found
    data = known["protocol"].get("data", {}) | data
    chosen = {name: asdict(CHOSEN[name]) for name in data}
    protocol = describe(REPORTED, data=data, chosen=chosen, default=asdict(DEFAULT), default_first_seed=DEFAULT_SEED)
    write_result("emoji", protocol, rows, found)


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    """A row without accuracies of single classes where there are a thousand."""
    many = len(row["per_class"]) > 100
    return {figure: value for figure, value in row.items() if not (many and figure == "per_class")}


def reconstructed(folder: Path) -> bool:
    """Whether the second judge reads at least 85 % of the concepts after emoji's autoencoder, and what both read."""
    needed = ("judge", "judge_second", "autoencoder")
    if missing := [name for name in needed if not (folder / name).is_dir()]:
        sys.exit(f"{folder} has no {missing[0]}: say logsnr train emoji --stages {','.join(needed)} --out {folder}")
    judges = Judges(*(Judge.from_pretrained(folder / name).float() for name in needed[:2]))
    items = take_all(SOURCES["emoji"].measuring()[1])
    made = reconstruct(AutoencoderKL.from_pretrained(folder / "autoencoder"), items["image"])
    for name, images in (("real", items["image"]), ("reconstructions", made)):
        row = {"num_images": len(images), **figures_by_both(judges, images, items["label"], items["style"])}
        print(name, {figure: round(value, 4) for figure, value in row.items()}, flush=True)
    gate = share("reconstruction_top1", row, "concept_top1_second", 0.85)
    tell(gate)
    return gate["met"]


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--reconstructions", type=Path, metavar="FOLDER")
    parser.add_argument("--only", choices=list(MEASURED))
    chosen = parser.parse_args()
    if chosen.reconstructions:
        return 0 if reconstructed(chosen.reconstructions) else 1
    names = [name for name in MEASURED if name in WORLDS and chosen.only in (None, name)]
    if chosen.tune:
        for name in names:
            Bench(name).tune(SEARCHED[name])
    elif names:
        main(names)
    for name in MEASURED.keys() - WORLDS.keys():
        print(f"{name} has no weights here and was left out")
    return 0


if __name__ == "__main__":
    sys.exit(run())
