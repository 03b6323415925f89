"""The objective, its players and its cost on tiny pipelines, against closed forms and separate computations."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pipelines
import pytest
import torch
from pipelines import tiny_sd, tiny_sd3

from logsnr.core.config import from_dict, to_dict
from logsnr.core.errors import InputError, UnsupportedError
from logsnr.data.captions import Captions, every_prompt
from logsnr.data.emoji_captions import EmojiCaptions
from logsnr.data.fashion import NAMES
from logsnr.erasure.ablation import ConceptAblation
from logsnr.erasure.adversary import Continuous, Directions, Drawn, Exhaustive, Gumbel, allow, mix_rows
from logsnr.erasure.candidates import excluded_names, find_candidates, keep_candidates, representatives
from logsnr.erasure.closed_form import adversarial, closed_form, tokens_of
from logsnr.erasure.config import PRESETS, CandidateConfig, EraseConfig, RobustConfig, preset
from logsnr.erasure.erase import candidates_of, erase, erase_steps, make_method
from logsnr.erasure.method import OutputErasure
from logsnr.erasure.targets import names_any, with_words
from logsnr.models.delta import Delta
from logsnr.models.edited import repeat_row
from logsnr.models.export import export_delta
from logsnr.models.fingerprint import fingerprint
from logsnr.models.parameters import select_parameters
from logsnr.models.pipeline import component_of, denoiser_of, encode_prompts, latent_shape, network_of
from logsnr.train.config import FitConfig
from logsnr.train.method import Batch

WORDS = ("photo", "dark", "sneaker", "small", "running", "shoe")


def config_of(*targets: str, **changes: Any) -> EraseConfig:
    """A short run over few levels, whose chances need no pilot."""
    fixed = {
        "trajectory_steps": 4,
        "timestep_sampling": "uniform",
        "learning_rate": 1e-3,
        "candidates": CandidateConfig(WORDS),
        "run": FitConfig(steps=3, batch_size=2, warmup=0, clip=None),
    }
    return replace(EraseConfig(targets or ("bag", "boot")), **{**fixed, **changes})


def method_of(pipe: Any, config: EraseConfig) -> OutputErasure:
    return OutputErasure(pipe, config, candidates_of(pipe, config))


def batch_of(step: int = 0, rows: int = 2) -> Batch:
    return Batch({}, slice(0, rows), rows, (0, step), torch.device("cpu"))


def slopes(method: OutputErasure, step: int = 0) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """The gradients of one loss: of the network, and of the adversary's logits."""
    edited = list(method.scores.edited.values())
    logits = method.adversary.logits if isinstance(method.adversary, Gumbel) else None
    for parameter in [*edited, *([logits] if logits is not None else [])]:
        parameter.grad = None
    method.loss(batch_of(), step).value.backward()
    return [p.grad for p in edited], logits.grad if logits is not None else None


# Drawing levels


@pytest.mark.parametrize("how", ["uniform", "weight", "cost"])
def test_the_mean_loss_does_not_depend_on_how_levels_are_drawn(how: str) -> None:
    method = method_of(tiny_sd(), config_of(timestep_sampling=how))
    levels = method.scores.levels
    levels.chances = levels.chances or method.pilot(count=2)
    assert sum(levels.chances) == pytest.approx(1)
    draws = [levels.draw((i + 0.5) / 20000, 0.0) for i in range(20000)]
    for place, weight in enumerate(levels.weights):
        mean = sum(w for found, w, _ in draws if found == place) / len(draws)
        assert mean == pytest.approx(weight / len(levels.weights), rel=5e-3)
    assert sum(levels.weights) / len(levels.weights) == pytest.approx(1)


@pytest.mark.parametrize("make", [tiny_sd, tiny_sd3])
def test_a_network_is_told_the_level_of_its_sample(make: Any) -> None:
    method, told = method_of(make(), config_of()), []
    levels, network = method.scores.levels, method.scores.sampler
    network.timestep_of = lambda level: told.append(level) or 1.0
    for place, level in enumerate(levels.grid[:-1]):
        told.clear()
        x = method.scores.start(torch.ones(2, *method.scores.shape))
        method.scores.state(x, method.texts, place)
        assert told == levels.grid[:place]
        assert levels.draw((place + 0.5) / 4, 0.0)[2] is level


def test_the_released_alignment_is_two_levels_off() -> None:
    method, told = method_of(tiny_sd(), config_of(alignment="released")), []
    levels, network = method.scores.levels, method.scores.sampler
    network.timestep_of = lambda level: told.append(level) or 1.0
    for place in range(4):
        told.clear()
        method.scores.state(method.scores.start(torch.ones(2, *method.scores.shape)), method.texts, place)
        assert told == levels.grid[1 : min(place + 2, 4)]  # the first level is dropped; one evaluation a step
        drawn = levels.draw((place + 0.5) / 4, 0.5)[2]
        assert levels.grid[place].t > drawn.t > levels.grid[place + 1].t


# The two players


def test_one_backward_pass_serves_both_players() -> None:
    config = config_of(gumbel_hard=False)
    alternating = replace(config, adversary_schedule="alternating")
    network, logits = slopes(moved(tiny_sd(), config))
    own, own_logits = slopes(moved(tiny_sd(), alternating), step=1)
    assert all(slope is None for slope in own)  # the network learns nothing in the adversary's step
    torch.testing.assert_close(own_logits, logits)
    models, models_logits = slopes(moved(tiny_sd(), alternating), step=0)
    assert models_logits is None
    torch.testing.assert_close(models, network)
    erasing, _ = slopes(moved(tiny_sd(), replace(config, preservation_weight=0.0)))
    assert not torch.allclose(torch.cat([s.flatten() for s in erasing]), torch.cat([s.flatten() for s in network]))


def moved(pipe: Any, config: EraseConfig) -> OutputErasure:
    """A method whose network has left its start, so that something has to be held."""
    method = method_of(pipe, config)
    with torch.no_grad():
        for index, parameter in enumerate(method.scores.edited.values()):
            torch.manual_seed(index)
            parameter += 0.05 * torch.randn_like(parameter)
    return method


@pytest.mark.parametrize("grad", ["full", "edited"])
def test_the_adversary_has_the_whole_gradient(grad: str) -> None:
    pipe = tiny_sd()
    network_of(pipe).double()
    pipe.text_encoder.double()
    config = config_of(gumbel_hard=False, adversary_grad=grad, adversary_schedule="alternating")
    method = moved(pipe, config)
    method.adversary.double()
    scores, texts = method.scores, method.adversary.texts
    level, x = scores.levels.grid[1], torch.randn(1, *scores.shape, dtype=torch.float64)

    def value(logits: torch.Tensor) -> torch.Tensor:
        chosen = mix_rows(texts, logits.softmax(0)[None])
        return method.holding(x, level, chosen, model=False, adversary=True).mean()

    logits = torch.linspace(-1, 1, len(WORDS), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(logits), logits)
    step = 1e-5 * torch.eye(len(WORDS), dtype=torch.float64)
    with torch.no_grad():
        numeric = torch.stack([(value(logits + e) - value(logits - e)) / 2e-5 for e in step])
    assert torch.allclose(slope, numeric, rtol=1e-4, atol=1e-12) is (grad == "full")


@pytest.mark.parametrize("make", [tiny_sd, tiny_sd3])
def test_checkpointed_blocks_are_computed_again_with_the_old_weights(make: Any) -> None:
    found = []
    for checkpointed in (False, True):
        pipe = make()
        network = network_of(pipe)
        if checkpointed:
            network.enable_gradient_checkpointing()
        method = moved(pipe, config_of(gumbel_hard=False))
        functions = [getattr(part, "_gradient_checkpointing_func", None) for part in network.modules()]
        found.append(slopes(method))
        assert functions == [getattr(part, "_gradient_checkpointing_func", None) for part in network.modules()]
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("make", [tiny_sd, tiny_sd3])
def test_checkpointing_keeps_no_graph_of_a_call_and_samples_row_by_row(make: Any) -> None:
    """The three calls with gradients are made again in the backward pass, and no trajectory has more than one row."""
    pipe = make()
    network = network_of(pipe)
    network.enable_gradient_checkpointing()
    method, calls = moved(pipe, config_of(gumbel_hard=False)), []
    with network.register_forward_pre_hook(
        lambda _, args, given: calls.append((torch.is_grad_enabled(), len(given["encoder_hidden_states"]))),
        with_kwargs=True,
    ):
        value = method.loss(batch_of(), 0).value
        made = len(calls)
        value.backward()
    assert [graph for graph, _ in calls].count(True) == 6
    assert all(graph for graph, _ in calls[made:])
    assert len(calls) == made + 3
    assert max(rows for graph, rows in calls[: made - 4]) == 2  # a row with guidance; then come the scores


@pytest.mark.parametrize("temperature", [0.5, 2.0, 8.0])
def test_hard_draws_follow_the_logits_at_any_temperature(temperature: float) -> None:
    texts = {"encoder_hidden_states": torch.eye(3)[:, None]}
    adversary = Gumbel(
        texts, torch.tensor([[True, True, True], [True, False, True]]), temperature=temperature, hard=True
    )
    adversary.logits.data = torch.tensor([[1.0, 0.0, -1.0], [0.5, 9.0, 0.0]])
    targets = torch.arange(2).repeat_interleave(20000)
    drawn = adversary.choose(targets, batch_of(rows=len(targets)), None)["encoder_hidden_states"][:, 0]
    for target in range(2):
        rates = drawn[targets == target].mean(0)
        torch.testing.assert_close(rates, adversary.chances()[target], atol=0.012, rtol=0)
    assert ((drawn - drawn.round()).abs() < 1e-6).all()  # one concept, not a mixture
    assert not drawn[targets == 1, 1].any()  # which that target may not have


def test_the_exhaustive_adversary_finds_the_worst_candidate() -> None:
    method = moved(tiny_sd(), config_of(adversary="exhaustive", search_every=2))
    adversary, scores = method.adversary, method.scores
    noise = torch.randn(1, *scores.shape)
    level = scores.levels.grid[2]
    chosen = adversary.choose(torch.tensor([0, 1]), batch_of(), lambda *asked: method.search(noise, 2, level, *asked))
    for target in range(2):
        x = scores.state(scores.start(noise), {k: v[[target]] for k, v in method.texts.items()}, 2)
        losses = {}
        for place in adversary.allowed[target].nonzero()[:, 0].tolist():
            text = {name: value[[place]] for name, value in adversary.texts.items()}
            with torch.no_grad():
                losses[place] = float(method.holding(x, level, text, model=True, adversary=False))
        worst = max(losses, key=losses.get)
        assert adversary.found[target] == worst
        torch.testing.assert_close(
            chosen["encoder_hidden_states"][target], adversary.texts["encoder_hidden_states"][worst]
        )
    again = adversary.choose(torch.tensor([0]), batch_of(), lambda *a: pytest.fail("searched too early"))
    assert again["encoder_hidden_states"].shape[0] == 1
    copy = Exhaustive(adversary.texts, adversary.allowed, every=2)
    copy.load_state_dict(adversary.state_dict())
    assert (copy.found, copy.age) == (adversary.found, adversary.age)


def test_blind_draws_are_allowed_and_even() -> None:
    adversary = Drawn({"text": torch.eye(4)}, allow("abcd", ["abd", "c"]))
    drawn = adversary.choose(torch.zeros(6000, dtype=torch.long), batch_of(rows=6000), None)["text"].mean(0)
    torch.testing.assert_close(drawn, torch.tensor([1 / 3, 1 / 3, 0.0, 1 / 3]), atol=0.02, rtol=0)
    assert adversary.choose(torch.ones(9, dtype=torch.long), batch_of(rows=9), None)["text"][:, 2].all()


def test_a_continuous_adversary_climbs() -> None:
    adversary = Continuous({"encoder_hidden_states": torch.tensor([[3.0, 4.0]])}, 2, rate=0.1)
    adversary.choose(torch.tensor([1]), batch_of(), None)["encoder_hidden_states"][:, 0].sum().backward()
    adversary.after_step()
    moved = torch.tensor([[3.0, 4.0], [3.5, 4.0]])  # by a tenth of its norm, 5
    torch.testing.assert_close(adversary.points.data, moved)


# The attacker inside the training


@pytest.mark.parametrize("text", ["prefix", "embedding"])
def test_a_text_is_found_that_still_reaches_the_target(text: Any) -> None:
    robust = RobustConfig(text, steps=40, share=0.5)
    method = moved(tiny_sd(), config_of(robust=robust, adversary="none"))
    scores, rows = method.scores, torch.tensor([1, 0, 0, 1])
    x, level = torch.randn(4, *scores.shape), scores.levels.grid[1]
    names = {key: value[rows] for key, value in method.texts.items()}
    weights = [parameter.clone() for parameter in scores.edited.values()]
    found = method.reaching.search(x, level, rows)
    with torch.no_grad():
        aim = scores.output(scores.old, x, level, names)
        errors = [(scores.output(scores.still, x, level, t) - aim).square().flatten(1).mean(1) for t in (names, found)]
    assert (errors[1][:2] < 0.9 * errors[0][:2]).all()
    torch.testing.assert_close(errors[1][2:], errors[0][2:])  # the other half of the rows keeps its names
    assert all(torch.equal(old, new) for old, new in zip(weights, scores.edited.values(), strict=True))
    gathered = [*scores.network.parameters(), *scores.pipe.text_encoder.parameters()]
    assert all(parameter.grad is None for parameter in gathered)
    assert scores.cost.forward["attack"] == 2 * (1 + 40)
    assert scores.cost.backward_input == 2 * 40
    again = method.reaching.search(x, level, rows)  # goes on from there
    with torch.no_grad():
        further = (scores.output(scores.still, x, level, again) - aim).square().flatten(1).mean(1)
    assert further[:2].mean() < errors[1][:2].mean()


def test_a_prefix_of_a_known_word_reads_as_that_text() -> None:
    method = method_of(tiny_sd(), config_of(robust=RobustConfig("prefix")))
    pipe = method.scores.pipe
    word = pipe.tokenizer("dark").input_ids[1]
    method.reaching.points.data[:] = pipe.text_encoder.get_input_embeddings().weight[word]
    read = method.reaching.read(torch.tensor([1, 0, 1]))["encoder_hidden_states"]
    torch.testing.assert_close(
        read, method.scores.encode(["dark boot", "dark bag", "dark boot"])["encoder_hidden_states"]
    )


def test_a_search_of_one_row_has_that_row() -> None:
    method = method_of(tiny_sd(), config_of(robust=RobustConfig("embedding", steps=1, share=0.5)))
    found = method.reaching.search(
        torch.randn(1, *method.scores.shape), method.scores.levels.grid[1], torch.tensor([1])
    )
    assert len(found["encoder_hidden_states"]) == 1


def test_gradients_from_before_do_not_enter_a_run() -> None:
    pipe, deltas = tiny_sd(), []
    for _ in range(2):
        deltas.append(erase(pipe, config=config_of("bag", adversary="none")))
        for parameter in network_of(pipe).parameters():
            parameter.grad = torch.full_like(parameter, 1e3)
    assert all(torch.equal(value, deltas[1].tensors[name]) for name, value in deltas[0].tensors.items())


def test_the_search_starts_after_its_share_of_the_run() -> None:
    method = method_of(tiny_sd(), config_of(robust=RobustConfig("embedding", steps=1, after=0.5)))
    for step, spent in ((0, None), (1, None), (2, 2 * 2)):  # of three steps
        method.loss(batch_of(step), step)
        assert method.scores.cost.forward.get("attack") == spent


# Cost


@pytest.mark.parametrize("place", range(4))
def test_one_shared_sample_costs_what_the_specification_says(place: int) -> None:
    method = method_of(tiny_sd(), config_of())
    method.scores.levels.chances = [float(here == place) + 1e-12 for here in range(4)]
    method.loss(batch_of(), 0).value.backward()
    cost = method.scores.cost
    assert cost.forward.get("trajectories", 0) == 2 * 2 * 2 * place  # rows, players, guidance, steps
    assert cost.forward["scores"] == 2 * 5  # three of the old network, two of the new
    assert (cost.backward_full, cost.backward_input) == (2 * 2, 2)
    assert cost.evaluation_equivalents == cost.network_evaluations + 2 * 4 + 2


def test_the_adversarys_own_step_costs_less_than_as_released() -> None:
    method = method_of(tiny_sd(), config_of(adversary_schedule="alternating", adversary_grad="edited"))
    method.scores.levels.chances = [1e-12, 1e-12, 1e-12, 1.0]
    method.loss(batch_of(), 1).value.backward()
    cost = method.scores.cost  # no trajectory of the target, and gradients to the input alone
    assert cost.forward == {"trajectories": 2 * 2 * 3, "scores": 2 * 2}
    assert (cost.backward_full, cost.backward_input) == (0, 2)


def test_text_is_encoded_once() -> None:
    pipe, calls = tiny_sd(), []
    method = method_of(pipe, config_of())
    pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    for step in range(3):
        method.loss(batch_of(step), step)
    assert not calls


# Runs


@pytest.mark.parametrize("maker", ["tiny_sd", "tiny_sdxl", "tiny_sd3", "tiny_pixart_with_text", "tiny_flux_with_text"])
@pytest.mark.parametrize("adversary", ["gumbel", "pgd", "exhaustive"])
def test_every_architecture_is_edited(maker: str, adversary: str, tmp_path: Any) -> None:
    pipe = getattr(pipelines, maker)()
    network, run = network_of(pipe), FitConfig(steps=1, batch_size=2, warmup=0, clip=None)
    base, config = fingerprint(network), config_of("bag", adversary=adversary, trajectory_steps=2, run=run)
    delta = erase(pipe, config=config)
    assert fingerprint(network) == base
    delta.save_pretrained(tmp_path / "delta")
    again = Delta.from_pretrained(tmp_path / "delta")
    again.apply(pipe)
    assert fingerprint(network) != base
    again.revert(pipe)
    assert fingerprint(network) == base
    select = select_parameters(network, "xattn")
    assert set(delta.tensors) <= {f"{component_of(pipe)}.{name}" for name in select}
    assert len(delta.tensors) > len(select) / 2


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_edits_the_selected_parameters_alone(name: str) -> None:
    pipe = tiny_sd()
    before = {k: v.clone() for k, v in network_of(pipe).named_parameters()}
    config = replace(preset(name, "bag"), run=FitConfig(steps=2, batch_size=2, warmup=0, clip=None), learning_rate=1e-3)
    config = replace(config, trajectory_steps=4, candidates=CandidateConfig(WORDS))
    config = replace(config, robust=replace(config.robust, steps=2))
    if config.protect_others:
        config = replace(config, protected=("sneaker",), protected_energy=0.8)
    delta = erase(pipe, config=config)
    chosen = {f"unet.{parameter}" for parameter in select_parameters(network_of(pipe), config.modules)}
    assert delta.tensors
    assert set(delta.tensors) <= chosen
    assert all(torch.equal(before[k], v) and v.requires_grad for k, v in network_of(pipe).named_parameters())
    assert from_dict(EraseConfig, delta.record.config) == config
    delta.apply(pipe)
    assert any(not torch.equal(before[k], v) for k, v in network_of(pipe).named_parameters())


@pytest.mark.parametrize("adversary", ["gumbel", "exhaustive", "pgd"])
def test_an_interrupted_run_goes_on_exactly(adversary: str, tmp_path: Any) -> None:
    pipe, config = (
        tiny_sd(),
        config_of(
            adversary=adversary,
            preserved=("dark",),
            search_every=2,
            timestep_sampling="cost",
            robust=RobustConfig("embedding", steps=2),
        ),
    )
    whole = erase(pipe, config=config)
    config = replace(config, run=replace(config.run, out=tmp_path))
    steps = erase_steps(pipe, config)
    next(steps)
    steps.close()
    resumed = erase(pipe, config=replace(config, run=replace(config.run, resume=True)))
    assert whole.tensors.keys() == resumed.tensors.keys()
    assert all(torch.equal(value, resumed.tensors[name]) for name, value in whole.tensors.items())
    counted = [{k: v for k, v in d.record.metrics.items() if k != "seconds"} for d in (whole, resumed)]
    assert counted[0] == counted[1]
    other = tiny_sd(seed=1)
    with pytest.raises(InputError, match="another model"):
        erase(other, config=replace(config, run=replace(config.run, resume=True)))
    assert all(parameter.requires_grad for parameter in network_of(other).parameters())


def test_training_leads_the_target_away_and_holds_the_rest() -> None:
    pipe = tiny_sd()
    config = config_of(
        "bag",
        adversary="fixed",
        preserved=("sneaker",),
        run=FitConfig(steps=20, batch_size=4, warmup=0),
        trajectory_steps=2,
        learning_rate=6e-3,
    )
    losses = {}
    for weight in (0.0, 5.0):
        method = method_of(pipe, replace(config, preservation_weight=weight))
        edited = erase(pipe, config=replace(config, preservation_weight=weight))
        x, level = torch.randn(32, *method.scores.shape), method.scores.levels.grid[1]
        zeros = torch.zeros(32, dtype=torch.long)
        held = {name: value.expand(32, *value.shape[1:]) for name, value in method.adversary.texts.items()}
        start = float(method.erasing(x, level, zeros, repeat_row(method.anchor, 32)).detach())
        edited.apply(pipe)
        with torch.no_grad():
            erased = float(method.erasing(x, level, zeros, repeat_row(method.anchor, 32)))
            kept = float(method.holding(x, level, held, model=True, adversary=False).mean())
        edited.revert(pipe)
        losses[weight] = kept
        assert erased < 0.95 * start
    assert losses[5.0] < 0.7 * losses[0.0]


@pytest.mark.parametrize("adversary", ["gumbel", "directions"])
def test_adapters_train_in_place_of_the_weights(adversary: Any, tmp_path: Any) -> None:
    pipe = tiny_sd()
    before = {name: value.clone() for name, value in network_of(pipe).named_parameters()}
    config = config_of(adversary=adversary, adapter_rank=2)
    whole = erase(pipe, config=config)
    assert {name: value.shape for name, value in network_of(pipe).named_parameters()} == {
        name: value.shape for name, value in before.items()
    }
    assert all(torch.equal(value, before[name]) for name, value in network_of(pipe).named_parameters())
    assert all(value.requires_grad for value in network_of(pipe).parameters())
    changes = whole.differences(pipe)
    assert not any(name.endswith(".bias") for name in changes)
    assert {int(torch.linalg.matrix_rank(change.flatten(1), rtol=1e-3)) for change in changes.values()} == {2}
    assert export_delta(whole, pipe, tmp_path / "lora", "diffusers", rank=2).error < 1e-4
    run = replace(config.run, out=tmp_path / "run")
    steps = erase_steps(pipe, replace(config, run=run))
    next(steps)
    steps.close()
    again = erase(pipe, config=replace(config, run=replace(run, resume=True)))
    assert all(torch.equal(value, again.tensors[name]) for name, value in whole.tensors.items())


def test_adapters_are_for_matrices_and_convolutions() -> None:
    assert set(erase(tiny_sd(), config=config_of(adapter_rank=1, modules=("conv_in",))).tensors) == {
        "unet.conv_in.weight"
    }
    pipe = tiny_sd()
    with pytest.raises(InputError, match="is a matrix"):
        erase(pipe, config=config_of(adapter_rank=1, modules=(r"norm\d\.",)))
    assert all(value.requires_grad for value in network_of(pipe).parameters())


def test_an_adapter_moves_weights_about_as_far_as_the_strength_says() -> None:
    run = FitConfig(steps=20, batch_size=2, warmup=0, clip=None)
    for rank in (None, 1, 4):
        pipe = tiny_sd()
        config = config_of(learning_rate=None, strength=0.2, adapter_rank=rank, run=run)
        weights = [w for n, w in select_parameters(network_of(pipe), "xattn").items() if n.endswith("weight")]
        size = torch.cat([weight.detach().flatten() for weight in weights]).square().mean().sqrt()
        moved = torch.cat([change.flatten() for change in erase(pipe, config=config).differences(pipe).values()])
        assert 0.02 < float(moved.square().mean().sqrt() / size) < 0.4


def test_directions_are_as_long_as_the_target_and_seldom_near_it() -> None:
    aims = {"encoder_hidden_states": torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]]), "pooled": torch.ones(2, 1)}
    targets = torch.arange(2).repeat_interleave(4000)
    anchor = {"encoder_hidden_states": torch.zeros(1, 1, 2), "pooled": torch.full((1, 1), 7.0)}
    drawn = Directions(aims, anchor).choose(targets, batch_of(rows=8000), None)
    text, aim = drawn["encoder_hidden_states"][:, 0], aims["encoder_hidden_states"][targets, 0]
    ratio = text.norm(dim=1) / aim.norm(dim=1)
    assert (ratio.min() > 0.799, ratio.max() < 1.201) == (True, True)
    torch.testing.assert_close(ratio.mean(), torch.tensor(1.0), atol=0.01, rtol=0)
    near = torch.nn.functional.cosine_similarity(text, aim)
    torch.testing.assert_close(
        near.mean(), torch.tensor(-math.pi / (4 * math.pi - 4)), atol=0.02, rtol=0
    )  # min(1, 1 - cos) on the circle
    assert (drawn["pooled"] == 7).all()


def test_no_step_is_no_change() -> None:
    pipe = tiny_sd()
    method = method_of(pipe, config_of())
    assert not method.delta().tensors
    base = fingerprint(network_of(pipe))
    method.delta().apply(pipe)
    assert fingerprint(network_of(pipe)) == base


@pytest.mark.parametrize("steps", [2, 7])
def test_strength_is_the_most_that_a_weight_moves(steps: int) -> None:
    config = config_of(learning_rate=None, strength=0.2, run=FitConfig(steps=steps, batch_size=1, warmup=0, clip=None))
    pipe = tiny_sd()
    delta = erase(pipe, config=config)
    before = {f"unet.{name}": value for name, value in select_parameters(network_of(pipe), "xattn").items()}
    size = torch.cat([value.detach().flatten() for value in before.values()]).square().mean().sqrt()
    farthest = max(float((value - before[name].detach()).abs().max()) for name, value in delta.tensors.items())
    assert 0.1 * float(size) < farthest <= 0.2 * float(size) * 1.001


@pytest.mark.parametrize("adversary", ["gumbel", "none"])
def test_protected_prompts_keep_every_output(adversary: str) -> None:
    pipe = tiny_sd(text_width=32)  # two prompts of eight tokens take half of it
    run = FitConfig(steps=8, batch_size=2, warmup=0, clip=None)
    config = config_of("bag", adversary=adversary, protected=("sneaker",), modules=("xattn-kv",), run=run)
    free = replace(config, protected=())
    level, x = denoiser_of(pipe).schedule.level(0.6), torch.randn(4, *latent_shape(pipe))
    texts = {word: encode_prompts(pipe, [word] * 4, guided=False).values for word in ("sneaker", "bag", "")}

    def outputs() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {word: denoiser_of(pipe).output(x, level, text) for word, text in texts.items()}

    before, changes = outputs(), {}
    for name, each in (("protected", config), ("free", free)):
        delta = erase(pipe, config=each)
        delta.apply(pipe)
        changes[name] = {word: float((found - before[word]).abs().max()) for word, found in outputs().items()}
        delta.revert(pipe)
    assert changes["protected"]["sneaker"] < 1e-5
    assert changes["protected"][""] < 1e-5
    assert changes["protected"]["bag"] > 1e-4
    assert changes["free"]["sneaker"] > 1e-4


def test_protection_is_for_keys_and_values() -> None:
    with pytest.raises(InputError, match="xattn-kv"):
        make_method(tiny_sd(), config_of("bag", protected=("sneaker",)))
    with pytest.raises(InputError, match="xattn-kv"):
        make_method(tiny_sd3(), config_of("bag", protected=("sneaker",), modules=("xattn-kv",)))


# Candidates


def test_candidates_never_name_what_is_erased(tmp_path: Any) -> None:
    words = ["Boot", "boots", "booting", "bag", "bags", "gas", "gas pump", "pump", "small", "dark", "sneaker", "my bag"]
    path = tmp_path / "words.txt"
    path.write_text("\n".join(words), encoding="utf-8")
    config = CandidateConfig(path, sampler="all", exclude=("dark",), exclude_radius=0.0)
    found = find_candidates(tiny_sd(), ["boot", "bag", "gas pump"], config)
    assert {name for one in found for name in one.names} == {"small", "sneaker", "my bag"}
    assert list(found[0].distances) == sorted(found[0].distances)
    assert found[0].distances[0] > 0
    assert {"Boot", "boots", "gas", "pump", "dark"} <= set(found[0].excluded)
    assert excluded_names(["church", "churches", "chain"], ["Church"], []) == {"church", "churches"}


def test_a_worlds_other_words_are_candidates_and_can_be_protected() -> None:
    captions = Captions(NAMES)
    config = with_words(captions, preset("eap-projected", "Boot"))
    assert {"sneaker", "dark"} <= set(config.candidates.vocabulary)
    assert set(config.candidates.exclude) == {"ankle boot", "boot", "bootie"}
    assert {"a photo of a sneaker", "an image of the sneaker"} & set(config.protected) == {"a photo of a sneaker"}
    assert "trainer" in config.protected
    assert not any("boot" in prompt for prompt in config.protected)
    assert len(config.protected) == 9 * (15 + 2)
    assert names_any("a photo of a Bag", {"a bag"})
    assert not names_any("a handbag", {"bag"})
    own = replace(config, protected=("bag",), candidates=CandidateConfig(WORDS))
    assert with_words(captions, own) == own
    styled = every_prompt(EmojiCaptions((("a fox", "foxes"), ("an owl",)), ("flat", "noto")), 0)
    assert {"a fox", "fox emoji", "a fox in noto style", "flat fox", "foxes"} <= set(styled)
    pipe = tiny_sd()
    with pytest.raises(InputError, match="say --protected"):
        erase(pipe, config=config_of(protect_others=True, modules=("xattn-kv",)))
    assert all(parameter.requires_grad for parameter in network_of(pipe).parameters())


def test_candidates_are_found_once(tmp_path: Any) -> None:
    pipe, calls, cache = tiny_sd(), [], tmp_path / "run" / "candidates.json"
    pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    first = find_candidates(pipe, ["bag"], CandidateConfig(WORDS), cache=cache)
    assert calls
    calls.clear()
    keep_candidates(cache, pipe, CandidateConfig(WORDS), first)
    assert find_candidates(pipe, ["bag"], CandidateConfig(WORDS), cache=cache) == first
    assert not calls
    for targets, config in ((["boot"], CandidateConfig(WORDS)), (["bag"], CandidateConfig(WORDS, exclude_radius=0.0))):
        find_candidates(pipe, targets, config, cache=cache)
        assert calls  # something else is looked for
        calls.clear()
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight.mul_(2)
    find_candidates(pipe, ["bag"], CandidateConfig(WORDS), cache=cache)
    assert calls  # and by another text encoder


def test_a_radius_leaves_out_the_nearest() -> None:
    everything = CandidateConfig(WORDS, sampler="all", exclude_radius=0.0)
    names = find_candidates(tiny_sd(), ["bag"], everything)[0]
    middle = sorted(names.distances)[len(WORDS) // 2 - 1]
    near = find_candidates(tiny_sd(), ["bag"], replace(everything, exclude_radius=1.0))[0]
    assert set(near.names) == {n for n, gap in zip(names.names, names.distances, strict=True) if gap > middle}
    with pytest.raises(InputError, match="no candidate is left"):
        find_candidates(tiny_sd(), ["bag"], replace(everything, exclude_radius=50.0))
    with pytest.raises(InputError, match="no vocabulary"):
        find_candidates(tiny_sd(), ["bag"], CandidateConfig(()))


@pytest.mark.parametrize("sampler", ["distance_kmeans", "embedding_kmeans", "topk"])
def test_few_candidates_stand_for_many(sampler: str) -> None:
    config = CandidateConfig(WORDS, sampler=sampler, num_centers=3, exclude_radius=0.0)
    found = find_candidates(tiny_sd(), ["bag"], config)[0]
    assert len(found.names) == 3
    assert list(found.distances) == sorted(found.distances)
    if sampler == "topk":
        whole = find_candidates(tiny_sd(), ["bag"], replace(config, sampler="all"))[0]
        assert found.names == whole.names[:3]


def test_means_of_distances_spread_from_near_to_far() -> None:
    points = torch.tensor([0.0, 0.1, 0.2, 5.0, 5.2, 5.4, 9.0])[:, None]
    assert representatives(points.double(), 3) == [1, 4, 6]


# Closed form


def test_the_closed_form_is_the_least_squares_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, c, guides, kept = (torch.randn(n, 6, generator=generator).double() for n in (5, 2, 2, 3))
    found = closed_form(weight, c, guides @ weight.T, kept, ridge=0.3, erase_scale=2.0, keep_scale=0.7)
    rows = torch.cat([2.0**0.5 * c, 0.7**0.5 * kept, 0.3**0.5 * torch.eye(6).double()])
    aims = torch.cat([2.0**0.5 * guides @ weight.T, 0.7**0.5 * kept @ weight.T, 0.3**0.5 * weight.T])
    brute = torch.linalg.lstsq(rows, aims).solution.T
    assert float((found - brute).norm() / brute.norm()) < 1e-8
    firm = closed_form(weight, c, guides @ weight.T, kept, ridge=1e-9, keep_scale=1e3)
    torch.testing.assert_close(firm @ kept.T, weight @ kept.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(firm @ c.T, weight @ guides.T, atol=1e-5, rtol=0)


def test_the_embedding_that_still_reaches_a_target_is_found_and_erased() -> None:
    generator = torch.Generator().manual_seed(1)
    before = [torch.randn(5, 6, generator=generator).double() for _ in range(3)]
    now = [torch.randn(5, 6, generator=generator).double() for _ in range(3)]
    c = torch.randn(1, 6, generator=generator).double()
    found = adversarial(now, before, c, ridge=0.2)
    rows = torch.cat([*now, 0.2**0.5 * torch.eye(6).double()])
    aims = torch.cat([*(weight @ c[0] for weight in before), torch.zeros(6).double()])
    torch.testing.assert_close(found[0], torch.linalg.lstsq(rows, aims[:, None]).solution[:, 0])

    pipe, reach = tiny_sd(), {}
    (words,) = tokens_of(pipe, [("bag", "bag")])
    old = list(select_parameters(network_of(pipe), "xattn-kv").values())
    for name in ("uce", "rece"):
        delta = erase(pipe, config=preset(name, "bag"))
        new = list(delta.tensors.values())
        best = adversarial(new, old, words, ridge=0.1)
        reach[name] = sum(
            float((w.double() @ best[0] - v.double() @ words[0].double()).square().sum().detach())
            for w, v in zip(new, old, strict=True)
        )
    assert reach["rece"] > 1.2 * reach["uce"]  # after it no embedding comes as near


def test_closed_forms_are_for_the_text_of_clip() -> None:
    with pytest.raises(UnsupportedError, match="use eap or esd"):
        erase(tiny_sd3(), config=replace(preset("uce", "bag"), modules=("context_embedder",)))
    with pytest.raises(InputError, match="does not project text"):
        erase(tiny_sd(), config=replace(preset("uce", "bag"), modules=("xattn",)))


def test_ablation_learns_the_anchor_on_its_own_images() -> None:
    pipe = tiny_sd()
    run = FitConfig(steps=40, batch_size=4, warmup=0, clip=None)
    config = replace(preset("ca", "bag"), anchor="sneaker", run=run, learning_rate=3e-3, anchor_images=8)
    config = replace(config, trajectory_steps=3)
    before = ConceptAblation(pipe, config)
    assert before.images.shape == (8, *before.scores.shape)
    assert before.scores.cost.forward == {"anchor images": 8 * 2 * 3}
    x, level, rows = torch.randn(32, *before.scores.shape), before.scores.levels.grid[1], torch.zeros(32).long()
    start = float(before.ablating(x, level, rows).detach())
    before.scores.restore()
    erase(pipe, config=config).apply(pipe)
    after = ConceptAblation(pipe, config)
    assert float(after.ablating(x, level, rows).detach()) < 0.8 * start


def test_age_leads_to_what_the_adversary_chose() -> None:
    config = replace(config_of("bag", adversary="fixed", preserved=("sneaker",)), method="age")
    method = moved(tiny_sd(), config)
    losses = []
    for aims in (method.adversary.texts, method.anchor):
        rows, noise = torch.zeros(2).long(), torch.randn(2, *method.scores.shape)
        x, level = method.scores.start(noise), method.scores.levels.grid[0]
        losses.append(float(method.erasing(x, level, rows, repeat_row(aims, 2)).detach()))
    chosen = repeat_row(method.adversary.texts, 2)
    torch.testing.assert_close(method._aims(chosen, 2), chosen)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_the_last_word_stands_for_a_prompt() -> None:
    pipe = tiny_sd()
    texts = encode_prompts(pipe, ["a dark sneaker", ""], guided=False).values["encoder_hidden_states"]
    prompts = [("a dark", "a dark sneaker"), ("", "")]
    last, alone = tokens_of(pipe, prompts)
    torch.testing.assert_close(last, texts[0, 2:3])  # after the start of text and one word
    torch.testing.assert_close(alone, texts[1, 1:2])  # the end of text
    rest, ending = tokens_of(pipe, prompts, rest=True)
    torch.testing.assert_close(rest, texts[0, 2:])
    torch.testing.assert_close(ending, texts[1, 1:])
    assert [len(text) for text in tokens_of(pipe, prompts, whole=True)] == [8, 8]


def test_all_tokens_are_sent_away_from_where_they_were() -> None:
    pipe, before = tiny_sd(), {}
    config = replace(preset("uce-tensor", "bag"), templates=("{}", "a photo of a {}"), closed_form_ridge=1e-6)
    before = {name: value.detach().double() for name, value in select_parameters(network_of(pipe), "xattn-kv").items()}
    delta = erase(pipe, config=config)
    (text,) = tokens_of(pipe, [("a photo of a bag", "a photo of a bag")], rest=True)
    for name, old in before.items():
        was, now = (text.double() @ weight.T for weight in (old, delta.tensors[f"unet.{name}"].double()))
        likeness = torch.nn.functional.cosine_similarity(was, now, dim=1)
        assert float(likeness.abs().mean()) < 0.5  # of 12 equations in 16 unknowns, shared by two templates
    kept = erase(pipe, config=replace(config, preserved=("dark sneaker",), preservation_weight=1e4))
    (held,) = tokens_of(pipe, [("", "dark sneaker")], whole=True)
    name, old = next(iter(before.items()))
    moved = held.double() @ (kept.tensors[f"unet.{name}"].double() - old).T
    assert moved.norm() < 0.05 * (held.double() @ old.T).norm()


# Bad input


def test_names_that_the_encoder_cannot_read_are_told() -> None:
    with pytest.raises(InputError, match="8 are read"):
        erase(tiny_sd(), config=config_of("a very long name of a small dark running shoe"))
    with pytest.warns(UserWarning, match="spells 'jazz'"):
        erase(tiny_sd(), config=config_of("jazz", adversary="none", run=FitConfig(steps=1, batch_size=1)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": ()}, "nothing to erase"),
        ({"targets": ("bag", "bag")}, "twice"),
        ({"targets": ("bag",), "anchor": "bag"}, "erased and kept"),
        ({"targets": ("bag",), "adversary": "fixed"}, "preserved"),
        ({"targets": ("bag",), "strength": 0.0}, "strength"),
        ({"targets": ("bag",), "method": "uce"}, "no adversary"),
        ({"targets": ("bag",), "method": "age", "adversary": "none"}, "name one"),
        ({"targets": ("bag",), "trajectory_steps": 1}, "trajectory_steps"),
        ({"targets": ("bag",), "adapter_rank": 0}, "adapter_rank"),
        ({"targets": ("bag",), "templates": ("a photo",)}, "where the name stands"),
        ({"targets": ("bag",), "adapter_rank": 2, "protected": ("boot",)}, "whole matrices"),
        ({"targets": ("bag",), "method": "ca", "adversary": "none", "robust": RobustConfig("prefix")}, "attacker"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        EraseConfig(**changes)


def test_presets_are_named_and_round_trip() -> None:
    with pytest.raises(InputError, match="eap-paper"):
        preset("nothing", "bag")
    paper = preset("eap-paper", "bag")
    run = (paper.learning_rate, paper.adversary_lr, paper.gumbel_temperature, paper.gumbel_hard, paper.trajectory_steps)
    assert run == (1e-5, 1e-2, 2.0, True, 50)
    assert (paper.negative_guidance, paper.preservation_weight, paper.trajectory_guidance) == (1.0, 1.0, 3.0)
    assert (paper.modules, paper.adversary_steps, paper.loss_weighting) == (("xattn",), 2, "x0")
    for name in PRESETS:
        config = preset(name, "a, b", "c")
        assert from_dict(EraseConfig, to_dict(config)) == config
        assert config.targets == ("a, b", "c")
