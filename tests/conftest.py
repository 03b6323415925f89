"""What holds for every test: nothing is downloaded, at most two threads, and the same examples in every run."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("GOMP_SPINCOUNT", "0")
_threads = os.environ.get("OMP_NUM_THREADS", "")
os.environ["OMP_NUM_THREADS"] = _threads if _threads in ("1", "2") else "2"

# After the environment, which libraries read once, while they are imported.
from hypothesis import settings  # noqa: E402

# A deadline would measure how busy the machine is; examples that change from run to run would hide which change broke.
settings.register_profile("logsnr", deadline=None, derandomize=True)
settings.load_profile("logsnr")
