"""Train the tiny method from the command line: run_tiny.py OUT STEPS BATCH ACCUMULATION [--resume] [--slow]."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from accelerate import PartialState
from tiny import Points, TinyMethod

from logsnr.train.config import FitConfig
from logsnr.train.loop import fit, leave_processes

if __name__ == "__main__":
    out, steps, batch_size, accumulation = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    method = TinyMethod(dropout=0.1 if "--dropout" in sys.argv else 0.0)
    config = FitConfig(
        steps=steps, batch_size=batch_size, accumulation=accumulation, seed=5, warmup=3, decay="cosine", cpu=True,
        out=out, checkpoint_every=4, log_every=1, resume="--resume" in sys.argv,
    )  # fmt: skip
    for _ in fit(method, Points(), config):
        if "--slow" in sys.argv:
            time.sleep(0.05)
    if PartialState().is_main_process:
        method.export(out)
        (out / "processes.txt").write_text(str(PartialState().num_processes))
    leave_processes()
