"""``load``: an embedded world by name, or any diffusers folder, file or hub id; and the judges beside one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from logsnr.core.config import read_json
from logsnr.core.errors import BrokenError, InputError, MissingError
from logsnr.data.captions import Captions
from logsnr.data.fashion import NAMES
from logsnr.metrics.judge import Judge
from logsnr.models.pipeline import Pipeline, open_pipeline
from logsnr.solvers import scheduler as _scheduler  # noqa: F401  diffusers loads it by name from a saved folder

_HOME = Path(__file__).parent
WORLDS = {"fashion": _HOME / "fashion"}
PLANNED = ("fashion-few", "fashion-flow", "emoji")


@dataclass(frozen=True)
class World:
    """A trained pipeline's folder with its captions, and what its card measured."""

    name: str
    folder: Path
    captions: Captions

    @property
    def card(self) -> dict[str, float]:
        """The figures that the benchmark measured on this world; empty for one that was not measured yet."""
        path = self.folder / "card.json"
        return read_json(path) if path.exists() else {}

    def judge(self, *, second: bool = False) -> Judge:
        """A judge in float32; the second has another architecture and seed, and is the one that reports.

        Raises:
            MissingError: the folder has no judge.
            BrokenError: the judge's files are damaged.
        """
        folder = self.folder / ("judge_second" if second else "judge")
        if not folder.is_dir():
            raise MissingError(
                f"{self.folder} has no {folder.name}: use an embedded world or a folder that `train` made"
            )
        try:
            return Judge.from_pretrained(folder, local_files_only=True).float().eval().requires_grad_(False)
        except Exception as error:
            raise BrokenError(f"{folder} cannot be loaded ({type(error).__name__}): train the judge again") from error


def load(model: str | Path) -> Pipeline:
    """A diffusers pipeline in float32: an embedded world, a diffusers folder, a .safetensors file or a hub id.

    Raises:
        InputError: nothing of this name is known.
        MissingError: a hub id that cannot be reached.
        BrokenError: the folder or file is damaged.
        UnsupportedError: a pipeline of a kind that logsnr does not sample yet.
    """
    if str(model) in PLANNED:
        raise InputError(f"the world {str(model)!r} is planned and not there yet: use {', '.join(WORLDS)}")
    return open_pipeline(WORLDS.get(str(model), model))


def load_world(model: str | Path) -> World:
    """The world of a name, or of a folder that ``train`` made.

    Raises:
        MissingError: the model is no world: it has no judges.
    """
    folder = WORLDS.get(str(model), Path(model))
    if not (folder / "judge").is_dir():
        raise MissingError(
            f"{model} is no world, it has no judges beside it: use {', '.join(WORLDS)} or a `train` result"
        )
    return World(folder.name, folder, Captions(NAMES))
