"""Learn scikit-learn's digits two classes at a time, with nothing in memory and with a generator that replays.

``python examples/continual.py [OUT]`` writes OUT/replay.png, eight images of each class that the generator draws at the
end, and the run itself in OUT/run. It is short: ``logsnr continual run`` trains for longer, on all ten classes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from logsnr.continual.config import strategy
from logsnr.continual.learner import Learner
from logsnr.data.digits import load_digits
from logsnr.data.stream import make_stream, split_classes
from logsnr.train.preview import image_grid, save_picture

FIRST = split_classes(10, num_experiences=5)[:2]


def learned(name: str, out: Path | None = None) -> Learner:
    """A learner that has seen the stream."""
    stream = make_stream(load_digits("train"), load_digits("test"), FIRST)
    learner = Learner(stream, strategy(name, classifier_epochs=4, generator_steps=80, images_per_class=24), out)
    for _ in learner.run():
        pass
    return learner


def main(out: Path) -> None:
    """Learn twice, and draw."""
    forgetful, replaying = learned("finetune"), learned("gppdm", out / "run")
    for name, learner in (("without memory", forgetful), ("with replay", replaying)):
        first, second = learner.matrix[-1]
        print(f"{name}: {first:.2f} of the first two digits, {second:.2f} of the next two")
    drift = replaying.records[-1]["key_value_drift"]
    print(f"what keys and values say of the first two digits has changed by {drift:.1e}")
    assert replaying.replayer is not None
    classes = [label for experience in FIRST for label in experience]
    made = replaying.replayer.replay(classes, index=9)
    rows = torch.cat([(made.labels == label).nonzero()[:8, 0] for label in classes])
    print(save_picture(image_grid(made.take(rows)["image"], columns=8, scale=6), out / "replay.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/continual"))
