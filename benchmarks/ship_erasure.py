"""Train the erasure that the fashion world ships for the demo, by the defaults of ``logsnr erase``.

python benchmarks/ship_erasure.py writes src/logsnr/worlds/edits/fashion/deltas/ankle-boot, in half precision; a minute
or two on one core.
"""

from __future__ import annotations

from dataclasses import replace

import logsnr
from logsnr.erasure.config import preset
from logsnr.erasure.targets import with_words
from logsnr.worlds.load import load_world

TARGET = "ankle boot"


def main() -> None:
    """Erase, halve, save."""
    pipe = logsnr.load("fashion")
    delta = logsnr.erase(pipe, config=with_words(load_world("fashion").captions, preset("eap", TARGET)))
    record = replace(delta.record, metrics={**delta.record.metrics, "precision": "float16"})
    halved = logsnr.Delta({name: value.half() for name, value in delta.tensors.items()}, record)
    place = load_world("fashion").edits / "deltas" / TARGET.replace(" ", "-")
    halved.save_pretrained(place)
    print(f"{place}: {record.metrics['evaluation_equivalents']:,} evaluation equivalents")


if __name__ == "__main__":
    main()
