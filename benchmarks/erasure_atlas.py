"""Which concepts of `emoji` an erasure hurts, against how near their text is to what was erased (hypothesis H4).

    python benchmarks/erasure_atlas.py [--arms ESD EAP]

Each of five targets is erased alone by the preset. Damage is the atlas's: how far images of the same prompt and seed
moved in the second judge's features, over how far two images of a prompt are apart.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from erasure import KEPT, SAMPLING, Bench
from erasure_attacks import ARMS, erased
from erasure_panels import FOCUS, panel
from torch import Tensor

import logsnr
from logsnr.core.artifact import write_json
from logsnr.erasure.candidates import text_distances
from logsnr.evaluation.atlas import atlas
from logsnr.metrics.judge import judge_images

EACH, SEED, IMAGE_SEED = 4, 83_000, 61_000_000
NEUTRAL = ["", "a picture", "an emoji"]


def measure(bench: Bench, arm: str, target: str) -> dict[str, Any]:
    """The atlas of one erasure over the concepts of its panel and prompts that name none."""
    asked = panel(bench.world, [target], held_out=True)
    concepts = [*NEUTRAL, *(bench.world.captions.names[label][0] for label in asked.classes)]
    prompts = [concept for concept in concepts for _ in range(EACH)]
    seeds = range(IMAGE_SEED, IMAGE_SEED + len(prompts))

    def features() -> Tensor:
        made = logsnr.sample(bench.pipe, prompts, seeds=seeds, config=SAMPLING, batch_size=100)
        return judge_images(bench.judges["test"], made.images)[0].view(len(concepts), EACH, -1)

    distances, before = text_distances(bench.pipe, [target], concepts).amin(0), features()
    delta = erased(bench, arm, target, SEED)
    delta.apply(bench.pipe)
    found = atlas(concepts, [concept == target for concept in concepts], distances, before, features())
    delta.revert(bench.pipe)
    return {"arm": arm, "target": target, "images_each": EACH, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", default=["ESD"], choices=list(ARMS))
    chosen = parser.parse_args()
    bench: Bench | None = None
    for arm in chosen.arms:
        for target in FOCUS:
            place = KEPT / f"atlas-{target}-{arm}.json".replace(" ", "_")
            if place.exists():
                continue
            bench, start = bench or Bench("emoji"), time.monotonic()
            row = measure(bench, arm, target)
            write_json(place, {**row, "seconds": round(time.monotonic() - start, 1)})
            print(arm, target, row["spearman"], row["empty_prompt_percentile"], flush=True)


if __name__ == "__main__":
    main()
