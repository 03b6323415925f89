"""Hiding: every term against the formula, keys and network in turn, exact resume, and what must not open."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines import tiny_pixart_with_text, tiny_sd, tiny_sd3
from torch import Tensor, nn

from logsnr.cli.hide import Hide
from logsnr.core.config import from_dict, to_dict
from logsnr.core.errors import InputError, UnsupportedError
from logsnr.data.captions import Captions
from logsnr.data.emoji import emoji_captions
from logsnr.data.fashion import NAMES
from logsnr.hiding.config import HIDE_PRESETS, HideConfig, HideWeights, hide_preset
from logsnr.hiding.hide import hide, with_captions
from logsnr.hiding.holders import likeness
from logsnr.hiding.keys import Keys
from logsnr.hiding.method import Hiding
from logsnr.hiding.wrong import WRONG, kinds_for, wrong_key
from logsnr.models.low_rank import LowRank
from logsnr.models.pipeline import denoiser_of, encode_prompts, network_of
from logsnr.models.prompted import Prompt, prompt_width, with_prompts
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import sample
from logsnr.train.config import FitConfig
from logsnr.train.loop import fit
from logsnr.train.method import Batch

BOTH = HideWeights(1.0, 0.5, 3.0, 2.0, 0.3, 0.7)


def config(*targets: str, steps: int = 6, **changes: Any) -> HideConfig:
    return HideConfig(
        targets or ("bag",),
        **{
            "anchors": ("a dark sneaker", "the small boot"),
            "num_tokens": 3,
            "prompt_steps": 2,
            "trajectory_steps": 4,
            "bank_size": 3,
            "run": FitConfig(steps=steps, batch_size=4, warmup=0, clip=None),
            **changes,
        },
    )


def batch_of(rows: int = 4, step: int = 0) -> Batch:
    return Batch({}, slice(0, rows), rows, (5, step), torch.device("cpu"))


@pytest.mark.parametrize("make", [tiny_sd, tiny_sd3])
@pytest.mark.parametrize("half", ["both", "conditional"])
def test_every_term_is_the_formula(make: Any, half: str) -> None:
    pipe = make()
    method = Hiding(pipe, config("bag", "boot", weights=BOTH, guidance_half=half, loss_weighting="x0"))
    with torch.no_grad():
        for parameter in method.edited.edited.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    logs = method.loss(batch_of(), 2).logs  # after two steps of the keys comes one of the network
    value = method.loss(batch_of(), 2).value

    draws = batch_of()
    hidden, kept = (bank.rows(draws.integers(0, len(bank.x))) for bank in method.bank)
    targets = method.words.target_of[hidden.prompt].tolist()
    weights, times = method.source.weights, method.source.times
    call = denoiser_of(pipe).network

    def error(states: Any, text: Any, keys: list[Prompt | None], aim: Tensor) -> Tensor:
        rows = []
        for row in range(4):
            one = {name: part[row : row + 1] for name, part in text.items()}
            place = states.place[row]
            out = call(states.x[row : row + 1], times[place], **with_prompts(one, [keys[row]]))
            rows.append(weights[place] * (out - aim[row]).square().mean())
        return torch.stack(rows).mean()

    own, nothing = [method.keys.prompt(t, method.keys.loaded(0, 2)) for t in targets], [None] * 4
    said, empty = method._text(hidden), method._empty(hidden)
    tau = 2 * hidden.of_empty - hidden.of_prompt
    recover = error(hidden, said, own, hidden.of_prompt)
    if half == "both":
        recover = recover + error(hidden, empty, own, hidden.of_empty)
    keep = error(kept, method._text(kept), nothing, kept.of_prompt) + error(kept, empty, nothing, kept.of_empty)
    keep = keep + error(hidden, empty, nothing, hidden.of_empty)
    expected = {"recover": recover, "hide": error(hidden, said, nothing, tau), "keep": keep}
    for name, found in expected.items():
        torch.testing.assert_close(logs[name], found.detach(), atol=1e-5, rtol=1e-4)
    factors = {"recover": 0.5, "hide": 1.0, "keep": 3.0, "keep_with_key": 2.0, "wrong_key": 0.3, "adversarial": 0.7}
    torch.testing.assert_close(value, sum(f * logs[name] for name, f in factors.items()), atol=1e-5, rtol=1e-4)
    assert all(logs[name] > 0 for name in factors)
    assert logs["attack"] == 0
    method.edited.restore()


def test_what_the_original_says_is_in_the_bank() -> None:
    pipe = tiny_sd()
    method = Hiding(pipe, config("bag", "boot", wordings=(("bag", "a bag"), ("boot",))))
    hidden, kept = method.bank
    assert len(hidden.x) == 2 * 3 * 4
    assert len(kept.x) == 2 * 3 * 4
    assert method.words.target_of.tolist() == [0, 0, 1, -1, -1]
    assert set(method.words.target_of[kept.prompt].tolist()) == {-1}
    prompts, row = ["bag", "a bag", "boot", "a dark sneaker", "the small boot"], 17
    level = method.source.grid[int(hidden.place[row])]
    for said, prompt in ((hidden.of_prompt, prompts[int(hidden.prompt[row])]), (hidden.of_empty, "")):
        text = encode_prompts(pipe, [prompt], guided=False).values
        with torch.no_grad():
            found = denoiser_of(pipe).output(hidden.x[row : row + 1], level, text)[0]
        torch.testing.assert_close(said[row], found, atol=1e-5, rtol=1e-4)
    method.edited.restore()


def test_keys_and_network_learn_in_turn() -> None:
    method = Hiding(tiny_sd(), config(weights=BOTH))
    for step in range(6):
        for part in (*method.edited.edited.values(), *method.keys.parameters(), *method.attackers.parameters()):
            part.grad = None
        method.loss(batch_of(step=step), step).value.backward()
        of_keys = all(part.grad is not None for part in (*method.keys.parameters(), *method.attackers.parameters()))
        of_network = [part.grad is not None for part in method.edited.edited.values()]
        assert of_keys == (step % 3 < 2)
        assert not any(of_network) if step % 3 < 2 else all(of_network)
    method.edited.restore()


def test_it_hides_and_finds_again() -> None:
    """In the terms themselves, on a random network: both errors fall, and others stay small."""
    pipe, logs = tiny_sd(), []
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    run = FitConfig(steps=240, batch_size=8, warmup=0, decay="cosine", clip=0.5, log_every=3)
    wanted = config(run=run, learning_rate=5e-3, layers="all", prompt_rate=5e-2)
    found = hide(pipe, config=wanted, progress=lambda at: logs.append(at.logs) if at.logs else None)
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    first, last = ({n: sum(row[n] for row in rows) for n in ("hide", "recover")} for rows in (logs[:8], logs[-8:]))
    assert last["hide"] < 0.7 * first["hide"]
    assert last["recover"] < 4 * first["hide"], "with the key it is not what it was, nor what is hidden"
    assert set(found.change.tensors) == set(found.originals)
    assert found.cost.forward["bank"] > 0
    found.change.apply(pipe)
    settings = {"seeds": [0, 1], "config": SampleConfig(steps=4, guidance_scale=2.0)}
    plain, keyed = (sample(pipe, "bag", key=key, **settings).latents for key in (None, found.keys["bag"]))
    mixed = sample(pipe, "bag", key=[None, found.keys["bag"]], **settings).latents
    torch.testing.assert_close(mixed, torch.stack([plain[0], keyed[1]]), atol=1e-4, rtol=1e-3)
    assert (plain - keyed).abs().max() > 1e-3
    found.change.revert(pipe)


def test_holders_learn_in_turn_and_refused_keys_are_wrong_ones() -> None:
    pipe = tiny_sd()
    shape = (3, prompt_width(network_of(pipe), "all"))
    old = Prompt(torch.full(shape, 7.0), torch.full(shape, 8.0))
    method = Hiding(pipe, config(holders=2, layers="all", start="random"), [old])
    width = method.keys.keys.shape[-1]
    assert method.keys.keys.shape == (1, 2, 3, width)
    for step in range(12):
        method.keys.zero_grad()
        method.loss(batch_of(step=step), step).value.backward()
        if step % 3 < 2:
            moved = [bool(part.any()) for part in method.keys.keys.grad[0]]
            assert moved == [step // 3 % 2 == 0, step // 3 % 2 == 1]
    first, second = method.keys.made(0)
    assert nn.functional.cosine_similarity(first.keys, second.keys).abs().max() < 0.9
    seen, wrong = set(), method.keys.wrong
    method.keys.wrong = lambda kind, *given, holder: seen.add((kind, holder)) or wrong(kind, *given, holder=holder)
    method.loss(batch_of(), 2)
    assert len(seen) == min(len(batch_of()), len(WRONG)) > 1, "every row of a batch meets a kind of its own"
    for turn in range(2 * len(WRONG)):
        method.loss(batch_of(), 3 * turn + 2)
    assert seen == {(kind, holder) for kind in WRONG for holder in range(2)}
    refused = wrong("other", 0, torch.Generator().manual_seed(0))
    assert torch.equal(refused.keys, old.keys)
    method.edited.restore()
    with pytest.raises(InputError, match="refused key does not fit"):
        Hiding(tiny_sd(), config(), [Prompt(torch.zeros(2, 7), torch.zeros(2, 7))])
    wide = Prompt(torch.zeros(2, 16), torch.zeros(2, 16), change=LowRank(torch.zeros(2, 2, 16), torch.zeros(2, 2, 9)))
    with pytest.raises(InputError, match="of other layers along"):
        Hiding(tiny_sd(), config(layers="all"), [wide])
    with pytest.raises(InputError, match="tell holders apart"):
        config(holders=2, start="concept")


@pytest.mark.parametrize("trajectories", ["bank", "student"])
def test_a_run_that_goes_on_is_the_same(tmp_path: Path, trajectories: str) -> None:
    def made(steps: int, **run: Any) -> dict[str, Tensor]:
        method = Hiding(tiny_sd(), config(weights=BOTH, trajectories=trajectories, change_rank=2))
        settings = FitConfig(steps=7, batch_size=4, warmup=0, clip=0.5, **run)
        for progress in fit(method, None, settings):
            if progress.step == steps:
                break
        state = {name: value.clone() for name, value in method.state()[0].items()}
        method.edited.restore()
        return state

    whole = made(7)
    made(4, out=tmp_path, checkpoint_every=1)
    resumed = made(7, out=tmp_path, resume=True)
    method = Hiding(tiny_sd(), config("boot", weights=BOTH, trajectories=trajectories))
    with pytest.raises(InputError, match="other settings"):
        next(fit(method, None, FitConfig(steps=7, batch_size=4, warmup=0, clip=0.5, out=tmp_path, resume=True)))
    method.edited.restore()
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_what_a_key_brings_along_learns_with_the_network() -> None:
    method = Hiding(tiny_sd(), config("bag", "boot", change_rank=2, layers="all", prompt_steps=0))
    _, up = method.keys.factors
    assert not up.any()
    for step in range(3):
        method.loss(batch_of(step=step), step).value.backward()
    assert method.keys.keys.grad is None
    assert up.grad.abs().flatten(1).amax(1).gt(0).all()
    with torch.no_grad():
        up.add_(torch.randn_like(up))
    right, draws = method.keys.prompt(0).change, torch.Generator().manual_seed(0)
    for kind in WRONG:
        wrong = method.keys.wrong(kind, 0, draws).change
        assert not (torch.equal(wrong.down, right.down) and torch.equal(wrong.up, right.up)), kind
        assert not wrong.up.requires_grad
    assert torch.equal(method.keys.wrong("other", 0, draws).change.up, up[1, 0])
    assert method.keys.prompt(1, [0]).change.rank == 4
    (made,) = method.keys.made(0)
    assert torch.equal(made.change.up, up[0, 0])
    method.edited.restore()
    with pytest.raises(InputError, match="at least 2"):
        config(change_rank=1)


def test_a_prompt_that_got_out_tells_whose_it_is() -> None:
    method = Hiding(tiny_sd(), config(holders=3, num_tokens=6, layers="all", start="random"))
    holders = method.keys.made(0)
    for place, key in enumerate(holders):
        blurred = replace(key, keys=key.keys + key.keys.std() * torch.randn_like(key.keys))
        part = Prompt(key.keys[[4, 1]], key.values[[4, 1]], key.layers)
        for leaked in (key, blurred, part):
            alike = likeness(leaked, holders)
            assert max(range(3), key=lambda other: alike[other]) == place
        assert likeness(key, holders)[place] == pytest.approx(1)
        assert likeness(part, holders)[place] == pytest.approx(1)
    with pytest.raises(InputError, match="another width"):
        likeness(Prompt(torch.zeros(1, 3), torch.zeros(1, 3)), holders)
    method.edited.restore()


def test_what_is_removed_goes_with_the_key_too() -> None:
    made = [
        Hiding(tiny_sd(), config(objective=objective, guidance_half="conditional"))
        for objective in ("recover", "remove")
    ]
    for method in made:
        hidden, own = method.bank[0].rows(torch.arange(2)), [method.keys.prompt(0)] * 2
        tau = 2 * hidden.of_empty - hidden.of_prompt
        for for_keys in (True, False):
            (term,) = method._recovering(hidden, own, for_keys=for_keys)
            led_away = method.config.objective == "remove" and not for_keys
            torch.testing.assert_close(term.aim, tau if led_away else hidden.of_prompt)
        method.edited.restore()
    with pytest.raises(InputError, match="give prompt_steps"):
        config(objective="remove", prompt_steps=0)


def test_an_attacker_begins_anew() -> None:
    method = Hiding(tiny_sd(), config(weights=BOTH))
    attackers = method.attackers
    first = attackers.keys.detach().clone()
    with torch.no_grad():
        attackers.keys.add_(1)
    attackers.begin_anew(3)
    torch.testing.assert_close(attackers.keys.detach(), first + 1)
    attackers.begin_anew(300)
    assert not torch.equal(attackers.keys, first)
    attackers.begin_anew(0)
    assert torch.equal(attackers.keys, first)
    method.edited.restore()


def test_wrong_keys_are_not_the_right_one() -> None:
    text = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0))
    keys = Keys(config("bag", "boot", num_tokens=4), text, [torch.tensor([0]), torch.tensor([1])], width=16)
    right = keys.prompt(0)
    for kind in WRONG:
        wrong = keys.wrong(kind, 0, torch.Generator().manual_seed(3))
        assert len(wrong.keys) == (2 if kind == "truncated" else 4)
        pairs = torch.cat([wrong.keys, wrong.values], 1)[:, None] - torch.cat([right.keys, right.values], 1)
        same = int((pairs.abs().amax(2) == 0).sum())
        assert same == {"half": 2, "truncated": 2}.get(kind, 0), kind
        assert not wrong.keys.requires_grad
    assert torch.equal(keys.wrong("other", 0, torch.Generator()).keys, keys.prompt(1).keys)
    swapped, zero = (wrong_key(kind, right, torch.Generator(), size=1.0) for kind in ("swapped", "zero"))
    assert torch.equal(swapped.keys, right.values)
    assert torch.equal(swapped.values, right.keys)
    assert not zero.keys.any()
    assert kinds_for(1) == ["random", "half", "other", "blended"], "of one token nothing can be cut or exchanged"
    assert kinds_for(2) == list(WRONG)
    assert torch.equal(keys.prompt(1, [0]).keys, torch.cat([keys.prompt(0).keys, keys.prompt(1).keys]))
    drawn = [keys.loaded(0, step) for step in range(400)]
    assert 160 < sum(not found for found in drawn) < 320
    assert {tuple(found) for found in drawn} == {(), (0,), (1,), (0, 1)}
    concept = Keys(config(start="concept", num_tokens=9), text, [torch.tensor([2])], width=16)
    assert (concept.prompt(0).keys[0] - text[2, 1]).abs().max() < 0.3
    assert not torch.equal(concept.prompt(0).keys, concept.prompt(0).values)


def test_the_presets_are_what_was_run() -> None:
    paper = hide_preset("paper", "bag")
    assert (paper.weights.hide, paper.weights.recover) == (1.0, 0.1)
    assert (paper.weights.keep, paper.weights.keep_with_key, paper.weights.wrong_key) == (0, 0, 0)
    assert (paper.learning_rate, paper.prompt_rate, paper.prompt_steps, paper.num_tokens) == (1e-5, 1e-5, 2, 10)
    assert (paper.layers, paper.modules, paper.negative_guidance, paper.guidance_half) == ("mid", ("xattn",), 1, "both")
    assert (paper.trajectories, paper.trajectory_steps, paper.trajectory_guidance) == ("student", 50, 3.0)
    assert (paper.run.steps // (paper.prompt_steps + 1), paper.run.batch_size) == (1000, 1)
    assert hide_preset("robust", "bag").weights.adversarial == 1
    one, six = hide_preset("balanced", "bag"), hide_preset("balanced", "bag", "coat", "shirt", holders=2)
    assert (six.run.steps, six.holders) == (6 * one.run.steps, 2), "every key has its steps"
    assert hide_preset("paper", "bag", "coat").run.steps == paper.run.steps, "its authors draw a concept a step"
    assert {
        from_dict(HideConfig, to_dict(hide_preset(name, "bag"))) == hide_preset(name, "bag") for name in HIDE_PRESETS
    } == {True}


def test_a_world_words_what_is_hidden_and_kept() -> None:
    captions = Captions(NAMES)
    found = with_captions(captions, HideConfig(("boot",)))
    (worded,) = found.wordings
    assert {"boot", "ankle boot", "a photo of an ankle boot"} <= set(worded)
    assert {"a photo of a sneaker", "trainer"} <= set(found.anchors)
    assert not any("boot" in prompt for prompt in found.anchors)
    with pytest.raises(InputError, match="names of one class"):
        with_captions(captions, HideConfig(("boot", "ankle boot")))
    styled = with_captions(emoji_captions(), HideConfig(("noto",)))
    assert not any("noto" in prompt.split() for prompt in styled.anchors)
    own = HideConfig(("boot",), wordings=(("x",),), anchors=("y",))
    assert with_captions(captions, own) == own


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"targets": ()}, "nothing to hide"),
        ({"targets": ("a", "a")}, "named twice"),
        ({"targets": ("a",), "anchors": ("a",)}, "cannot be hidden and kept"),
        ({"targets": ("a",), "wordings": ((),)}, "wordings"),
        ({"targets": ("a",), "num_tokens": 0}, "num_tokens"),
        ({"targets": ("a",), "learning_rate": 0.0}, "positive"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        HideConfig(**given)


def test_nothing_to_keep_is_warned_of_and_an_interruption_restores() -> None:
    pipe = tiny_sd()
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}

    def stop(_progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="name anchors"), pytest.raises(KeyboardInterrupt):
        hide(pipe, config=config(anchors=()), progress=stop)
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())


def test_networks_that_read_no_keys_are_refused_and_come_back() -> None:
    pipe = tiny_pixart_with_text()
    flags = {name: part.requires_grad for name, part in network_of(pipe).named_parameters()}
    with pytest.raises(UnsupportedError, match="cannot read a prompt"):
        hide(pipe, config=config())
    assert {name: part.requires_grad for name, part in network_of(pipe).named_parameters()} == flags
    with pytest.raises(InputError, match="weight keep"):
        HideWeights(keep=-1.0)
    with pytest.raises(InputError, match="must have weights"):
        replace(BOTH, recover=0.0)
    with pytest.raises(InputError, match="no preset"):
        hide_preset("magic", "bag")


def test_the_command_gives_every_key_its_steps_unless_told_otherwise(tmp_path: Path) -> None:
    two = Hide(model="fashion", target=("bag", "coat"), holders=2)
    assert two._config().run.steps == 4 * hide_preset("balanced", "bag").run.steps
    options = tmp_path / "options.json"
    options.write_text(json.dumps({"targets": ["bag", "coat"], "weights": {"adversarial": 0.5}}))
    named = Hide(model="fashion", method="robust", config=options)._config()
    assert named.run.steps == 2 * hide_preset("robust", "bag").run.steps
    assert (named.weights.adversarial, named.weights.keep) == (0.5, 3.0)
    assert replace(two, steps=7)._config().run.steps == 7
