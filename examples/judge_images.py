"""Let a judge say what images of the fashion world show, with the prompts worded as training never saw them.

``python examples/judge_images.py [OUT]`` writes OUT/judged.png, one row a class, and OUT/judged.json with the share of
images that the second judge reads as asked, and what it reads in the others.
"""

from __future__ import annotations

import sys
from pathlib import Path

import logsnr
from logsnr.core.artifact import write_json
from logsnr.metrics.judge import judge_images
from logsnr.train.preview import image_grid, save_picture
from logsnr.worlds.load import load_world

IMAGES_PER_CLASS = 5


def main(out: Path) -> None:
    """Sample every class, judge the images, and save the sheet and the verdicts."""
    world, pipe = load_world("fashion"), logsnr.load("fashion")
    names = [names[0] for names in world.captions.names]
    labels = [label for label in range(len(names)) for _ in range(IMAGES_PER_CLASS)]
    prompts = [world.captions.prompt(label, index, held_out=True) for index, label in enumerate(labels)]
    made = logsnr.sample(pipe, prompts, seeds=range(len(prompts)), config=logsnr.SampleConfig(steps=10))
    _, logits = judge_images(world.judge(second=True), made.images)
    verdicts = logits.argmax(1).tolist()
    accuracy = sum(verdict == label for verdict, label in zip(verdicts, labels, strict=True)) / len(labels)
    others = [
        {"seed": seed, "prompt": prompts[seed], "read": names[verdict]}
        for seed, (verdict, label) in enumerate(zip(verdicts, labels, strict=True))
        if verdict != label
    ]
    write_json(out / "judged.json", {"num_images": len(labels), "judge_accuracy_second": accuracy, "others": others})
    print(f"the second judge reads {accuracy:.0%} of {len(labels)} images as asked")
    print(save_picture(image_grid(made.images, columns=IMAGES_PER_CLASS, scale=3), out / "judged.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/judge_images"))
