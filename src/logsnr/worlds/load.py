"""``load``: an embedded world by name, or any diffusers folder, file or hub id; and the judges beside one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from logsnr.core.config import read_json
from logsnr.core.errors import BrokenError, MissingError
from logsnr.data.captions import Wording
from logsnr.metrics.judge import Judge
from logsnr.models.pipeline import Pipeline, open_pipeline
from logsnr.worlds.card import recipe_of
from logsnr.worlds.config import FEW_STEP, RECIPES
from logsnr.worlds.data import SOURCES, Source

_HOME = Path(__file__).parent
_FOLDERS = {name: _HOME / name.replace("-", "_") for name in (*RECIPES, *FEW_STEP)}
WORLDS = {name: folder for name, folder in _FOLDERS.items() if (folder / "model_index.json").is_file()}
"""The embedded worlds: those recipes and few-step models whose weights are part of the package."""


@dataclass(frozen=True)
class World:
    """A trained pipeline's folder with its data set and captions, and what its card measured."""

    name: str
    folder: Path
    source: Source
    captions: Wording

    @property
    def edits(self) -> Path:
        """The folder of what is shipped to be done to it: ``deltas`` and ``hidden``; there may be none."""
        return _HOME / "edits" / self.name

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
        MissingError: a world that is not trained yet, or a hub id that cannot be reached.
        BrokenError: the folder or file is damaged.
        UnsupportedError: a pipeline of a kind that logsnr does not sample yet.
    """
    return open_pipeline(find_model(model))


def find_model(model: str | Path) -> str | Path:
    """The folder of an embedded world's name; anything else as it is.

    Raises:
        MissingError: a world whose weights are not part of this package yet.
    """
    name = str(model)
    if name in _FOLDERS and name not in WORLDS:
        made = f"train {name}" if name in RECIPES else f"consistency train {FEW_STEP[name]} --preset distil"
        raise MissingError(
            f"the world {name!r} has no weights in this package yet: `logsnr {made} --out runs/{name}` makes such a "
            f"pipeline, and runs/{name}/pipeline is then the model to give"
        )
    return WORLDS.get(name, model)


def is_world(model: str | Path) -> bool:
    """Whether a model is an embedded world, or a folder that ``train`` made: one with judges beside it."""
    return (Path(find_model(model)) / "judge").is_dir()


def load_world(model: str | Path) -> World:
    """The world of a name, or of a folder that ``train`` made.

    Raises:
        MissingError: the model is no world, having no judges; or a world that is not trained yet.
        BrokenError: it does not say by which recipe it was trained.
    """
    folder = Path(find_model(model))
    if not is_world(model):
        raise MissingError(
            f"{model} is no world, it has no judges beside it: use {', '.join(WORLDS)} or a `train` result"
        )
    recipe = recipe_of(folder)
    source = SOURCES[recipe.data]
    return World(recipe.name, folder, source, source.captions())
