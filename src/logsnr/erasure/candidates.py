"""Which concepts the adversary may choose from: near a target in the text encoder, and never the target itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from logsnr.core.artifact import write_json
from logsnr.core.config import from_dict, read_json, to_dict
from logsnr.core.errors import InputError, MissingError
from logsnr.erasure.config import CandidateConfig
from logsnr.models.denoiser import Tree
from logsnr.models.fingerprint import fingerprint
from logsnr.models.pipeline import Pipeline, encode_prompts

_ENDINGS = ("ing", "es", "ed", "er", "s", "")


@dataclass(frozen=True)
class Candidates:
    """The candidates of one target, nearest first, with their distances; and what was left out because of it."""

    target: str
    names: tuple[str, ...]
    distances: tuple[float, ...]
    excluded: tuple[str, ...]


def find_candidates(
    pipe: Pipeline, targets: Sequence[str], config: CandidateConfig, *, cache: Path | None = None
) -> list[Candidates]:
    """The candidates of each target; those of ``cache``, a file of ``keep_candidates``, where it has them of just this.

    Raises:
        InputError: no concept is left for a target, or the vocabulary is empty.
        MissingError: there is no vocabulary file.
    """
    words = read_vocabulary(pipe, config)
    if cache and cache.exists():
        known = read_json(cache)
        if known["key"] == _key(pipe, targets, words, config):
            return [from_dict(Candidates, found) for found in known["candidates"]]
    return _search(pipe, targets, words, config)


def keep_candidates(cache: Path, pipe: Pipeline, config: CandidateConfig, found: Sequence[Candidates]) -> None:
    """Write the candidates that were found with a configuration to a file, for ``find_candidates``."""
    key = _key(pipe, [one.target for one in found], read_vocabulary(pipe, config), config)
    write_json(cache, {"key": key, "candidates": [to_dict(one) for one in found]})


def _key(pipe: Any, targets: Sequence[str], words: list[str], config: CandidateConfig) -> str:
    """A hash of all that candidates follow from: the text encoders, the targets, the words and the options."""
    encoders = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    options = {**to_dict(config), "vocabulary": words}
    known = [[fingerprint(encoder) for encoder in encoders if encoder is not None], list(targets), options]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _search(pipe: Pipeline, targets: Sequence[str], words: list[str], config: CandidateConfig) -> list[Candidates]:
    banned = excluded_names(words, targets, config.exclude)
    distances = text_distances(pipe, targets, words, config.metric)
    near = (distances <= config.exclude_radius * distances.median(1, keepdim=True).values).any(0)
    banned |= {word for word, close in zip(words, near.tolist(), strict=True) if close}
    kept = [place for place, word in enumerate(words) if word not in banned]
    if not kept:
        raise InputError("no candidate is left after exclusion: give a larger vocabulary, or a smaller exclude_radius")
    return [
        _choose(pipe, target, [words[place] for place in kept], distances[row, kept], tuple(sorted(banned)), config)
        for row, target in enumerate(targets)
    ]


def read_vocabulary(pipe: Any, config: CandidateConfig) -> list[str]:
    """The concepts that are given, those of the file, or the words of the tokenizer; each once."""
    words: list[str] = []
    if isinstance(config.vocabulary, tuple):
        words = list(config.vocabulary)
    elif config.vocabulary:
        words = _read_lines(config.vocabulary)
    elif tokenizer := getattr(pipe, "tokenizer", None):
        ends = [token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>")]
        words = sorted(word for word in ends if len(word) > 2 and word.isalpha() and word.islower())
    if not words:
        raise InputError("there is no vocabulary: give concepts, or a file of one concept a line")
    return list(dict.fromkeys(words))


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise MissingError(f"{path} cannot be read: give a text file of one concept a line") from error
    return [line.strip() for line in lines if line.strip()]


def excluded_names(words: Iterable[str], targets: Sequence[str], more: Sequence[str]) -> set[str]:
    """The words that name a target: itself, any word of it, their inflections, and what the user lists."""
    stems = {stem for name in (*targets, *more) for part in (name, *name.split()) for stem in _stems(part)}
    return {word for word in words if _stems(word) & stems}


def _stems(word: str) -> set[str]:
    """A word in lower case without the endings that it may have."""
    lower = word.lower().strip()
    endings = [ending for ending in _ENDINGS if lower.endswith(ending) and len(lower) > len(ending) + 2]
    return {lower, *(lower.removesuffix(ending) for ending in endings)}


def text_distances(pipe: Pipeline, targets: Sequence[str], words: Sequence[str], metric: str = "l2") -> Tensor:
    """Distances (targets, words) between the texts of prompts, flattened: ``l2`` or ``cosine``."""
    # A long vocabulary in parts: only the distances of all words are held, not their embeddings.
    aims = _embed(pipe, targets)
    return torch.cat([_distances(aims, _embed(pipe, part), metric) for part in _parts(words)], 1)


def _parts(words: Sequence[str], size: int = 500) -> list[Sequence[str]]:
    return [words[first : first + size] for first in range(0, len(words), size)]


def _embed(pipe: Pipeline, words: Sequence[str]) -> Tensor:
    return _flat(encode_prompts(pipe, words, guided=False).values)


def _flat(tree: Tree) -> Tensor:
    """The text of each prompt as one vector (n, length x width)."""
    return tree["encoder_hidden_states"].flatten(1).float()


def _distances(aims: Tensor, words: Tensor, metric: str) -> Tensor:
    """Distances (targets, words)."""
    if metric == "cosine":
        return 1 - torch.nn.functional.normalize(aims) @ torch.nn.functional.normalize(words).T
    return torch.cdist(aims, words, compute_mode="donot_use_mm_for_euclid_dist")


def _choose(
    pipe: Pipeline, target: str, words: list[str], distances: Tensor, excluded: tuple[str, ...], config: CandidateConfig
) -> Candidates:
    order = distances.argsort(stable=True)[: config.k_closest].tolist()
    near = torch.tensor([distances[place] for place in order], dtype=torch.float64)
    count = min(config.num_centers, len(order))
    if config.sampler == "all" or len(order) <= config.num_centers:
        picked = list(range(len(order)))
    elif config.sampler == "topk":
        picked = list(range(count))
    elif config.sampler == "distance_kmeans":
        picked = representatives(near[:, None], count)
    else:
        picked = representatives(_embed(pipe, [words[place] for place in order]).double(), count)
    names = tuple(words[order[place]] for place in picked)
    return Candidates(target, names, tuple(near[picked].tolist()), excluded)


def representatives(points: Tensor, count: int) -> list[int]:
    """The places of the points (n, d) nearest to each of ``count`` k-means centres, each once, ascending."""
    centres = KMeans(count, random_state=0, n_init=10).fit(points.numpy()).cluster_centers_
    return sorted(set(torch.cdist(torch.from_numpy(centres).double(), points).argmin(1).tolist()))
