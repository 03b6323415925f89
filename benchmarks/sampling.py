"""Images per second of ``logsnr.sample`` against the plain StableDiffusionPipeline call: same weights, steps, output.

Both run 20 evaluations of DPM-Solver++ 2M under guidance 2 on the same grid, in turns, after the same seven warm-up
calls each; the plain call has its progress bar off and returns tensors. The network-only floor is the same number of
bare UNet calls and one decoding. Small networks are slower on two threads than on one, so every batch size is measured
on the number of threads at which the plain call is fastest, the same for all. Takes about ten minutes on idle cores.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from record import headline, write_result

import logsnr
from logsnr.models.pipeline import decode_latents, encode_prompts, latent_shape
from logsnr.solvers.config import SampleConfig

STEPS, GUIDANCE, REPEATS, WARM_UP = 20, 2.0, 9, 7
PROMPT = "a photo of a sneaker"


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def stock(pipe: Any, batch: int) -> Any:
    generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
    prompts = [PROMPT] * batch
    return pipe(
        prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, output_type="pt"
    ).images


def ours(pipe: Any, batch: int) -> Any:
    return logsnr.sample(pipe, PROMPT, seeds=range(batch), config=SampleConfig(steps=STEPS, guidance_scale=GUIDANCE))


@torch.inference_mode()
def network_only(pipe: Any, batch: int) -> None:
    text = encode_prompts(pipe, [PROMPT] * (2 * batch), guided=False).values["encoder_hidden_states"]
    latents = torch.randn(2 * batch, *latent_shape(pipe))
    for timestep in range(STEPS):
        pipe.unet(latents, torch.tensor(timestep * 50), encoder_hidden_states=text, return_dict=False)
    decode_latents(pipe, latents[:batch])


def best_threads(pipe: Any, batch: int) -> dict[str, float]:
    """Seconds of the plain call by number of threads, best of three; the fastest is used for all."""
    seconds = {}
    for threads in range(1, (os.cpu_count() or 1) + 1):
        torch.set_num_threads(threads)
        seconds[str(threads)] = min(timed(lambda: stock(pipe, batch)) for _ in range(3))
    torch.set_num_threads(int(min(seconds, key=seconds.__getitem__)))
    return seconds


def measure(pipe: Any, batch: int) -> dict[str, Any]:
    """Medians of calls in turns, and the spread of the paired ratio."""
    threads = best_threads(pipe, batch)
    calls = {"stock": stock, "ours": ours, "network": network_only}
    for call in calls.values():
        for _ in range(WARM_UP):
            call(pipe, batch)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            times[name].append(timed(lambda call=call: call(pipe, batch)))
    middle = {name: statistics.median(values) for name, values in times.items()}
    ratios = sorted(s / o for s, o in zip(times["stock"], times["ours"], strict=True))
    return {
        "batch": batch,
        "threads": torch.get_num_threads(),
        "plain_call_seconds_by_threads": threads,
        "seconds": middle,
        "images_per_second": {name: batch / value for name, value in middle.items()},
        "overhead_ms_per_step": {name: 1e3 * (middle[name] - middle["network"]) / STEPS for name in ("stock", "ours")},
        "ratio": middle["stock"] / middle["ours"],
        "ratio_low": ratios[1],
        "ratio_high": ratios[-2],
        "times": times,
    }


def main() -> None:
    pipe = logsnr.load("fashion")
    difference = float(((stock(pipe, 4) * 2 - 1) - ours(pipe, 4).images).abs().max())
    rows = [measure(pipe, batch) for batch in (1, 32)]
    for row in rows:
        print(row["batch"], {k: round(v, 4) for k, v in row["seconds"].items()}, row["overhead_ms_per_step"])
    protocol = {
        "what": "images per second, median of calls in turns",
        "model": "fashion",
        "steps": STEPS,
        "guidance_scale": GUIDANCE,
        "repeats": REPEATS,
        "peer": "StableDiffusionPipeline with DPMSolverMultistepScheduler, output_type pt, progress bar off",
        "interval": "second smallest to second largest paired ratio",
        "largest_image_difference": difference,
    }
    goals = {1: 1.2, 32: 0.98}
    headlines = [
        headline(
            f"images_per_second_ratio_batch{row['batch']}",
            row["ratio"],
            goals[row["batch"]],
            ">=",
            (row["ratio_low"], row["ratio_high"]),
        )
        for row in rows
    ]
    write_result("sampling", protocol, rows, headlines)


if __name__ == "__main__":
    main()
