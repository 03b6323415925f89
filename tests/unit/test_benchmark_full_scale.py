"""The protocols for real weights, on tiny random models: they run whole, and say what they need."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines import tiny_sd
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

from logsnr.models.delta import Delta


def script(name: str) -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "full_scale" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"full_scale_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def models(tmp_path: Path) -> tuple[str, str]:
    """A tiny pipeline, and a classifier of four classes whose labels hold several names each."""
    tiny_sd().save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    names = ["boot, bootie", "sneaker", "bag, handbag", "Coat"]
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], id2label=dict(enumerate(names)))
    ResNetForImageClassification(config).save_pretrained(tmp_path / "judge")
    ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / "judge")
    return str(tmp_path / "model"), str(tmp_path / "judge")


def test_objects_are_erased_and_judged(models: tuple[str, str], tmp_path: Path) -> None:
    erasure, (model, judge) = script("erasure"), models
    arguments = ["--model", model, "--judge", judge, "--erased", "boot", "--kept", "coat", "Bag", "--device", "cpu"]
    dry = erasure.run(erasure.parse([*arguments, "--dry-run", "--out", str(tmp_path / "dry")]))
    assert not (tmp_path / "dry").exists()
    assert set(dry["per_concept"]) == {"boot, bootie", "bag, handbag", "Coat"}
    assert dry["per_concept"]["boot, bootie"]["erased"]
    assert all(found["images"] == 2 for found in dry["per_concept"].values())
    more = ["--num-images", "3", "--steps", "2", "--train-steps", "1", "--out", str(tmp_path / "out")]
    found = erasure.run(erasure.parse([*arguments, *more]))
    assert all(row["images"] == 3 for row in found["per_concept"].values())
    assert found["cost"]["evaluation_equivalents"] > 0
    assert Delta.from_pretrained(tmp_path / "out" / "delta").record.targets == ("boot",)
    assert (tmp_path / "out" / "result.json").exists()
    with pytest.raises(SystemExit, match="ImageNet"):
        erasure.run(erasure.parse([*arguments, "--kept", "house", "--dry-run"]))


def test_the_default_is_the_papers_protocol() -> None:
    options = script("erasure").parse(["--model", "m", "--judge", "j"])
    assert (options.num_images, options.steps, options.guidance_scale, options.method) == (500, 100, 7.5, "eap")
    assert len(options.erased) == len(options.kept) == 5
