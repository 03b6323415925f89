"""Sampling for many at once: a bounded queue, and threads that each take one request after another.

A request goes through the network alone, by one thread of one core, so its image is the same whatever else runs. With
``merge`` compatible requests share their forward passes instead; then the last bits depend on their company.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from logsnr.models.pipeline import Pipeline, decode_latents
from logsnr.models.prompted import Prompt
from logsnr.serve.errors import RefusedError
from logsnr.serve.meters import Meters
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import Samples, sampling

Preview = Callable[[int, Tensor], None]
"""Called in the runner's thread with a number from 0 on, and images (n, channels, height, width) in [-1, 1]."""


@dataclass(eq=False)
class Job:
    """One request for images of one prompt: a pipeline, seeds, and perhaps a key's prompt; equal to itself alone."""

    pipe: Pipeline
    prompt: str
    seeds: Sequence[int]
    config: SampleConfig
    key: Prompt | None = None
    delta: str | None = None
    concepts: tuple[str, ...] = ()
    previews: int = 0
    preview: Preview | None = None
    done: Future[Samples] = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)
    due: float = float("inf")

    def fits(self, other: Job) -> bool:
        """Whether both can go through the network together."""
        layers = {job.key.layers for job in (self, other) if job.key}
        same = self.pipe is other.pipe and self.config == other.config
        return same and len(layers) <= 1 and not self.previews and not other.previews


class Engine:
    """Requests are sampled by ``runners`` threads; ``queue`` of them wait at most, ``max_seconds`` each."""

    def __init__(
        self, *, runners: int, queue: int, merge: int = 1, max_seconds: float = 120.0, meters: Meters | None = None
    ):
        self.queue, self.merge, self.max_seconds, self.meters = queue, merge, max_seconds, meters
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._open, self.running = True, 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(runners)]
        for thread in self._threads:
            thread.start()

    @property
    def ready(self) -> bool:
        """Whether requests are taken, and every thread is there to take them."""
        return self._open and all(thread.is_alive() for thread in self._threads)

    def submit(self, job: Job) -> None:
        """Put a request into the queue; its ``done`` has the images later, or what went wrong.

        Raises:
            RefusedError: 503, the queue is full, or the server is about to stop.
        """
        with self._changed:
            if not self._open:
                raise RefusedError(503, "stopping", "the server is about to stop", retry_after=5)
            self._waiting = deque(other for other in self._waiting if not other.cancelled.is_set())
            if len(self._waiting) >= self.queue:
                raise RefusedError(503, "full", f"{self.queue} requests wait already: try again later", retry_after=1)
            job.due = time.monotonic() + self.max_seconds
            self._waiting.append(job)
            self._tell()
            self._changed.notify()

    def close(self) -> None:
        """Finish what is there, take nothing new, and wait for it."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        torch.set_num_threads(1)
        while jobs := self._next():
            try:
                self._sample(jobs)
            except Exception as error:
                for job in jobs:
                    if not job.done.done():
                        job.done.set_exception(error)
            finally:
                with self._changed:
                    self.running -= len(jobs)
                    self._tell()

    def _next(self) -> list[Job]:
        """The request that waits longest, and those that can go with it; none when the server stops."""
        with self._changed:
            while True:
                while not self._waiting and self._open:
                    self._changed.wait()
                if not self._waiting:
                    return []
                job = self._waiting.popleft()
                if job.cancelled.is_set():
                    job.done.cancel()
                elif time.monotonic() > job.due:
                    line = f"no turn came within {self.max_seconds:g} s: try again later"
                    job.done.set_exception(RefusedError(503, "late", line, retry_after=5))
                else:
                    break
            jobs = [job, *self._company(job)]
            self.running += len(jobs)
            self._tell()
            return jobs

    def _tell(self) -> None:
        if self.meters:
            self.meters.waiting.set(len(self._waiting))
            self.meters.running.set(self.running)

    def _company(self, first: Job) -> list[Job]:
        """Further requests that are sampled with the first, as many as ``merge`` images allow."""
        found, images = [], len(first.seeds)
        for job in [job for job in self._waiting if self.merge > 1 and first.fits(job)]:
            if images + len(job.seeds) <= self.merge and all(job.fits(other) for other in found):
                found.append(job)
                images += len(job.seeds)
        for job in found:
            self._waiting.remove(job)
        return found

    def _sample(self, jobs: Sequence[Job]) -> None:
        first = jobs[0]
        rows = [(job, seed) for job in jobs for seed in job.seeds]
        options = {"seeds": [seed for _, seed in rows], "key": [job.key for job, _ in rows], "config": first.config}
        run = sampling(first.pipe, [job.prompt for job, _ in rows], batch_size=len(rows), **options)
        shown = _shown_steps(first) if first.preview else {}
        step = 0
        while True:
            try:
                latents = next(run)
            except StopIteration as ended:
                _hand_out(jobs, ended.value)
                return
            if all(job.cancelled.is_set() for job in jobs):
                run.close()
                for job in jobs:
                    job.done.cancel()
                return
            step += 1
            if step in shown and first.preview:
                with torch.inference_mode():
                    first.preview(shown[step], decode_latents(first.pipe, latents))


def _shown_steps(job: Job) -> dict[int, int]:
    """Steps after which a preview is made, spread over the run without its last, and the preview's number."""
    last = job.config.steps - 1
    wanted = min(job.previews, last)
    steps = sorted({round((number + 1) * last / wanted) for number in range(wanted)} - {0}) if wanted else []
    return {step: number for number, step in enumerate(steps)}


def _hand_out(jobs: Sequence[Job], made: Samples) -> None:
    """Each request its own images."""
    first = 0
    for job in jobs:
        last = first + len(job.seeds)
        job.done.set_result(
            Samples(
                made.images[first:last],
                made.latents[first:last],
                made.levels,
                made.nfe,
                made.network_evaluations * len(job.seeds) // len(made.images),
                made.seconds,
            )
        )
        first = last
