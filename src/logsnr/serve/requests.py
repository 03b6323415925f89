"""What the API takes, field by field: numbers, words and names, never a tensor, a key or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from logsnr.solvers.config import SampleConfig

Name = Annotated[str, Field(min_length=1, max_length=100)]
Moment = Annotated[str | None, Field(max_length=40, examples=["2027-01-31T00:00:00+00:00"])]
Grid = Literal["scheduler", "time", "log-snr", "log-snr-early", "karras", "beta", "tangent", "ays-sd", "ays-sdxl"]
_EXAMPLE: Any = {"prompt": "a photo of a sandal", "n": 1, "seed": 7, "num_inference_steps": 20, "unlock": ["sandal"]}


class ImageRequest(BaseModel):
    """A request for images, in the OpenAI Images format with what diffusion needs besides."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [_EXAMPLE]})

    prompt: str = Field(max_length=2000)
    model: Name | None = Field(None, description="The model of this server; it may be left out.")
    n: int = Field(1, ge=1, le=64, description="Images, of seeds that count up from seed.")
    size: str = Field("auto", max_length=20, description="auto, or the model's own, as width x height.")
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"
    seed: int | None = Field(None, ge=0, lt=2**32, description="Of the first image; without it, a random one.")
    num_inference_steps: int | None = Field(
        None, ge=1, le=1000, validation_alias=AliasChoices("num_inference_steps", "steps")
    )
    guidance_scale: float | None = Field(None, ge=0, le=100)
    negative_prompt: str = Field("", max_length=2000)
    rho: float | Literal["ode", "sde", "bump"] = Field(0.0, description="Noise of the backward SDE; 0 is the ODE.")
    order: int = Field(2, ge=1, le=4)
    corrector: bool = False
    variant: Literal["heun", "midpoint"] = "midpoint"
    grid: Grid = "scheduler"
    solver: str | None = Field(None, pattern=r"^[a-z][a-z-]{0,30}/[0-9]{1,3}$", description="A table, as fashion/5.")
    delta: Name | None = Field(None, description="A change of the model that this server knows, by its name.")
    unlock: Annotated[list[Name], Field(max_length=16)] | Literal["auto"] = Field(
        default_factory=list, description="Concepts that the token unlocks; auto: all that it does."
    )
    stream: bool = Field(False, description="Answer with server-sent events.")
    partial_images: int = Field(0, ge=0, le=20, description="stream: pictures of the run on its way.")
    user: str | None = Field(None, max_length=200, description="Taken, and not looked at.")

    def sampling(self, steps: int, guidance: float) -> SampleConfig:
        """How to sample, with the server's own steps and guidance where none are said.

        Raises:
            InputError: options that do not go together.
        """
        names = ("rho", "order", "corrector", "variant", "grid")
        told: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.num_inference_steps or not self.solver:
            told["steps"] = self.num_inference_steps or steps
        told["guidance_scale"] = guidance if self.guidance_scale is None else self.guidance_scale
        return SampleConfig(**told, solver=Path(self.solver) if self.solver else None, negative=self.negative_prompt)


class Made(BaseModel):
    """One image: a PNG file in base64, which carries its settings, and its seed."""

    b64_json: str
    seed: int


class ImageResponse(BaseModel):
    """Images, in the OpenAI Images format, and what they cost."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"created": 1800000000, "data": [{"b64_json": "iVBORw0...", "seed": 7}]}]}
    )

    created: int
    data: list[Made]
    output_format: Literal["png"] = "png"
    size: str = "32x32"
    nfe: int = Field(20, description="Steps of the solver.")
    network_evaluations: int = Field(40, description="Samples through the network; a guided step has two.")


class KeyRequest(BaseModel):
    """A new key for a person or a program."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"role": "member", "label": "Ann", "concepts": ["sandal"]}]},
    )

    role: Literal["admin", "member", "auditor"]
    label: str = Field("", max_length=200, description="For people: whose it is.")
    concepts: list[Name] = Field(default_factory=list, max_length=16, description="Granted at once; members only.")
    images_per_day: int | None = Field(None, ge=1, le=10**9)
    not_after: Moment = None


class GrantRequest(BaseModel):
    """A concept for a member's key."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"key": "df599da4e22eaefb", "concept": "sandal"}]},
    )

    key: Name
    concept: Name
    not_after: Moment = None
