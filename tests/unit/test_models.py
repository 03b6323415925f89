"""Models: guidance and counts of the denoiser, prompts to conditioning, tokenizers, averages, opening pipelines."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import DiTPipeline
from pipelines import SENTENCES, tiny_sd, tiny_sd3
from torch import Tensor, nn

from logsnr.core.errors import BrokenError, InputError, MissingError, UnsupportedError
from logsnr.core.types import Level
from logsnr.models.denoiser import Conditioning, NetworkDenoiser, join_trees, select_rows
from logsnr.models.ema import averaged
from logsnr.models.fingerprint import fingerprint
from logsnr.models.pipeline import check_pipeline, decode_latents, denoiser_of, encode_prompts, open_pipeline
from logsnr.models.text import build_text_encoder, build_tokenizer, token_ids
from logsnr.schedules.families import Flow, scaled_linear

LEVEL = Level(0.5, 0.8, 0.6)


def linear_network(xt: Tensor, timestep: Tensor, *, shift: Tensor) -> Tensor:
    return xt * 0.5 + shift.view(-1, 1) + timestep / 1000


def test_guidance_extrapolates_from_the_unconditional_output_and_counts_twice() -> None:
    xt = torch.randn(3, 4)
    cond = Conditioning({"shift": torch.ones(3)}, {"shift": torch.zeros(3)})
    denoiser = NetworkDenoiser(linear_network, scaled_linear(), "eps", lambda at: at.t * 1000, guidance_scale=3.0)
    eps = denoiser(xt, LEVEL, cond).eps
    torch.testing.assert_close(eps, xt * 0.5 + 3.0 + 0.5)
    assert (denoiser.nfe, denoiser.network_evaluations) == (1, 6)
    plain = NetworkDenoiser(linear_network, scaled_linear(), "eps", lambda at: at.t * 1000)
    torch.testing.assert_close(plain(xt, LEVEL, cond).eps, xt * 0.5 + 1.5)
    assert (plain.nfe, plain.network_evaluations) == (1, 3)


def test_new_conditioning_is_not_mistaken_for_the_last() -> None:
    denoiser = NetworkDenoiser(linear_network, scaled_linear(), "eps", lambda at: 0.0, guidance_scale=2.0)
    made = []
    for value in (1.0, 5.0):
        cond = Conditioning({"shift": torch.full((1,), value)}, {"shift": torch.zeros(1)})
        made.append(float(denoiser(torch.zeros(1, 1), LEVEL, cond).eps))
    assert made == [2.0, 10.0]


def test_trees_are_joined_and_cut_at_every_depth() -> None:
    tree = {"a": torch.arange(3), "b": {"c": torch.arange(6).view(3, 2)}}
    joined = join_trees(tree, tree)
    assert joined["b"]["c"].shape == (6, 2)
    assert select_rows(joined, slice(4, 6))["b"]["c"].tolist() == [[2, 3], [4, 5]]


def test_equal_prompts_are_encoded_once_and_rows_follow_the_prompts() -> None:
    pipe = tiny_sd()
    seen = []
    pipe.text_encoder.register_forward_pre_hook(lambda _, inputs, kwargs: seen.append(inputs[0]), with_kwargs=True)
    prompts = ["a photo of a bag", "a dark sneaker", "a photo of a bag"]
    cond = encode_prompts(pipe, prompts, negative="the small boot")
    assert [len(ids) for ids in seen] == [3]
    text = cond.values["encoder_hidden_states"]
    assert torch.equal(text[0], text[2])
    assert not torch.equal(text[0], text[1])
    alone = encode_prompts(pipe, ["a dark sneaker"], guided=False)
    torch.testing.assert_close(alone.values["encoder_hidden_states"][0], text[1])
    assert alone.unconditional is None
    assert cond.unconditional is not None
    negative = encode_prompts(pipe, ["the small boot"], guided=False).values["encoder_hidden_states"]
    torch.testing.assert_close(cond.unconditional["encoder_hidden_states"], negative.expand(3, -1, -1))


def test_sd3_conditioning_has_pooled_rows() -> None:
    cond = encode_prompts(tiny_sd3(), ["a photo of a bag", "a dark sneaker"])
    assert cond.values["pooled_projections"].shape == (2, 16)
    assert cond.values["encoder_hidden_states"].shape[0] == 2


def test_decoding_inverts_the_scaling_of_the_latents() -> None:
    pipe = tiny_sd3()
    latents = torch.randn(2, 4, 8, 8)
    images = decode_latents(pipe, latents)
    expected = pipe.vae.decode(latents / 0.5 + 0.1).sample.clamp(-1, 1)
    torch.testing.assert_close(images, expected)
    assert images.shape == (2, 1, 16, 16)


def test_equal_sentences_give_equal_token_ids_in_every_process() -> None:
    tied = [first + second for first in "abcdefgh" for second in "ijklmnop"]
    first, *others = (build_tokenizer(tied).backend_tokenizer.to_str() for _ in range(5))
    assert others == [first] * 4  # at random, two of 64 pairs that are equally frequent swap nearly always


def test_a_tokenizer_spells_its_own_words_as_one_token_and_others_by_letters(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(SENTENCES, max_length=8)
    assert tokenizer.tokenize("A photo of a sneaker") == ["a</w>", "photo</w>", "of</w>", "a</w>", "sneaker</w>"]
    assert len(tokenizer.tokenize("zebra")) > 1
    assert tokenizer.unk_token_id not in tokenizer.convert_tokens_to_ids(tokenizer.tokenize("zebra quux é 7"))
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert torch.equal(token_ids(again, ["running shoe", ""]), token_ids(tokenizer, ["running shoe", ""]))
    assert token_ids(tokenizer, ["bag " * 50]).shape == (1, 8)


def test_the_text_encoder_reads_word_order() -> None:
    tokenizer = build_tokenizer(SENTENCES, max_length=8)
    encoder = build_text_encoder(tokenizer, width=16, layers=1).eval()
    text = encoder(token_ids(tokenizer, ["dark bag", "bag dark"]))
    assert not torch.allclose(text.pooler_output[0], text.pooler_output[1])


def test_a_network_of_noise_is_asked_nothing_where_no_data_is_left() -> None:
    denoiser = NetworkDenoiser(linear_network, Flow(), "eps", lambda at: at.t)
    with pytest.raises(InputError, match="an eps network cannot start at alpha = 0"):
        denoiser(torch.ones(1, 1, 2, 2), Flow().level(1.0))
    assert denoiser.nfe == 0


def test_an_average_follows_with_the_decay_it_was_given() -> None:
    network = nn.Linear(1, 1, bias=False)
    network.register_buffer("count", torch.tensor(0))
    with torch.no_grad():
        network.weight.fill_(0.0)
    average = averaged(network, 0.5)
    values = []
    for step in range(1, 4):
        with torch.no_grad():
            network.weight.fill_(1.0)
        network.count.fill_(step)
        average.update_parameters(network)
        values.append(float(average.network.weight.detach()))
    assert values[0] == 1.0  # the first update copies
    assert average.network.count == 3
    with torch.no_grad():
        network.weight.fill_(0.0)
    average.update_parameters(network)
    decay = min(0.5, 4 / 13)
    assert float(average.network.weight.detach()) == pytest.approx(decay)


def test_opening_what_is_there_and_refusing_the_rest(tmp_path: Path) -> None:
    tiny_sd().save_pretrained(tmp_path / "sd")
    pipe = open_pipeline(tmp_path / "sd")
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.float32
    (tmp_path / "sd" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BrokenError, match="sd is no complete diffusers pipeline"):
        open_pipeline(tmp_path / "sd")
    with pytest.raises(InputError, match="there is no model"):
        open_pipeline("nowhere")
    with pytest.raises(MissingError, match="nobody/nothing"):
        open_pipeline("nobody/nothing")
    with pytest.raises(UnsupportedError, match="DiTPipeline"):
        check_pipeline(object.__new__(DiTPipeline))


def test_stable_diffusion_3_opens_without_its_t5_encoder(tmp_path: Path) -> None:
    saved = tiny_sd3()
    saved.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["text_encoder_3"] == [None, None]
    pipe = open_pipeline(tmp_path)
    assert (pipe.text_encoder_3, pipe.tokenizer_3) == (None, None)
    assert fingerprint(pipe.transformer) == fingerprint(saved.transformer)
    found, expected = (encode_prompts(each, ["a bag"], guided=False).values for each in (pipe, saved))
    torch.testing.assert_close(found, expected)
    shutil.rmtree(tmp_path / "text_encoder_2")
    with pytest.raises(BrokenError, match="no complete diffusers pipeline"):
        open_pipeline(tmp_path)


def test_half_precision_folders_open_in_float32(tmp_path: Path) -> None:
    tiny_sd().to(torch.float16).save_pretrained(tmp_path)
    pipe = open_pipeline(tmp_path)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}


def test_a_denoiser_uses_the_time_map_of_its_network() -> None:
    seen = []
    pipe = tiny_sd()
    pipe.unet.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[1])))
    denoiser = denoiser_of(pipe)
    cond = encode_prompts(pipe, ["a dark sneaker"], guided=False)
    for t in (1.0, 0.5, 0.001, 0.0123):
        denoiser(torch.zeros(1, 4, 8, 8), denoiser.schedule.level(t), cond)
    assert seen == pytest.approx([999, 499, 0, 11.3])


def test_threads_do_not_pad_each_others_prompts() -> None:
    pipe = tiny_sd()

    def shapes(length: int) -> set[tuple[int, ...]]:
        prompt = f"a photo of a {'dark ' * length}bag"  # longer than the window, so that it is also read whole
        texts = (encode_prompts(pipe, [prompt], guided=False).values for _ in range(50))
        return {tuple(text["encoder_hidden_states"].shape) for text in texts}

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(shapes, (1, 2))) == [{(1, 8, 16)}] * 2
