"""Hide a concept, draw it with and without its key in one batch, and keep the key in a file that an identity opens.

``python examples/hide.py [OUT]`` writes OUT/boot.key, and OUT/images.png: the same prompt and seeds without the key and
with it. It is short: ``logsnr hide`` trains for longer, and ``logsnr evaluate --protocol hiding`` measures.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import logsnr
from logsnr.hiding.config import hide_preset
from logsnr.hiding.keyfile import KeyFile
from logsnr.hiding.lock import new_identity
from logsnr.hiding.publish import keys_of
from logsnr.train.preview import image_grid, save_picture

TARGET, SEEDS = "ankle boot", range(6)


def main(out: Path) -> None:
    """Hide, draw, lock and open."""
    pipe = logsnr.load("fashion")
    config = hide_preset("balanced", TARGET)
    config = replace(
        config,
        anchors=("a sneaker", "a bag", "a coat"),
        bank_size=8,
        trajectory_steps=6,
        run=replace(config.run, steps=30, batch_size=4),
    )
    hidden = logsnr.hide(pipe, config=config)

    identity, recipient = new_identity()
    keys_of(pipe, hidden)[TARGET][0].save(out / "boot.key", [recipient])
    key = KeyFile.open(out / "boot.key", [identity])
    print(f"the key of {key.record.concepts[0]} has {len(key.prompt.keys)} tokens")

    hidden.change.apply(pipe)
    key.check(pipe.unet)
    steps, both = logsnr.SampleConfig(steps=8), [None] * len(SEEDS) + [key.prompt] * len(SEEDS)
    images = logsnr.sample(pipe, "an ankle boot", seeds=[*SEEDS, *SEEDS], key=both, config=steps).images
    hidden.change.revert(pipe)
    without, with_key = images.chunk(2)
    print(save_picture(image_grid(images, columns=len(SEEDS), scale=4), out / "images.png"))
    print(f"with the key a pixel differs by {float((without - with_key).abs().mean()):.3f} on average, of 2")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/hide"))
