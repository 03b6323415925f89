"""``logsnr attack``: how well an erasure holds, beside what the same attack does to the original."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from logsnr.attacks.config import AttackConfig
from logsnr.cli.console import Console, Model, check_writable
from logsnr.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Attack(Console):
    """Attack an erased world: the share of images that show the concept again, with a control on the original."""

    model: Model
    """An embedded world (fashion, emoji), or a folder that `train` made."""
    delta: tuple[Path, ...] = ()
    """Deltas of the erasure, in their order: folders that `erase` made."""
    attacking: Annotated[AttackConfig, tyro.conf.arg(name="")] = field(default_factory=AttackConfig)
    target: str | None = None
    """The erased concept to seek; by default the first that the deltas name."""
    unrelated: str | None = None
    """The concept of the control; by default a class that is not erased."""
    out: Path | None = None
    """Folder for result.json, a picture of the curve and report.html; without it nothing is written."""

    def run(self) -> int:
        from logsnr.attacks.world import attack_world
        from logsnr.core.artifact import write_json
        from logsnr.evaluation.attack_report import write_attack_report
        from logsnr.evaluation.erasure import class_labels
        from logsnr.evaluation.plots import plot_attack
        from logsnr.models.delta import Delta
        from logsnr.train.preview import save_picture
        from logsnr.worlds.load import load, load_world

        if not self.delta:
            raise InputError("an attack needs an edited model: say --delta DIR")
        if self.out:
            check_writable(self.out)
        start = time.monotonic()
        world, pipe, original = load_world(self.model), load(self.model), load(self.model)
        deltas = [Delta.from_pretrained(folder) for folder in self.delta]
        for delta in deltas:
            delta.merge(pipe)
        erased = class_labels([t for delta in deltas for t in delta.record.targets], world.captions.names)
        target = class_labels([self.target], world.captions.names)[0] if self.target else erased[0]
        other = self._unrelated(world, erased)
        found = asdict(attack_world(world, pipe, original, target, other, self.attacking))
        names = world.captions.names
        values = {
            **found,
            "target": names[target][0],
            "unrelated": names[other][0],
            "seconds": round(time.monotonic() - start, 1),
            "protocol": {"name": "attack", "model": self.model, "judge": "second", **asdict(self.attacking)},
        }
        if self.out:
            write_json(self.out / "result.json", values)
            picture = plot_attack(values)
            values["plot"] = str(save_picture(picture, self.out / "curve.png"))
            write_attack_report(self.out, values, picture)
        self.result(values, _lines(values))
        return 0

    def _unrelated(self, world: Any, erased: list[int]) -> int:
        from logsnr.evaluation.erasure import class_labels

        if self.unrelated:
            return class_labels([self.unrelated], world.captions.names)[0]
        return next(label for label in range(len(world.captions.names)) if label not in erased)


def _lines(values: dict[str, Any]) -> list[str]:
    (low, high), rate = values["success_interval"], values["success_rate"]
    return [
        f"{values['protocol']['attack']} on {values['target']}: {rate:.3f} ({low:.3f} to {high:.3f}); "
        f"control on {values['unrelated']} {values['control_rate']:.3f}",
        *(f"  {at:g}: {rate:.3f}" for at, rate in values["curve"]),
        f"{values['network_evaluations']:,} network evaluations, {values['seconds']} s",
    ]
