"""How an erased concept is sought; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from logsnr.core.errors import InputError

Attack = Literal[
    "noise-probe",
    "image-to-image",
    "inversion",
    "own-prompt",
    "relearn",
    "relearn-lora",
    "unlearndiffatk",
    "p4d-n",
    "p4d-k",
    "ring-a-bell",
]
ATTACKS: tuple[Attack, ...] = get_args(Attack)


@dataclass(frozen=True)
class AttackConfig:
    """One attack and its budget."""

    attack: Attack = "inversion"
    """Other noise, a start from images, an embedding or a key of hiding's kind learned from them, training further, all
    weights or adapters, or searches for prompts."""
    num_images: int = 100
    """Images that are made and judged at every point of the curve."""
    num_references: int = 32
    """Real images of the concept that the attacker has."""
    first_seed: int = 0
    """Seed of the first image; the others follow."""
    sampling_steps: int = 10
    """Evaluations an image."""
    guidance_scale: float = 3.0
    rho: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5)
    """noise-probe: multipliers of the noise that is added on the way."""
    strengths: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    """image-to-image: times to which the references are noised before they are denoised."""
    steps: tuple[int, ...] = (0, 20, 50, 100, 200)
    """Attacks that train: steps after which images are made."""
    learning_rate: float = 5e-2
    """inversion: of the embedding, in units of its elements' size."""
    relearn_rate: float = 1e-3
    """relearn: of the weights, in units of their size."""
    prompt_rate: float = 2e-2
    """own-prompt: of the key."""
    prompt_size: float = 1.0
    """own-prompt: how large the numbers are that it starts from, in units of text's."""
    prompt_layers: str = "mid"
    """own-prompt: layers that read it: mid, midout or all."""
    prompt_half: Literal["both", "conditional"] = "both"
    """own-prompt: which halves of guidance read it."""
    lora_rank: int = 8
    """relearn-lora: rank of the adapters of cross-attention."""
    lora_rate: float = 5e-3
    """relearn-lora: of the adapters."""
    batch_size: int = 16
    """References in one step of training."""
    num_tokens: int | None = None
    """unlearndiffatk, p4d-n and ring-a-bell: tokens that are sought; 3 in front of the prompt, 16 that stand alone.
    own-prompt: of the key; 10."""
    rounds: int = 10
    """Searches for prompts: rounds, each followed by an image; unlearndiffatk has a time of noise for each."""
    iterations: int = 20
    """Searches for prompts: steps, or generations, in a round."""
    population: int = 50
    """ring-a-bell: prompts of a generation."""
    concept_scale: float = 3.0
    """ring-a-bell: how far a prompt's text is moved along the concept's direction."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.attack not in ATTACKS:
            raise InputError(f"there is no attack {self.attack!r}: use one of {', '.join(ATTACKS)}")
        if min(self.num_images, self.num_references, self.sampling_steps, self.batch_size) < 1:
            raise InputError("num_images, num_references, sampling_steps and batch_size must be at least 1")
        if self.prompt_size <= 0:
            raise InputError(f"prompt_size is {self.prompt_size}: it must be positive")
        if not (self.rho and self.strengths and self.steps) or not all(0 < t < 1 for t in self.strengths):
            raise InputError("an attack needs at least one rho, strength and number of steps; strengths lie in (0, 1)")
        if min(self.num_tokens or 1, self.rounds, self.iterations) < 1 or self.population < 2:
            raise InputError("num_tokens, rounds and iterations must be at least 1, population at least 2")
        if list(self.steps) != sorted(set(self.steps)) or self.steps[0] < 0:
            raise InputError(f"steps are {self.steps}: list them in rising order, from 0 on")
