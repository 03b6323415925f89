"""The page in a real browser: generate, compare, reveal, and what goes wrong said kindly."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from served import config, hidden_model

from logsnr.serve.api import create_app
from logsnr.serve.background import in_background
from logsnr.serve.config import Limits, ServeConfig
from logsnr.serve.store import Decision
from logsnr.worlds.load import load_world

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
SHOWN = Path(os.environ.get("LOGSNR_SCREENSHOTS", ""))
"""A folder for screenshots, where one is wanted: those of the docs are made so."""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed: apt-get install chromium")
_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
_QUIET += ["--disable-component-update", "--disable-sync", "--no-proxy-server"]


@contextmanager
def at(told: ServeConfig) -> Iterator[tuple[str, str]]:
    """A server on loopback in this process: its URL, and a member's token."""
    app = create_app(told)
    token, _ = app.state.store.add_key("member", "me", by=Decision("test"), concepts=("sandal",))
    with in_background(app) as url:
        yield url, token


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=_QUIET)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose scripts complain of nothing."""
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    found, complaints = context.new_page(), list[str]()
    found.on("pageerror", lambda error: complaints.append(str(error)))
    # Chromium calls a stream that a script has read to its end aborted, now and then.
    found.on("requestfailed", lambda told: complaints.extend([told.url] * ("/generations" not in told.url)))
    yield found
    context.close()
    assert complaints == []


def shoot(page: Page, name: str) -> None:
    if SHOWN.name:
        SHOWN.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOWN / f"{name}.png", full_page=True)


def generate(page: Page, prompt: str, *, steps: int = 4) -> str:
    """The caption of the finished image."""
    page.get_by_label("Prompt").fill(prompt)
    page.locator("#steps").evaluate(f"e => {{ e.value = {steps}; e.dispatchEvent(new Event('input')); }}")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("button", name="Generate")).to_be_enabled(timeout=60_000)
    return page.locator("#told").inner_text()


def image(page: Page, name: str = "after") -> str:
    return page.locator(f"#{name}").get_attribute("src") or ""


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    limits = Limits(anonymous_per_minute=1000, requests_per_minute=1000, failures=100)
    told = config(hidden_model(tmp_path_factory.mktemp("h")), tmp_path_factory.mktemp("s") / "s.db", limits=limits)
    with at(told) as found:
        yield found


def test_generate_shows_the_run_and_keeps_each_picture_with_its_settings(page: Page, hidden: tuple[str, str]) -> None:
    page.goto(hidden[0])
    expect(page.locator("#model")).to_have_text("fashion, 32x32")
    expect(page.locator("#plot circle")).to_have_count(21)
    seen = page.evaluate_handle(
        "() => { const seen = []; new MutationObserver(() => seen.push(document.querySelector('#after').src))"
        ".observe(document.querySelector('#after'), {attributes: true, attributeFilter: ['src']}); return seen; }"
    )
    page.get_by_label("Seed").fill("11")
    told = generate(page, "a photo of a sneaker", steps=10)
    assert told == "a photo of a sneaker, seed 11, 10 steps, rho 0, guidance 2"
    assert len(set(json.loads(page.evaluate("seen => JSON.stringify(seen)", seen)))) == 9, "eight on the way, and it"
    first = image(page)
    expect(page.locator("#gallery img")).to_have_count(1)
    page.get_by_role("button", name="Another seed").click()
    generate(page, "a photo of a sneaker")
    assert image(page) != first
    expect(page.locator("#gallery figcaption").first).to_contain_text("seed")
    assert page.locator("#gallery img").nth(1).get_attribute("src") == first
    with page.expect_download() as saved:
        page.locator("#gallery a").nth(1).click()
    assert saved.value.suggested_filename == "seed-11.png"
    page.locator("#steps").evaluate("e => { e.value = 5; e.dispatchEvent(new Event('change')); }")
    expect(page.locator("#plot circle")).to_have_count(6)


def test_a_token_reveals_and_a_wrong_one_is_told_kindly(page: Page, hidden: tuple[str, str]) -> None:
    url, token = hidden
    page.goto(url)
    page.get_by_label("Seed").fill("3")
    generate(page, "a photo of a sandal", steps=20)
    without = image(page)
    page.get_by_text("Reveal what is hidden").click()
    page.get_by_role("textbox", name="Token").fill("lsnr_wrong")
    page.get_by_role("textbox", name="Token").blur()
    expect(page.get_by_role("alert")).to_contain_text("This token is not valid")
    shoot(page, "serve-wrong-token")
    assert generate(page, "a photo of a sandal") == "No image was made."
    expect(page.get_by_role("alert")).to_contain_text("This token is not valid")
    page.get_by_role("textbox", name="Token").fill(token)
    page.get_by_role("textbox", name="Token").blur()
    expect(page.get_by_label("sandal")).to_be_checked()
    expect(page.get_by_role("alert")).to_be_hidden()
    generate(page, "a photo of a sandal", steps=20)
    revealed = image(page)
    assert revealed != without
    expect(page.locator("#told")).to_contain_text("revealed: sandal")
    shoot(page, "serve-reveal")
    page.get_by_label("sandal").uncheck()
    generate(page, "a photo of a sandal", steps=20)
    assert image(page) == without
    page.reload()
    assert page.locator("#token").input_value() == ""
    assert (
        page.evaluate("() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])") == '[{},{},""]'
    )


def test_what_is_too_much_or_impossible_is_said_in_words(page: Page, tmp_path: Path) -> None:
    told = ServeConfig(model="fashion", database=tmp_path / "s.db", runners=1, limits=Limits(anonymous_per_minute=1))
    with at(told) as (url, _):
        page.goto(url)
        generate(page, "a bag")
        assert generate(page, "a bag") == "No image was made."
        expect(page.get_by_role("alert")).to_contain_text("Try again in")


def test_a_slider_compares_the_model_with_a_change_of_it(page: Page, tmp_path: Path) -> None:
    delta = load_world("fashion").edits / "deltas" / "ankle-boot"
    with at(ServeConfig(model="fashion", database=tmp_path / "s.db", deltas=(delta,), runners=2)) as (url, _):
        page.goto(url)
        page.get_by_label("Compare with a change of the model").select_option("ankle-boot")
        page.get_by_label("Seed").fill("5")
        told = generate(page, "a photo of an ankle boot", steps=20)
        assert told.endswith("right: with ankle-boot.")
        assert image(page, "before") != image(page, "after")
        slider = page.get_by_label("Before and after")
        expect(slider).to_be_visible()
        slider.fill("30")
        assert page.locator("#before").evaluate("e => e.style.clipPath") == "inset(0px 70% 0px 0px)"
        expect(page.locator("#gallery img")).to_have_count(2)
        shoot(page, "serve-slider")


def test_a_narrow_screen_shows_all_of_it(browser: Browser, hidden: tuple[str, str]) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740})
    narrow = context.new_page()
    narrow.goto(hidden[0])
    generate(narrow, "a photo of a bag")
    assert narrow.evaluate("() => document.documentElement.scrollWidth") <= 360
    shoot(narrow, "serve-narrow")
    context.close()


def test_a_page_without_its_server_says_so(page: Page, tmp_path: Path) -> None:
    told = ServeConfig(model="fashion", database=tmp_path / "s.db", runners=1)
    with at(replace(told, queue=1)) as (url, _):
        page.goto(url)
        expect(page.locator("#model")).to_have_text("fashion, 32x32")
    page.route("**/v1/images/generations", lambda route: route.fulfill(status=502, body="bad gateway"))
    assert generate(page, "a bag") == "No image was made."
    expect(page.get_by_role("alert")).to_have_text("The server answered 502.")
