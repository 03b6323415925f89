"""Keep what the demo shows of a run of continual.py: its accuracies, and what its generators replay.

python benchmarks/ship_continual.py [mnist5k-gppdm-plus-1] writes src/logsnr/continual/shipped/ from the run's result in
results/continual/ and its folder in runs/continual/.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import continual
import torch

from logsnr.cli.showcase_continual import SHIPPED
from logsnr.continual.replay import replay
from logsnr.continual.sources import open_source
from logsnr.core.artifact import staged, write_json
from logsnr.core.config import read_json
from logsnr.train.preview import image_grid, save_picture

EACH = 2
"""Images of every class and experience."""
_KEPT = ("seed", "strategy", "final_accuracy", "mean_accuracy", "forgetting_max", "accuracy_matrix", "config")


def ship(name: str, folder: Path) -> None:
    """Accuracies as they are, and a row of pictures an experience."""
    found = read_json(continual.KEPT / f"{name}.json")
    data = continual.LOADERS[found["tier"]]("test")
    classes = [each["classes"] for each in found["experiences"]]
    order = [label for own in classes for label in own]
    blank = torch.ones(EACH, *data.take(torch.tensor([0]))["image"].shape[1:])
    rows = [torch.cat([data.take((data.labels == label).nonzero()[:EACH, 0])["image"] for label in order])]
    for index in range(len(classes)):
        source, told, names = open_source(continual.WORK / name / f"experience-{index}")
        known = [label for label in order if label in source.learned]
        made = replay(source, known, names, experience=index, config=replace(told, images_per_class=EACH))
        images = made.take(torch.arange(len(made)))["image"]
        own = {label: images[made.labels == label][:EACH] for label in known}
        rows.append(torch.cat([own.get(label, blank) for label in order]))
    with staged(folder, replace=True) as place:
        save_picture(image_grid(torch.cat(rows), columns=EACH * len(order), scale=1), place / "replays.png")
        write_json(place / "run.json", {"benchmark": found["tier"], "classes": classes, **{k: found[k] for k in _KEPT}})


if __name__ == "__main__":
    ship(sys.argv[1] if len(sys.argv) > 1 else "mnist5k-gppdm-plus-1", SHIPPED)
