"""Recipes of every world with tiny networks and a few steps, and their data sets with few images, for tests."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from logsnr.data.captions import pixel_factors
from logsnr.data.fashion import load_fashion
from logsnr.data.labelled import Labelled, LabelledData
from logsnr.worlds.config import EMOJI, FASHION, FASHION_FLOW, AutoencoderConfig, DenoiserConfig, JudgeConfig
from logsnr.worlds.data import EmojiPairs, Fashion, WorldData
from logsnr.worlds.flow_config import FlowDenoiserConfig


class FewFashion(Fashion):
    """Images that the embedded fashion was not trained on."""

    def training(self) -> WorldData:
        few, captions = self._images(0, 64), self.captions()
        sheet = [captions.prompt(label) for label in range(8)]
        return WorldData(few, lambda: pixel_factors(few.images, few.labels), captions, few, sheet)

    def measuring(self) -> tuple[Labelled, Labelled]:
        return self._images(0, 400), self._images(400, 600)

    def _images(self, first: int, end: int) -> Labelled:
        whole = load_fashion("test")
        return Labelled(whole.images[first:end], whole.labels[first:end], whole.classes)


TINY_FASHION = replace(
    FASHION,
    judge=JudgeConfig(width=8, num_features=8),
    judge_second=JudgeConfig("plain", width=8, num_features=8, seed=1),
    autoencoder=AutoencoderConfig(block_channels=(8, 8, 16)),
    denoiser=DenoiserConfig(block_channels=(16, 16), text_width=16, text_layers=1, heads=2),
    runs={
        stage: replace(run, steps=3, batch_size=8, checkpoint_every=1, preview_every=0, cpu=True)
        for stage, run in FASHION.runs.items()
    },
)
TINY_FLOW = replace(
    TINY_FASHION,
    name=FASHION_FLOW.name,
    keeps=FASHION_FLOW.keeps,
    denoiser=FlowDenoiserConfig(layers=2, heads=2, width=32, text_widths=(16, 8)),
    runs={**TINY_FASHION.runs, "denoiser": replace(TINY_FASHION.runs["denoiser"], preview_every=3)},
)


class FewEmoji(EmojiPairs):
    """One view of every pair, drawn once for all tests."""

    @cache  # noqa: B019  there is one
    def training(self) -> WorldData:
        return super().training()

    @cache  # noqa: B019
    def measuring(self) -> tuple[LabelledData, LabelledData]:
        return super().measuring()


FEW_EMOJI = FewEmoji(views=1, real_views=2, measured_views=1, test_views=1)
TINY_EMOJI = replace(
    EMOJI,
    judge=replace(EMOJI.judge, width=8, num_features=8),
    judge_second=replace(EMOJI.judge_second, width=8, num_features=8),
    autoencoder=replace(EMOJI.autoencoder, block_channels=(8, 8, 16)),
    denoiser=replace(EMOJI.denoiser, block_channels=(16, 16), text_width=16, text_layers=1, heads=2),
    runs={
        stage: replace(run, steps=2, batch_size=8, checkpoint_every=1, preview_every=2, cpu=True)
        for stage, run in EMOJI.runs.items()
    },
)
