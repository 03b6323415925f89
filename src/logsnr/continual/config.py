"""How a classifier and its generator learn experience after experience; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from logsnr.core.errors import InputError

Mode = Literal["none", "frozen", "mean", "learned"]
Start = Literal["most", "less", "mean", "noise", "medoid"]


@dataclass(frozen=True)
class ContinualConfig:
    """One run over a stream. ``STRATEGIES`` has combinations with a name."""

    memory: Literal["none", "all", "exemplars", "generator"] = "generator"
    """What an experience has of those before it: nothing, all their images, a few of them, or a generator."""
    generator: Literal["diffusion", "vae"] = "diffusion"
    """What replays: a diffusion model, or an autoencoder that is told the class. What is said below of sampling, of
    tokens, of dropped labels and of what is predicted is of diffusion alone."""
    exemplar_bytes: int = 0
    """exemplars: how much the kept images may weigh, as bytes of grey or colour values."""
    prototypes: Mode = "learned"
    """An image of each class that the generator reads: none, a training image, the mean image, or a learned one."""
    prototype_start: Start = "most"
    """Where a prototype begins: the training image that the classifier is most or least sure of, the mean image, noise,
    or the image nearest to the mean in the classifier's features."""
    prototype_size: int = 0
    """Its side in pixels, enlarged where it is read; 0 for that of the images."""
    prototype_storage: Literal["float32", "float16", "uint8"] = "float32"
    """What it is rounded to once its experience is over."""
    prototype_learning_rate: float = 1e-2
    pull_weight: float = 1e-2
    """How strongly a learned prototype is pulled to its start, in units of its learning rate."""
    conditioning: Literal["concat", "tokens", "both"] = "both"
    """Where the generator reads a prototype: as further channels of its input, as tokens of its text, or both."""
    projection: Literal["none", "gradient", "update"] = "update"
    """Whether keys and values of the cross-attention are kept on the tokens of old classes: by projecting gradients, as
    GPM does, or exactly, by projecting what a step did."""
    projected: Literal["values", "keys-values", "all"] = "keys-values"
    """Which weights of the cross-attention are projected; all has queries and outputs too, on samples of what they
    read, and so but nearly."""
    lone_token: bool = False
    """The class's vector is the only token, as in the released code: queries and keys then have no gradient."""
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    """What the generator predicts: the paper's noise, or v."""
    label_dropout: float = 0.2
    """How often a row is trained without its class."""
    distill_weight: float = 0.0
    """Weight of what the old generator says of replayed images."""
    nearest_class_weight: float = 0.0
    """Weight of the released code's pull of a new class's outputs towards those of the old class nearest to it, which
    it has at 1e-4."""
    images_per_class: int = 64
    """Replayed images of each old class, made once an experience."""
    redraws: int = 0
    """How often a replayed image that the old classifier reads as another class is drawn anew, at most."""
    sampling_steps: int = 20
    sampling_order: Literal[1, 2, 3, 4] = 2
    """Order of the solver that replays."""
    sampling_rho: float = 0.0
    """Its noise multiplier: 0 the ODE, 1 the backward SDE."""
    sampling_grid: Literal["log-snr", "log-snr-early", "time", "karras", "tangent"] = "log-snr"
    """Its levels."""
    guidance_scale: float = 2.0
    classifier_guidance: float = 0.0
    """Scale of the old classifier's gradient in replay (DDGR's way)."""
    soft_labels: float = 0.0
    """Share of the old classifier's word in what the new one learns of images of the memory; the rest is the label."""
    classifier_noise: float = 0.0
    """Greatest deviation of the noise that is added to all that the classifier learns from, each row with its own,
    so that faint noise a generator may leave behind tells it nothing of old and new."""
    classifier_epochs: int = 30
    classifier_learning_rate: float = 0.05
    classifier_batch: int = 64
    generator_steps: int = 600
    generator_learning_rate: float = 1e-3
    generator_batch: int = 64
    ema: float = 0.0
    """Decay of the average of the generator's weights, begun anew in each experience, that it has in the end; 0 for the
    last weights."""
    token_width: int = 128
    channels: tuple[int, ...] = (32, 64)
    """Channels of the generator's levels."""
    skip_last_generator: bool = False
    """Leave out the generator's training in the last experience, as the released code does."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        rates = (self.prototype_learning_rate, self.classifier_learning_rate, self.generator_learning_rate)
        if min(rates) <= 0 or self.prototype_size < 0:
            raise InputError("learning rates must be positive, and prototype_size not negative")
        if not 0 <= self.soft_labels <= 1:
            raise InputError(f"soft_labels is {self.soft_labels}: it is a share, from 0 to 1")
        if not (0 <= self.label_dropout < 1 and 0 <= self.ema < 1) or min(self._from_zero()) < 0:
            raise InputError(
                "label_dropout and ema are shares below 1, and weights, guidance and noise are not negative"
            )
        if self.redraws < 0 or self.sampling_rho < 0 or self.sampling_order not in (1, 2, 3, 4):
            raise InputError("redraws and sampling_rho must not be negative, and sampling_order be 1 to 4")
        if self.memory == "exemplars" and self.exemplar_bytes < 1:
            raise InputError("exemplars need bytes: say how many in exemplar_bytes")
        self._check_generator()
        if self.lone_token and self.conditioning != "concat":
            raise InputError("with a lone token prototypes have none: say conditioning concat")
        if any(width < 16 or width % 16 for width in self.channels) or not self.channels:
            raise InputError(f"channels are {self.channels}: they must be multiples of 16")

    def _check_generator(self) -> None:
        if self.generator not in ("diffusion", "vae"):
            raise InputError(f"there is no generator {self.generator!r}: say diffusion or vae")
        if self.generator == "diffusion":
            return
        if self.memory != "generator":
            raise InputError(
                f"memory {self.memory} has no generator: leave generator as it is, or set memory=generator"
            )
        if (self.prototypes, self.projection) != ("none", "none"):
            raise InputError("an autoencoder has no prototypes and no projection: set both to none")
        diffusion_only = ("classifier_guidance", "distill_weight", "nearest_class_weight", "ema", "lone_token")
        if set_ones := [name for name in diffusion_only if getattr(self, name)]:
            raise InputError(f"an autoencoder has no {set_ones[0]}: leave it at 0, or set generator=diffusion")

    @property
    def asks_classifier(self) -> bool:
        """Whether replay is led by a classifier, or refused by it."""
        return bool(self.classifier_guidance or self.redraws)

    def _from_zero(self) -> tuple[float, ...]:
        return (
            self.distill_weight,
            self.classifier_guidance,
            self.pull_weight,
            self.nearest_class_weight,
            self.classifier_noise,
        )


_COUNTS = (
    "images_per_class",
    "sampling_steps",
    "classifier_epochs",
    "classifier_batch",
    "generator_steps",
    "generator_batch",
    "token_width",
)
_PLAIN: dict[str, Any] = {"prototypes": "none", "projection": "none"}
_PAPER: dict[str, Any] = {"prototypes": "learned", "projection": "update"}
_PLUS: dict[str, Any] = {"guidance_scale": 1.0, "images_per_class": 256, "classifier_noise": 0.3, "soft_labels": 1.0}
STRATEGIES: dict[str, dict[str, Any]] = {
    "finetune": {"memory": "none"},
    "joint": {"memory": "all"},
    "er-state": {"memory": "exemplars"},
    "er-total": {"memory": "exemplars"},
    "replay": _PLAIN,
    "replay-plus": {**_PLAIN, **_PLUS},
    "replay-vae": {**_PLAIN, "generator": "vae"},
    "replay-guided": {**_PLAIN, "classifier_guidance": 1.0},
    "cpdm-frozen": {"prototypes": "frozen", "projection": "none"},
    "cpdm-learned": {"prototypes": "learned", "projection": "none"},
    "projection": {"prototypes": "none", "projection": "update"},
    "gppdm": _PAPER,
    "gppdm-plus": {**_PAPER, **_PLUS},
    "paper-cifar100": {
        "prototypes": "frozen",
        "projection": "none",
        "conditioning": "concat",
        "lone_token": True,
        "prediction": "epsilon",
        "nearest_class_weight": 1e-4,
        "images_per_class": 20,
        "sampling_steps": 100,
        "sampling_order": 1,
        "sampling_grid": "time",
        "guidance_scale": 4.0,
        "classifier_epochs": 100,
        "classifier_learning_rate": 1e-3,
        "classifier_batch": 256,
        "generator_steps": 15_000,
        "generator_learning_rate": 1e-4,
        "token_width": 768,
        "channels": (128, 128, 256, 256, 512, 512),
        "skip_last_generator": True,
    },
}
"""Options by the name of a strategy: no memory, all data, exemplars of equal bytes to a generator's state or to all of
it, generative replay, the same guided by the classifier as in DDGR, or by an autoencoder, with the released code's
prototypes (2312.06710), with ones that learn, with projection alone, and with both. Those named plus are ours: they
replay without guidance, with up to four times as many images (no more than a new class has are learned from), whose
labels are the old classifier's word, and the classifier learns from noisy images. ``paper-cifar100`` has the constants
of the released code for CIFAR-100 at 64 pixels, read there and not run by us, as far as options go: the classifier, one
layer a block, the place of the attention, no warm-up, no map before keys and values, and a prototype that is dropped
with its class are ours."""


def strategy(name: str, **changes: Any) -> ContinualConfig:
    """The configuration of a strategy, with changes.

    Raises:
        InputError: there is no such strategy, or exemplars without bytes.
    """
    if name not in STRATEGIES:
        raise InputError(f"there is no strategy {name!r}: use one of {', '.join(STRATEGIES)}")
    return replace(ContinualConfig(), **{**STRATEGIES[name], **changes})
