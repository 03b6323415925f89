"""``logsnr demo``: sample, judge and verify the embedded world, and write one page that a person wants to look at."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logsnr.cli.console import Console, check_writable
from logsnr.core.errors import InputError

_PLANNED = ("consistency", "continual")
"""Parts that come one day, where they are not there yet."""


@dataclass(frozen=True, kw_only=True)
class Demo(Console):
    """Show what works here, on a real trained pipeline; trains nothing and finishes in under two minutes."""

    world: str = "fashion"
    """The embedded world to show."""
    out: Path = Path("out/demo")
    """Folder of report.html and demo.json."""
    judged: int = 200
    """Images that the judges see."""

    def run(self) -> int:
        from logsnr.cli.showcase import showcase
        from logsnr.core.artifact import write_file, write_json
        from logsnr.evaluation.report import render
        from logsnr.worlds.config import FEW_STEP

        if self.world in FEW_STEP:
            raise InputError(f"{self.world} is shown beside its teacher: say --world {FEW_STEP[self.world]}")
        check_writable(self.out)
        start = time.monotonic()
        parts = []
        for part in showcase(self.world, self.judged):
            parts.append(part)
            self.say(f"{part.name}: {part.section.summary} ({part.seconds:.1f} s)")
        seconds = round(time.monotonic() - start, 1)
        table = [("part", "figure", "seconds"), *((p.name, p.section.summary, f"{p.seconds:.1f}") for p in parts)]
        table += [(name, "planned", "") for name in _PLANNED if name not in {part.name for part in parts}]
        page = render(
            f"logsnr on {self.world}", f"Everything below was made here in {seconds} s.", _sections(parts, table)
        )
        write_file(self.out / "report.html", page)
        values: dict[str, Any] = {"report": str(self.out / "report.html"), "seconds": seconds}
        values |= {part.name: {**part.values, "seconds": round(part.seconds, 2)} for part in parts}
        write_json(self.out / "demo.json", values)
        failed = [part.name for part in parts if not part.passed]
        self.result(values, [f"{values['report']} after {seconds} s"] + [f"NOT as expected: {name}" for name in failed])
        return 1 if failed else 0


def _sections(parts: list[Any], table: list[tuple[str, str, str]]) -> list[Any]:
    from logsnr.evaluation.report import Section

    own = Section(
        "On a model of your own",
        "Any Stable Diffusion folder, file or hub id goes in; --dry-run prints evaluations, memory and time first.",
        commands=[
            'logsnr sample MODEL --prompt "a photo of a dog" --steps 12 --guidance-scale 7 --dry-run',
            'logsnr sample MODEL --prompt "a photo of a dog" --steps 12 --guidance-scale 7 --seeds 0-7 --out out',
            "logsnr train fashion --out runs/fashion --dry-run",
        ],
    )
    serve = Section(
        "As a server",
        "An API in the OpenAI Images format and a page at 127.0.0.1:7860, from the extra logsnr[serve]; the "
        "first command says where the administrator's token lies.",
        commands=[
            "logsnr serve fashion --db out/serve.db",
            "curl 127.0.0.1:7860/v1/images/generations -H 'Content-Type: application/json' "
            """-d '{"prompt": "a bag", "seed": 7}'""",
            "logsnr access add-key --db out/serve.db --label me --token-file out/me.token",
        ],
    )
    overview = Section("One line per part", "What was shown, and what is planned.", (), table)
    return [*(part.section for part in parts), overview, own, serve]
