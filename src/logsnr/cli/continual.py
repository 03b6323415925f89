"""``logsnr continual``: learn class after class, and look at what was learned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from logsnr.cli.console import Console, Flag, check_writable, stop_on_signals
from logsnr.continual.config import ContinualConfig, strategy
from logsnr.core.errors import InputError, MissingError

if TYPE_CHECKING:
    from logsnr.data.labelled import LabelledData

Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True, kw_only=True)
class RunStream(Console):
    """Learn a data set a few classes at a time, with one strategy against forgetting."""

    benchmark: Literal["digits", "mnist5k", "fashion"] = "digits"
    """scikit-learn's digits at 8 pixels, 5,000 images of MNIST at 16, or Fashion-MNIST at 32."""
    strategy: str = "gppdm"
    """finetune, joint, er-state, er-total, replay, replay-vae, replay-guided, replay-plus, cpdm-frozen, cpdm-learned,
    projection, gppdm or gppdm-plus."""
    num_experiences: int = 5
    """Experiences of as many classes each."""
    order_seed: int = 0
    """Shuffles the order of the classes; 0 keeps their own."""
    seed: int = 0
    """Seed of networks, batches, noise and replay."""
    exemplar_bytes: int = 0
    """er-state, er-total: what the kept images may weigh."""
    options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Any other options of ContinualConfig, such as generator_steps=600 images_per_class=64."""
    out: Path = Path("out")
    """Folder of the run: a folder for each experience, result.json."""
    resume: Flag = False
    """Go on with the run in OUT."""

    def run(self) -> int:
        from logsnr.continual.learner import Learner
        from logsnr.core.artifact import write_json

        config = self._config()
        check_writable(self.out)
        if (self.out / "run.json").exists() and not self.resume:
            raise InputError(f"{self.out} holds a run already: add --resume, or choose another --out")
        learner = Learner(self._stream(), config, self.out)
        found = self._follow(learner)
        if found is None:
            return 130
        spent = sum(sum(each["seconds"].values()) for each in found["experiences"])
        values: dict[str, Any] = {"strategy": self.strategy, "benchmark": self.benchmark, "seed": self.seed, **found}
        values |= {"order_seed": self.order_seed, "seconds": round(spent, 1)}
        values["bytes"] = sum(found["experiences"][-1]["bytes"].values())
        write_json(self.out / "result.json", values)
        self.result(values, lines_of(values))
        return 0

    def _config(self) -> ContinualConfig:
        from logsnr.core.config import from_dict, to_dict

        given = dict(_pair(option) for option in self.options)
        if own := given.keys() & {"seed", "exemplar_bytes"}:
            raise InputError(f"{min(own)} has an option of its own: say --{min(own).replace('_', '-')}")
        extra = {"exemplar_bytes": self.exemplar_bytes} if self.exemplar_bytes else {}
        found = strategy(self.strategy, seed=self.seed, **extra)
        return from_dict(ContinualConfig, {**to_dict(found), **given})

    def _stream(self) -> list[Any]:
        from logsnr.data.stream import make_stream, split_classes

        train, test = _data(self.benchmark)
        return make_stream(train, test, split_classes(len(train.classes), self.num_experiences, self.order_seed))

    def _follow(self, learner: Any) -> dict[str, Any] | None:
        """The result behind a bar; None if a signal stopped it, its state saved."""
        from tqdm.auto import tqdm

        steps = learner.run()
        with stop_on_signals() as stop, tqdm(disable=self.quiet, unit=" steps") as bar:
            while True:
                try:
                    moment = next(steps)
                except StopIteration as ended:
                    return ended.value
                bar.set_description(f"experience {moment.experience}, {moment.phase}")
                bar.update()
                if stop:
                    steps.close()
                    self.say(f"stopped in experience {moment.experience}, state saved: add --resume to go on")
                    return None


def _pair(option: str) -> tuple[str, Any]:
    import json

    name, sign, value = option.partition("=")
    if not sign:
        raise InputError(f"{option!r} is no option: write it as NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _data(benchmark: str) -> tuple[LabelledData, LabelledData]:
    if benchmark == "digits":
        from logsnr.data.digits import load_digits

        return load_digits("train"), load_digits("test")
    if benchmark == "mnist5k":
        from logsnr.data.mnist import load_mnist5k

        return load_mnist5k("train"), load_mnist5k("test")
    from logsnr.data.fashion import load_fashion

    return load_fashion("train"), load_fashion("test")


def lines_of(values: dict[str, Any]) -> list[str]:
    """The result for a person."""
    rows = ["  ".join(f"{value:.3f}" for value in row) for row in values["accuracy_matrix"]]
    fell = values["forgetting_max"]
    return [
        "accuracy among all classes seen, a row an experience:",
        *rows,
        f"in the end {values['final_accuracy']:.3f}, mean over time {values['mean_accuracy']:.3f}, "
        f"forgetting {'undefined' if fell is None else f'{fell:.3f}'}",
        f"told which experience an image is of: {values['task_il']['final_accuracy']:.3f} in the end",
        f"{values['bytes']:,} bytes are carried to the next experience; {values['seconds']} s",
    ]


@dataclass(frozen=True, kw_only=True)
class SampleClasses(Console):
    """Draw images of classes with the generator of one experience."""

    run_folder: Run
    """A folder of one experience, such as out/experience-4."""
    classes: tuple[int, ...] = ()
    """Classes by number; all that the generator has a prototype or an experience of, without any."""
    per_class: int = 8
    """Images of each."""
    seed: int = 0
    """Seed of the noise."""
    sampling_steps: int = 20
    """Evaluations of each image; an autoencoder has one."""
    guidance_scale: float = 2.0
    """How closely diffusion follows the class."""
    out: Path = Path("out")
    """Folder of grid.png and images.safetensors."""

    def run(self) -> int:
        from logsnr.continual.replay import check_learned, replay
        from logsnr.continual.sources import open_source
        from logsnr.train.preview import image_grid, save_picture

        check_writable(self.out)
        source, told, names = open_source(self.run_folder)
        classes = self.classes or sorted(source.learned)
        check_learned(source, classes)
        if self.per_class < 1:
            raise InputError("per_class must be at least 1")
        chosen = {"images_per_class": self.per_class, "sampling_steps": self.sampling_steps, "seed": self.seed}
        config = replace(told, **chosen, guidance_scale=self.guidance_scale)
        made = replay(source, classes, names, experience=0, config=config)
        images = made.take(_all(len(made)))["image"]
        grid = save_picture(image_grid(images, columns=self.per_class), self.out / "grid.png")
        made.save(self.out / "images.safetensors")
        self.result({"grid": str(grid), "images": len(made)}, [f"{len(made)} images: {grid}"])
        return 0


def _all(count: int) -> Any:
    import torch

    return torch.arange(count)


@dataclass(frozen=True, kw_only=True)
class Inspect(Console):
    """Say what a run carries from experience to experience, and how much room its projection has left."""

    run_folder: Run
    """A folder of a run."""

    def run(self) -> int:
        from logsnr.core.artifact import load_tensors
        from logsnr.core.config import read_json

        done = sorted(self.run_folder.glob("experience-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        if not done:
            raise MissingError(f"{self.run_folder} holds no experience: give the --out of `continual run`")
        state = read_json(done[-1] / "state.json")
        kept = done[-1] / "projection.safetensors"
        bases = load_tensors(kept) if kept.exists() else {}
        ranks = {k.split("/")[0]: list(v.shape[::-1]) for k, v in bases.items() if k.endswith("/directions")}
        values = {"experiences": state["experiences"], "directions": ranks}
        lines = [
            f"experience {each['experience']}, classes {', '.join(map(str, each['classes']))}: "
            + ", ".join(f"{name} {size:,} B" for name, size in {**each["bytes"], **each["transient_bytes"]}.items())
            for each in state["experiences"]
        ]
        lines += [f"{kept} of {width} directions of {name} are kept" for name, (kept, width) in ranks.items()]
        self.result(values, lines)
        return 0


@dataclass(frozen=True, kw_only=True)
class Compare(Console):
    """Put the results of several runs in one table."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folders of finished runs."""
    replay_quality: Flag = False
    """Also measure what the runs' generators replay of each class as it ages, by a judge of all classes."""
    per_class: int = 64
    """With --replay-quality: images of each class, after each experience."""
    out: Path = Path("out")
    """With --replay-quality: folder of replays.json and replays.png."""

    def run(self) -> int:
        from logsnr.core.config import read_json

        if not self.runs:
            raise InputError("there is nothing to compare: give one folder of a run or more")
        found: dict[Path, Any] = {}
        for folder in self.runs:
            if not (folder / "result.json").exists():
                raise MissingError(f"{folder} holds no finished run: give the --out of `continual run`")
            found[folder] = read_json(folder / "result.json")
        rows = [{"run": str(folder), **{name: told[name] for name in _COLUMNS}} for folder, told in found.items()]
        lines = ["| run | " + " | ".join(_COLUMNS) + " |", "|---" * (len(_COLUMNS) + 1) + "|"]
        lines += ["| " + " | ".join(_cell(value) for value in row.values()) + " |" for row in rows]
        values: dict[str, Any] = {"runs": rows}
        if self.replay_quality:
            values["replays"] = self._replays(found)
            lines.append(f"replay over the age of classes: {self.out / 'replays.png'}")
        self.result(values, lines)
        return 0

    def _replays(self, found: dict[Path, Any]) -> dict[str, Any]:
        """What each run's generators replay, and the judge's own accuracy."""
        from logsnr.continual.quality import ReplayQuality, judge_of_all
        from logsnr.continual.sources import holds_source
        from logsnr.core.artifact import write_json
        from logsnr.core.config import from_dict, read_json
        from logsnr.evaluation.plots import plot_replays
        from logsnr.train.preview import save_picture

        benchmarks = {told["benchmark"] for told in found.values()}
        if len(benchmarks) > 1:
            raise InputError(f"these runs learned {' and '.join(sorted(benchmarks))}: compare replay on one data set")
        if self.per_class < 2:
            raise InputError("per_class must be at least 2")
        if without := [folder for folder in found if not holds_source(folder / "experience-0")]:
            raise MissingError(f"{without[0]} has no generator: compare replay of runs that replay")
        check_writable(self.out)
        train, test = _data(benchmarks.pop())
        config = from_dict(ContinualConfig, read_json(self.runs[0] / "run.json")["config"])
        self.say("training a judge of all classes")
        judge, accuracy = judge_of_all(train, test, config)
        quality = ReplayQuality(train, test, judge)
        rows = {str(folder): quality.of_run(folder, per_class=self.per_class) for folder in found}
        values = {"judge_accuracy": accuracy, "judge_of": str(self.runs[0]), "runs": rows}
        write_json(self.out / "replays.json", values)
        save_picture(plot_replays(rows), self.out / "replays.png")
        return values


_COLUMNS = ("strategy", "seed", "final_accuracy", "mean_accuracy", "forgetting_max", "bytes", "seconds")


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)


_action = partial(tyro.conf.subcommand, prefix_name=False)
Action = (
    Annotated[RunStream, _action("run")]
    | Annotated[SampleClasses, _action("sample")]
    | Annotated[Inspect, _action("inspect")]
    | Annotated[Compare, _action("compare")]
)


@dataclass(frozen=True)
class Continual:
    """Learn class after class without forgetting, with a generator that replays what was."""

    action: Annotated[Action, tyro.conf.arg(name="")]

    def run(self) -> int:
        return self.action.run()
