"""The attacker inside the training: texts that still reach a target are sought, and it is erased under them too.

Implemented: AdvUnlearn's search (2405.15234) of an embedding in front of the name, each from the one before. Ours is to
search the whole text, which any network has. Deviates: the network is trained, not the text encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from logsnr.attacks.tokens import encode_points, token_embeddings
from logsnr.core.random import generator
from logsnr.core.types import Level
from logsnr.erasure.config import EraseConfig, RobustConfig
from logsnr.erasure.scores import Scores
from logsnr.models.denoiser import Tree, select_rows

_TEXT = "encoder_hidden_states"


class Reaching(nn.Module):
    """One text a target, moved so that the network as it is being edited says of it what the original said of the name.

    ``points`` (targets, length, width) are what is moved; ``texts`` is the text of the names.
    """

    def __init__(self, scores: Scores, texts: Tree, points: Tensor, config: RobustConfig):
        super().__init__()
        self.scores, self.texts, self.config = scores, texts, config
        self.points = nn.Parameter(points.detach().clone())
        self.rate = config.rate * float(points.square().mean().sqrt())

    def read(self, rows: Tensor) -> Tree:
        """The text of a target a row (rows,), differentiable in its point."""
        return {**select_rows(self.texts, rows), _TEXT: self.points[rows]}

    def search(self, x: Tensor, told: Level, rows: Tensor) -> Tree:
        """The found texts for the targets of x, one a row, in the first rows; the names in the others."""
        scores, count = self.scores, max(1, round(self.config.share * len(rows)))
        x, first = x[:count], rows[:count]
        optimizer = torch.optim.Adam([self.points], lr=self.rate)
        with scores.spending("attack"):
            with torch.no_grad():
                aim = scores.output(scores.old, x, told, select_rows(self.texts, first))
            for _ in range(self.config.steps):
                loss = functional.mse_loss(scores.output(scores.still, x, told, self.read(first)), aim)
                (self.points.grad,) = torch.autograd.grad(loss, [self.points])  # the text encoder gathers none
                optimizer.step()
                scores.cost.backward_input += count
        names = select_rows(self.texts, rows)
        with torch.no_grad():
            return {**names, _TEXT: torch.cat([self.read(first)[_TEXT], names[_TEXT][count:]])}


class Prefixed(Reaching):
    """The text is that of a name with the point in front of it, as one more token."""

    def __init__(self, scores: Scores, texts: Tree, config: EraseConfig):
        self.names, known = config.targets, token_embeddings(scores.pipe)
        drawn = torch.randn((len(self.names), 1, known.shape[1]), generator=generator(config.run.seed, "prefix"))
        super().__init__(scores, texts, known.std() * drawn.to(known), config.robust)

    def read(self, rows: Tensor) -> Tree:
        targets, places = rows.unique(return_inverse=True)
        found = [encode_points(self.scores.pipe, self.names[row], self.points[row]) for row in targets.tolist()]
        return {**select_rows(self.texts, rows), _TEXT: torch.cat([text[_TEXT] for text in found])[places]}


def reaching(scores: Scores, texts: Tree, config: EraseConfig) -> Reaching | None:
    """What the configuration searches; None where it searches nothing.

    Raises:
        UnsupportedError: a prefix is asked for, and the network does not read the text of one CLIP encoder.
    """
    if config.robust.text == "none":
        return None
    if config.robust.text == "prefix":
        return Prefixed(scores, texts, config)
    return Reaching(scores, texts, texts[_TEXT], config.robust)
