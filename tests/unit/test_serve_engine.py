"""The engine: images that do not depend on their company, a bounded queue, previews, and work that is called off."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import wait
from functools import lru_cache

import pytest
import torch

import logsnr
from logsnr.models.pipeline import Pipeline
from logsnr.models.prompted import Prompt
from logsnr.serve.engine import Engine, Job
from logsnr.serve.errors import RefusedError
from logsnr.solvers.config import SampleConfig


@lru_cache
def fashion() -> Pipeline:
    return logsnr.load("fashion")


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return fashion()


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(runners=2, queue=64, merge=1, max_seconds=60)
    yield engine
    engine.close()


def job(seed: int = 0, *, steps: int = 2, n: int = 1, key: Prompt | None = None, **options: object) -> Job:
    prompts = ("a photo of a boot", "a bag", "a grey shirt")
    return Job(fashion(), prompts[seed % 3], range(seed, seed + n), SampleConfig(steps=steps), key, **options)


def prompt(pipe: Pipeline, seed: int) -> Prompt:
    draws = torch.Generator().manual_seed(seed)
    return Prompt(*(torch.randn(4, 128, generator=draws) for _ in range(2)))


def images(engine: Engine, jobs: list[Job]) -> list[torch.Tensor]:
    for each in jobs:
        engine.submit(each)
    return [each.done.result(60).images for each in jobs]


def mixed(pipe: Pipeline) -> list[Job]:
    return [job(k, steps=2 + k % 3, n=1 + k % 2, key=prompt(pipe, k) if k % 2 else None) for k in range(16)]


def test_images_are_the_same_bits_alone_and_in_company(engine: Engine, pipe: Pipeline) -> None:
    together = images(engine, mixed(pipe))
    alone = [images(engine, [each])[0] for each in mixed(pipe)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    plain = logsnr.sample(pipe, "a bag", seeds=[4], config=SampleConfig(steps=3)).images
    assert torch.allclose(alone[4][:1], plain, atol=1e-5)


def test_merged_requests_get_their_own_images_within_a_tolerance(pipe: Pipeline) -> None:
    asked = [job(k, n=1 + k % 2, key=prompt(pipe, k) if k % 3 == 1 else None) for k in range(8)]
    single = Engine(runners=1, queue=64, merge=1, max_seconds=60)
    alone = images(single, asked)
    single.close()
    merging = Engine(runners=1, queue=64, merge=16, max_seconds=60)
    blocking = job(0, steps=8)
    merging.submit(blocking)
    again = [job(k, n=1 + k % 2, key=prompt(pipe, k) if k % 3 == 1 else None) for k in range(8)]
    merged = images(merging, again)
    merging.close()
    assert [len(each) for each in merged] == [1 + k % 2 for k in range(8)]
    assert max(float((a - b).abs().max()) for a, b in zip(alone, merged, strict=True)) < 1e-3
    distances = [float((alone[k][0] - alone[k + 2][0]).abs().mean()) for k in range(4)]
    assert min(distances) > 0.01, "which tells one request from another"


def test_company_is_only_what_fits(pipe: Pipeline) -> None:
    engine = Engine(runners=0, queue=64, merge=4, max_seconds=60)
    first = job(0)
    wrong = [job(1, steps=3), job(2, previews=1), job(3, n=4)]
    layers = [job(4, key=prompt(pipe, 1)), job(5, key=Prompt(*[torch.zeros(2, 128)] * 2, layers="all"))]
    right = [job(6), job(7)]
    for each in (first, *wrong, *layers, *right):
        engine.submit(each)
    assert engine._next() == [first, layers[0], *right]
    engine.close()


def test_equal_requests_with_keys_of_their_own_are_told_apart(pipe: Pipeline) -> None:
    engine = Engine(runners=0, queue=64, merge=2)
    first, streamed, last = (job(0, key=prompt(pipe, 1), previews=previews) for previews in (0, 1, 0))
    for each in (first, streamed, last):
        engine.submit(each)
    assert engine._next() == [first, last]
    assert engine._next() == [streamed]
    engine.close()


def test_a_full_queue_refuses_and_a_late_request_is_told(pipe: Pipeline) -> None:
    engine = Engine(runners=0, queue=2, merge=1, max_seconds=0.01)
    first, second = job(0), job(1)
    engine.submit(first)
    engine.submit(second)
    with pytest.raises(RefusedError, match="wait already") as found:
        engine.submit(job(2))
    assert found.value.status == 503
    threading.Event().wait(0.05)
    engine._open = False
    assert engine._next() == []
    for each in (first, second):
        with pytest.raises(RefusedError, match="no turn"):
            each.done.result(0)
    with pytest.raises(RefusedError, match="about to stop"):
        engine.submit(job(3))
    assert not engine.ready


def test_called_off_work_ends_before_its_last_step(engine: Engine) -> None:
    seen: list[int] = []
    endless = job(0, steps=100, previews=20)

    def preview(number: int, _: torch.Tensor) -> None:
        seen.append(number)
        endless.cancelled.set()

    endless.preview = preview
    engine.submit(endless)
    wait([endless.done], 60)
    assert endless.done.cancelled()
    assert len(seen) == 1
    waiting = job(1)
    waiting.cancelled.set()
    engine.submit(waiting)
    wait([waiting.done], 60)
    assert waiting.done.cancelled()
    assert len(images(engine, [job(2)])[0]) == 1, "and the threads go on"


def test_previews_are_spread_over_the_run_and_change_nothing(engine: Engine) -> None:
    shown: list[tuple[int, torch.Tensor]] = []
    asked = job(3, steps=6, previews=3, preview=lambda number, found: shown.append((number, found.clone())))
    (made,) = images(engine, [asked])
    assert [number for number, _ in shown] == [0, 1, 2]
    distances = [float((found - made).abs().mean()) for _, found in shown]
    assert distances == sorted(distances, reverse=True)
    assert torch.equal(made, images(engine, [job(3, steps=6)])[0])
    (one,) = images(engine, [job(3, steps=1, previews=3, preview=lambda *_: pytest.fail("nothing comes before"))])
    assert one.shape == (1, 1, 32, 32)


def test_a_called_off_request_makes_room_for_another(pipe: Pipeline) -> None:
    engine = Engine(runners=0, queue=1)
    first, second = job(0), job(1)
    engine.submit(first)
    first.cancelled.set()
    engine.submit(second)
    assert engine._next() == [second]
    engine.close()


def test_a_request_that_fails_is_told_and_the_threads_go_on(engine: Engine) -> None:
    broken = job(0, key=Prompt(torch.zeros(1, 3), torch.zeros(1, 3)))
    engine.submit(broken)
    assert broken.done.exception(60) is not None
    assert engine.ready
    assert len(images(engine, [job(1)])[0]) == 1


def test_closing_finishes_what_is_there(pipe: Pipeline) -> None:
    engine = Engine(runners=1, queue=8, merge=1, max_seconds=60)
    jobs = [job(k) for k in range(4)]
    for each in jobs:
        engine.submit(each)
    engine.close()
    assert all(len(each.done.result(0).images) == 1 for each in jobs)
