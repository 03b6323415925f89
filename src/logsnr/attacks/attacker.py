"""What every attack does: make images of texts under a budget, and train on the references that the attacker has."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from logsnr.attacks.config import AttackConfig
from logsnr.attacks.tokens import window
from logsnr.core.random import generator, sample_noise
from logsnr.core.types import Level, Prediction
from logsnr.models.denoiser import Conditioning, NetworkDenoiser, Tree, select_rows
from logsnr.models.pipeline import Pipeline, decode_latents, denoiser_of, encode_prompts, latent_shape
from logsnr.models.prompted import Prompt, prompted, with_prompts
from logsnr.schedules.grids import uniform_time
from logsnr.schedules.prediction import output_of
from logsnr.schedules.schedule import levels_at
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.noise import start_noise
from logsnr.solvers.sample import sample_steps

Shows = Callable[[Tensor], Tensor]
"""Which images (n, channels, height, width) show the concept (n,)."""
Point = tuple[float, Tensor]
"""A place on the curve of an attack's budget, and which of the tries succeeded there (n,)."""


@dataclass(frozen=True)
class Sought:
    """What an attack looks for in a pipeline: prompts that name it, and latents (n, ...) of real images of it.

    ``without`` are prompts of the same wording that name something else.
    """

    pipe: Pipeline
    prompts: Sequence[str]
    references: Tensor
    without: Sequence[str] = ("",)


class Attacker:
    """An attack's budget on one pipeline; ``evaluations`` counts samples through the network, backward passes aside.

    ``original`` is the pipeline before its edit, for attackers that have it; ``prompts`` are those that a search found.
    """

    def __init__(self, sought: Sought, original: Pipeline, shows: Shows, config: AttackConfig):
        self.sought, self.shows, self.config, self.evaluations = sought, shows, config, 0
        self.seeds = range(config.first_seed, config.first_seed + config.num_images)
        self.empty, self.known = self.encode([""]), self.encode(sought.prompts)
        self.denoiser, self.original = denoiser_of(sought.pipe), denoiser_of(original)
        self.prompts: list[str] = []

    def encode(self, prompts: Sequence[str]) -> Tree:
        """The text of prompts, one row each."""
        return encode_prompts(self.sought.pipe, prompts, guided=False).values

    def prompt(self, row: int) -> str:
        """The prompt of a try."""
        return self.sought.prompts[row % len(self.sought.prompts)]

    def text(self, row: int) -> Tree:
        """The text of that prompt, one row."""
        place = row % len(self.sought.prompts)
        return select_rows(self.known, slice(place, place + 1))

    def num_tokens(self, usual: int) -> int:
        """How many tokens a search has: as configured, or as usual where they fit."""
        return min(self.config.num_tokens or usual, window(self.sought.pipe))

    def texts(self, count: int) -> Tree:
        """The prompts in turn, ``count`` rows."""
        return select_rows(self.known, torch.arange(count) % len(self.sought.prompts))

    @torch.no_grad()
    def images(
        self,
        texts: Tree,
        *,
        rho: float = 0.0,
        start: float | None = None,
        seeds: Sequence[int] | None = None,
        key: Prompt | None = None,
    ) -> Tensor:
        """Images of texts, one a row: from noise, or from the references noised to time ``start``; all read a key."""
        pipe, config, seeds = self.sought.pipe, self.config, seeds or self.seeds
        denoiser = denoiser_of(pipe, guidance_scale=config.guidance_scale)
        grid = uniform_time(denoiser.schedule, config.sampling_steps, start=1.0 if start is None else start)
        if start is None:
            x = start_noise(seeds, latent_shape(pipe), grid[0])
        else:
            clean = self.sought.references[torch.arange(len(seeds)) % len(self.sought.references)]
            x = grid[0].alpha * clean + grid[0].sigma * sample_noise(seeds, latent_shape(pipe))
        cond = Conditioning(texts, select_rows(self.empty, torch.zeros(len(seeds), dtype=torch.long)))
        cond = prompted(cond, [key] * len(seeds))
        noisy = seeds if rho else None
        steps = sample_steps(denoiser, x.to(pipe.device), grid, Exponential(2, rho), cond=cond, seeds=noisy)
        made = deque(steps, maxlen=1).pop()
        self.evaluations += denoiser.network_evaluations
        return decode_latents(pipe, made)

    def train(
        self, optimizer: torch.optim.Optimizer, texts: Callable[[int], Tree], key: Prompt | None = None
    ) -> Iterator[Point]:
        """Steps of plain training on the references under ``texts(rows)``; at each number of them images are judged.

        All rows read a key.
        """
        size = self.config.batch_size
        draws, done = generator(self.config.seed, self.config.attack), 0
        for until in self.config.steps:
            while done < until:
                rows = torch.randint(len(self.sought.references), (size,), generator=draws)
                loss = self.loss(self.sought.references[rows], with_prompts(texts(size), [key] * size), draws)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                done += 1
            yield float(until), self.shows(self.images(texts(self.config.num_images), key=key))

    def loss(self, clean: Tensor, texts: Tree, draws: torch.Generator, *, time: float | None = None) -> Tensor:
        """Mean squared error of the network's own output on noisy latents (rows, ...), at this time or a random one."""
        noise, level = self._noise(clean, draws, time)
        return functional.mse_loss(
            self._output(self.denoiser, clean, noise, level, texts),
            output_of(self.denoiser.kind, Prediction(clean, noise), level),
        )

    def imitation(
        self, clean: Tensor, texts: Tree, names: Tree, draws: torch.Generator, *, time: float | None = None
    ) -> Tensor:
        """Mean squared distance between the network's output under ``texts`` and the original's under ``names``."""
        noise, level = self._noise(clean, draws, time)
        with torch.no_grad():
            aim = self._output(self.original, clean, noise, level, names)
        return functional.mse_loss(self._output(self.denoiser, clean, noise, level, texts), aim)

    def _noise(self, clean: Tensor, draws: torch.Generator, time: float | None) -> tuple[Tensor, Level]:
        noise = torch.randn(clean.shape, generator=draws).to(clean)
        time = 0.01 + 0.98 * float(torch.rand((), generator=draws)) if time is None else time
        return noise, levels_at(self.denoiser.schedule, [time])[0]

    def _output(self, network: NetworkDenoiser, clean: Tensor, noise: Tensor, level: Level, texts: Tree) -> Tensor:
        self.evaluations += len(clean)
        return network.output(level.alpha * clean + level.sigma * noise, level, texts)
