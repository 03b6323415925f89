"""Hide the class that the fashion world's demo reveals, by the defaults of ``logsnr hide``.

python benchmarks/ship_hiding.py writes src/logsnr/worlds/edits/fashion/hidden/sandal: the change of the weights in half
precision, and the key, whose passphrase the demo tells everyone; ten minutes on one core.
"""

from __future__ import annotations

from dataclasses import replace

import logsnr
from logsnr.cli.showcase_hiding import PASSPHRASE
from logsnr.core.artifact import staged
from logsnr.hiding.config import hide_preset
from logsnr.hiding.hide import with_captions
from logsnr.hiding.lock import Secret
from logsnr.hiding.publish import keys_of
from logsnr.models.delta import write_delta
from logsnr.worlds.load import load_world

TARGET = "sandal"


def main() -> None:
    """Hide, halve, lock, save."""
    pipe = logsnr.load("fashion")
    hidden = logsnr.hide(pipe, config=with_captions(load_world("fashion").captions, hide_preset("balanced", TARGET)))
    record = replace(hidden.change.record, metrics={**hidden.change.record.metrics, "precision": "float16"})
    halved = logsnr.Delta({name: value.half() for name, value in hidden.change.tensors.items()}, record)
    (key,) = keys_of(pipe, replace(hidden, change=halved))[TARGET]
    with staged(load_world("fashion").edits / "hidden" / TARGET) as folder:
        write_delta(halved, folder)
        key.save(folder / "key.age", passphrase=Secret(PASSPHRASE))
    print(f"{hidden.cost.evaluation_equivalents:,} evaluation equivalents")


if __name__ == "__main__":
    main()
