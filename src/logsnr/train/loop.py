"""One training loop for every method: a generator, so that progress and early stop are the caller's for-loop."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import reduce
from torch import Tensor, nn

from logsnr.core.errors import DivergedError, InputError
from logsnr.core.random import generator
from logsnr.data.sampler import batch_indices
from logsnr.train.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from logsnr.train.config import FitConfig
from logsnr.train.method import AfterStep, Batch, Dataset, Group, Method
from logsnr.train.preview import image_grid, save_picture
from logsnr.train.trackers import StepLog, last_seconds


@dataclass(frozen=True)
class Progress:
    """Where a run is after ``step`` finished steps; ``logs`` is filled every ``log_every`` steps and at the end."""

    step: int
    steps: int
    batch_size: int
    seconds: float
    images_per_second: float
    logs: dict[str, float] = field(default_factory=dict)


class _Players(nn.Module):
    """All trained parameters behind one forward, so that accelerate wraps any method the way it wraps a network."""

    def __init__(self, method: Method, groups: list[Group]):
        super().__init__()
        self.parameters_ = nn.ParameterList([p for group in groups for p in group.parameters])
        self._loss = method.loss

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self._loss(batch, step)
        return loss.value, loss.logs


def learning_rate_factor(config: FitConfig, step: int) -> float:
    """The share of the base learning rate that a step uses: linear warm-up, then constant or a half cosine to zero."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.decay == "none":
        return warm
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))


class _Run:
    """One run of one method: devices, optimiser, state and files."""

    def __init__(self, method: Method, dataset: Dataset | None, config: FitConfig):
        self.method, self.dataset, self.config, self.step = method, dataset, config, 0
        self.accelerator = Accelerator(
            cpu=config.cpu,
            mixed_precision=config.precision,
            gradient_accumulation_steps=config.accumulation,
            log_with=config.track,
            project_dir=config.out,
        )
        if config.batch_size % (config.accumulation * self.accelerator.num_processes):
            raise InputError(
                f"batch_size {config.batch_size} cannot be shared by {self.accelerator.num_processes} processes "
                f"with {config.accumulation} micro-batches each: choose a multiple"
            )
        for module in method.modules().values():
            module.to(self.accelerator.device)
        groups = method.parameter_groups()
        self.rates = [group.learning_rate for group in groups]
        optimizer = method.optimizer([_torch_group(group) for group in groups])
        self.players, self.optimizer = self.accelerator.prepare(_Players(method, groups), optimizer)
        found = list_checkpoints(self.checkpoints) if self.checkpoints else []
        if found and not config.resume:
            raise InputError(f"{self.checkpoints} holds an earlier run: resume it, or choose another out folder")
        if found:
            self._resume(load_checkpoint(found[-1]))
        self.resumed_at = self.step

    @property
    def checkpoints(self) -> Path | None:
        return self.config.out / "checkpoints" if self.config.out else None

    def _resume(self, checkpoint: Checkpoint) -> None:
        self.method.load_state(checkpoint.tensors, checkpoint.values)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)
        self.step = checkpoint.step

    def save(self) -> None:
        """Write a checkpoint of the current step unless it is there."""
        folder = self.checkpoints
        if folder and self.accelerator.is_main_process and not (folder / f"step-{self.step:08d}").exists():
            tensors, values = self.method.state()
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
            checkpoint = Checkpoint(self.step, tensors, values, self.optimizer.state_dict(), scaler)
            save_checkpoint(folder, checkpoint, keep=self.config.keep)

    def micro_batch(self, part: int) -> Batch:
        """The rows of the current step that this process handles in micro-batch ``part``."""
        num_rows = self.config.batch_size
        share = num_rows // (self.config.accumulation * self.accelerator.num_processes)
        first = (part * self.accelerator.num_processes + self.accelerator.process_index) * share
        rows, data = slice(first, first + share), {}
        if self.dataset is not None:
            indices = batch_indices(self.config.seed, self.step, num_rows, len(self.dataset))[rows]
            data = {k: v.to(self.accelerator.device) for k, v in self.dataset.take(indices).items()}
        return Batch(data, rows, num_rows, (self.config.seed, self.step), self.accelerator.device)

    def train_step(self) -> list[dict[str, Tensor]]:
        """One optimiser step; loss and logs of each of its micro-batches, with the gradient's norm if it is clipped."""
        seed = generator(self.config.seed, "step", self.step, self.accelerator.process_index).initial_seed()
        torch.manual_seed(seed)
        factor = learning_rate_factor(self.config, self.step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        logs, norm = [], {}
        for part in range(self.config.accumulation):
            with self.accelerator.accumulate(self.players):
                value, log = self.players(self.micro_batch(part), self.step)
                self.accelerator.backward(value)
                if self.accelerator.sync_gradients and self.config.clip:
                    found = self.accelerator.clip_grad_norm_(self.players.parameters(), self.config.clip)
                    norm = {"gradient_norm": torch.as_tensor(found)}
                self.optimizer.step()
                self.optimizer.zero_grad()
            logs.append({"loss": value.detach(), **log})
        self.step += 1
        if isinstance(self.method, AfterStep):
            self.method.after_step(self.step)
        return [{**row, **norm} for row in logs]

    def summary(self, logs: list[dict[str, Tensor]]) -> dict[str, float]:
        """Means over micro-batches and processes.

        Raises:
            DivergedError: the loss is no finite number.
        """
        means = torch.stack([torch.stack([value.float() for value in row.values()]) for row in logs]).mean(0)
        means = self.accelerator.reduce(means, "mean").cpu()
        if not math.isfinite(float(means[0])):
            raise DivergedError(
                f"the loss is not finite at step {self.step}: lower the learning rate or resume earlier"
            )
        return dict(zip(logs[0], means.tolist(), strict=True))


def leave_processes() -> None:
    """Leave the group of processes that ``fit`` joined: an exit inside it can abort."""
    PartialState().destroy_process_group()


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process of the run, so that all of them stop at the same step."""
    state = PartialState()
    if state.num_processes == 1:
        return flag
    return bool(reduce(torch.tensor([float(flag)], device=state.device), "sum") > 0)


def _torch_group(group: Group) -> dict[str, Any]:
    return {
        "params": list(group.parameters),
        "lr": group.learning_rate,
        "weight_decay": group.weight_decay,
        "maximize": group.maximize,
    }


def fit(method: Method, dataset: Dataset | None, config: FitConfig) -> Generator[Progress, None, None]:
    """Train ``method`` and yield after every step; closing the generator saves a checkpoint first.

    Batches are a pure function of (seed, step), so a run that was killed and resumed equals one that was not. With
    ``config.out`` set, the folder receives ``log.jsonl``, ``checkpoints/step-N`` and ``previews/step-N.png``. Without a
    data set (None) the method makes its own data from the draws of the batch.

    Raises:
        InputError: the batch size does not divide over processes and micro-batches, or ``out`` holds an earlier run to
            not be resumed.
        DivergedError: the loss stopped being finite.
    """
    run = _Run(method, dataset, config)
    log_path = config.out / "log.jsonl" if config.out else None
    writes = log_path is not None and run.accelerator.is_main_process
    before = last_seconds(log_path) if log_path and run.step else 0.0
    log = StepLog(log_path, resume_at=run.step) if log_path and writes else None
    if config.track:
        run.accelerator.init_trackers("logsnr")
    start = time.perf_counter()
    try:
        while run.step < config.steps:
            logs = run.train_step()
            elapsed = time.perf_counter() - start
            rate = (run.step - run.resumed_at) * config.batch_size / elapsed
            due = run.step % config.log_every == 0 or run.step == config.steps
            means = run.summary(logs) if due else {}
            if log and means:
                log.write({"step": run.step, **means, "images_per_second": rate, "seconds": before + elapsed})
            if config.track and means:
                run.accelerator.log(means, step=run.step)
            if run.step % config.checkpoint_every == 0 or run.step == config.steps:
                run.save()
            if config.out and config.preview_every and run.step % config.preview_every == 0:
                _save_preview(run)
            yield Progress(run.step, config.steps, config.batch_size, before + elapsed, rate, means)
    except GeneratorExit:
        run.save()
        raise
    finally:
        if config.track:
            run.accelerator.end_training()


def _save_preview(run: _Run) -> None:
    images = run.method.preview() if run.accelerator.is_main_process else None
    if images is not None and run.config.out:
        save_picture(image_grid(images), run.config.out / "previews" / f"step-{run.step:08d}.png")
