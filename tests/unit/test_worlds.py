"""Worlds: the recipe's stages on a few images, legs and resume, and the embedded world as plain diffusers sees it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from recipes import TINY_EMOJI, TINY_FASHION, TINY_FLOW, FewFashion

from logsnr.core.artifact import fingerprint, load_tensors, write_json
from logsnr.core.config import read_json
from logsnr.core.errors import BrokenError, InputError, MissingError
from logsnr.data.fashion import NAMES, load_fashion
from logsnr.metrics.judge import Judge, judge_images
from logsnr.models.pipeline import latent_shape, open_pipeline
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import sample
from logsnr.worlds.autoencoder import feature_distance, perceiver, reconstruct
from logsnr.worlds.card import write_card
from logsnr.worlds.config import STAGES
from logsnr.worlds.data import WorldData
from logsnr.worlds.judges import shifted
from logsnr.worlds.load import WORLDS, load, load_world
from logsnr.worlds.recipe import train_world


@pytest.fixture(scope="module")
def data() -> WorldData:
    return FewFashion().training()


@pytest.fixture(scope="module")
def made(data: WorldData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    stages = [stage for stage, _ in train_world(TINY_FASHION, data, out)]
    assert stages == [stage for stage in STAGES for _ in range(3)]
    return out


def test_the_recipe_makes_a_pipeline_that_plain_diffusers_loads(made: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(made / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a photo of a bag", num_inference_steps=2, output_type="pil").images[0]
    assert image.size == (32, 32)
    assert image.mode == "L"
    saved = load_tensors(made / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}
    assert str(made) not in "".join(path.read_text() for path in (made / "pipeline").rglob("*.json"))
    text = load_tensors(made / "pipeline" / "text_encoder" / "model.safetensors")
    assert torch.float16 not in {tensor.dtype for tensor in text.values()}


def test_latents_of_the_made_world_have_unit_scale(made: Path, data: WorldData) -> None:
    pipe = open_pipeline(made / "pipeline")
    with torch.no_grad():
        latents = pipe.vae.encode(data.train.take(torch.arange(64))["image"]).latent_dist.mean
    assert float((latents * pipe.vae.config.scaling_factor).std()) == pytest.approx(1.0, abs=0.01)


def test_finished_stages_are_not_trained_again_and_unfinished_ones_want_resume(
    made: Path, data: WorldData, tmp_path: Path
) -> None:
    assert list(train_world(TINY_FASHION, data, made)) == []
    run = train_world(TINY_FASHION, data, tmp_path)
    next(run)
    run.close()
    with pytest.raises(InputError, match="--resume"):
        next(train_world(TINY_FASHION, data, tmp_path))
    resumed = list(train_world(TINY_FASHION, data, tmp_path, stages=("judge",), resume=True))
    assert [progress.step for _, progress in resumed] == [2, 3]
    again, whole = (load_tensors(out / "judge" / "diffusion_pytorch_model.safetensors") for out in (tmp_path, made))
    assert fingerprint(again) == fingerprint(whole)


def test_a_new_leg_starts_from_the_weights_of_the_last(made: Path, data: WorldData, tmp_path: Path) -> None:
    still = replace(TINY_FASHION, denoiser=replace(TINY_FASHION.denoiser, learning_rate=0.0))
    stages = {stage for stage, _ in train_world(still, data, tmp_path, start_from=made / "pipeline")}
    assert stages == {"denoiser"}
    files = [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae", "judge", "judge_second")]
    for file in [*files, "text_encoder/model.safetensors"]:
        before, after = (load_tensors(out / "pipeline" / file) for out in (made, tmp_path))
        assert all(torch.equal(after[name], value) for name, value in before.items()), file
    records = [read_json(out / "pipeline" / "training.json") for out in (made, tmp_path)]
    assert records[0]["judge"] == records[1]["judge"]
    assert (records[1]["denoiser"]["legs"], records[1]["denoiser"]["steps"]) == (2, 6)
    with pytest.raises(InputError, match="no finished world"):
        next(train_world(TINY_FASHION, data, tmp_path / "new", start_from=made / "denoiser"))
    with pytest.raises(InputError, match="shows other data than emoji does"):
        next(train_world(TINY_EMOJI, data, tmp_path / "new", start_from=made / "pipeline"))
    assert not (tmp_path / "new").exists()


def test_a_flow_world_keeps_judges_and_autoencoder_and_is_a_stable_diffusion_3(
    made: Path, data: WorldData, tmp_path: Path
) -> None:
    for out, before, legs in ((tmp_path / "1", made, 1), (tmp_path / "2", tmp_path / "1", 2)):
        stages = {stage for stage, _ in train_world(TINY_FLOW, data, out, start_from=before / "pipeline")}
        assert stages == {"denoiser"}
        record = read_json(out / "pipeline" / "training.json")
        assert record["judge"] == read_json(made / "pipeline" / "training.json")["judge"]
        assert record["denoiser"] == {**record["denoiser"], "legs": legs, "steps": 3 * legs}
        assert (out / "work" / "denoiser" / "previews" / "step-00000003.png").is_file()
    kept = [load_tensors(out / "pipeline/vae/diffusion_pytorch_model.safetensors") for out in (made, tmp_path / "2")]
    assert fingerprint(kept[0]) == fingerprint(kept[1])
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path / "2/pipeline", text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(3)]
    stock = pipe("a bag", num_inference_steps=2, guidance_scale=2.0, generator=generator, output_type="latent").images
    ours = sample(load(tmp_path / "2/pipeline"), "a bag", seeds=[3], config=SampleConfig(steps=2, order=1))
    assert (ours.latents - stock).abs().max() <= 1e-4
    world, card = load_world(tmp_path / "2/pipeline"), (tmp_path / "2/pipeline/README.md").read_text()
    assert (world.name, world.judge().config["architecture"]) == ("fashion-flow", "residual")
    for words in ("SD3Transformer2DModel", "text_encoder_3=None, tokenizer_3=None", "benchmarks/results/emoji.json"):
        assert words in card
    assert "UNet" not in card


def test_a_folder_without_judges_is_no_world(made: Path) -> None:
    assert load_world(made / "pipeline").judge().config["architecture"] == "residual"
    with pytest.raises(MissingError, match="no world"):
        load_world(made / "denoiser")


def test_a_few_step_model_is_a_world_of_its_own_with_the_recipe_of_its_teacher(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(WORLDS, "fashion-few", raising=False)
    with pytest.raises(MissingError, match="consistency train fashion"):
        load("fashion-few")
    shutil.copytree(made / "pipeline", tmp_path / "few")
    write_json(tmp_path / "few" / "training.json", {"name": "fashion-few"})
    monkeypatch.setitem(WORLDS, "fashion-few", tmp_path / "few")
    world = load_world("fashion-few")
    assert (world.name, world.folder) == ("fashion-few", tmp_path / "few")
    assert world.source is load_world("fashion").source
    assert not world.edits.exists(), "what is done to its teacher does not fit it"


def test_a_world_of_an_unknown_recipe_is_refused(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "pipeline", tmp_path / "copy")
    (tmp_path / "copy" / "training.json").write_text('{"name": "hats"}')
    with pytest.raises(BrokenError, match=r"training\.json names no recipe of fashion"):
        load_world(tmp_path / "copy")


def test_shifting_moves_each_image_by_its_own_offset() -> None:
    images = torch.arange(2 * 1 * 8 * 8.0).view(2, 1, 8, 8)
    moved = shifted(images, torch.tensor([[1, 0], [0, -2]]))
    assert torch.equal(moved[0], images[0].roll(1, 1))
    assert torch.equal(moved[1], images[1].roll(-2, 2))


def test_feature_distance_is_zero_for_equal_images_and_sees_blur() -> None:
    torch.manual_seed(0)
    judge = Judge(width=8, num_features=8, classes=("a", "b"))
    images = torch.rand(4, 1, 32, 32) * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    assert float(feature_distance(judge, images, images).detach()) == 0
    assert float(feature_distance(judge, blurred, images).detach()) > 0.01


def test_what_is_perceived_of_latents_is_that_of_their_images_and_gradients_reach_them() -> None:
    pipe, judge = load("fashion"), load_world("fashion").judge()
    before = [p.requires_grad for p in pipe.vae.parameters()]
    latents = torch.randn(2, *latent_shape(pipe), generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    seen = perceiver(pipe.vae, judge)(latents)
    assert [p.requires_grad for p in pipe.vae.parameters()] == before
    images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(seen, judge.perceive(images), strict=True))
    seen[-1].sum().backward()
    assert float(latents.grad.abs().min(dim=0).values.max()) > 0


@pytest.mark.parametrize("architecture", ["residual", "plain"])
def test_judges_have_features_and_logits_of_one_pass(architecture: str, tmp_path: Path) -> None:
    judge = Judge(architecture, width=8, num_features=12, classes=("a", "b", "c")).eval()
    images = torch.randn(5, 1, 32, 32)
    features, logits = judge_images(judge, images, batch_size=2)
    assert (features.shape, logits.shape) == ((5, 12), (5, 3))
    torch.testing.assert_close(judge(images), logits)
    judge.save_pretrained(tmp_path)
    torch.testing.assert_close(Judge.from_pretrained(tmp_path)(images), logits)
    with pytest.raises(ValueError, match="architecture"):
        Judge("deep")


class TestEmbedded:
    """The fashion world as it is shipped."""

    def test_plain_diffusers_and_logsnr_agree(self) -> None:
        pipe = StableDiffusionPipeline.from_pretrained(WORLDS["fashion"])
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        prompts = ["a photo of a sneaker", "a dark coat"]
        stock = pipe(
            prompts, num_inference_steps=12, guidance_scale=2.0, generator=generators, output_type="latent"
        ).images
        ours = sample(load("fashion"), prompts, seeds=[1, 2], config=SampleConfig(steps=12))
        assert (ours.latents - stock).abs().max() <= 1e-4

    def test_the_autoencoder_and_the_judges_know_real_images(self) -> None:
        world, pipe, test = load_world("fashion"), load("fashion"), load_fashion("test")
        batch = test.take(torch.arange(500))
        made = reconstruct(pipe.vae, batch["image"])
        assert float((made - batch["image"]).abs().mean()) < 0.06
        for second in (False, True):
            judge = world.judge(second=second)
            for images, least in ((batch["image"], 0.9), (made, 0.88)):
                right = judge_images(judge, images)[1].argmax(1) == batch["label"]
                assert float(right.float().mean()) >= least

    def test_synonyms_and_held_out_templates_are_understood(self) -> None:
        world, pipe = load_world("fashion"), load("fashion")
        judge = world.judge(second=True)
        prompts = [f"a photo of a {synonym}" for names in NAMES for synonym in names]
        prompts += [
            world.captions.prompt(label, template, held_out=True) for label in range(10) for template in range(3)
        ]
        labels = torch.tensor([label for label in range(10) for _ in range(3)] * 2)
        made = sample(pipe, prompts, seeds=range(60), config=SampleConfig(steps=10))
        right = judge_images(judge, made.images)[1].argmax(1) == labels
        assert float(right.float().mean()) >= 0.8

    def test_the_card_states_data_licence_and_figures(self) -> None:
        card = (WORLDS["fashion"] / "README.md").read_text()
        for word in ("Fashion-MNIST", "MIT", "seconds", "Frechet"):
            assert word in card
        assert load_world("fashion").card["real_test_accuracy"] > 0.9

    def test_the_card_is_what_its_records_give(self, tmp_path: Path) -> None:
        shutil.copy(WORLDS["fashion"] / "training.json", tmp_path)
        write_card(tmp_path, load_world("fashion").card)
        assert (tmp_path / "README.md").read_text() == (WORLDS["fashion"] / "README.md").read_text()
