"""``explain``, ``information`` and ``calibrate`` through the command line, and ``sample`` with what they made."""

from __future__ import annotations

import contextlib
import io
import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image
from pipelines import tiny_sd, tiny_sd3

from logsnr.cli.console import Console
from logsnr.cli.main import main
from logsnr.core.artifact import write_json

TINY = ("--num-fit", "4", "--num-selection", "2", "--num-gate", "2", "--reference-steps", "8", "--rivals", "1")
BUDGET = (
    "--calls",
    "44",
    "--batch-size",
    "8",
    "--curve-levels",
    "4",
    "--curve-batches",
    "2",
    "--levels",
    "4",
    "--ode-steps",
    "1",
)


def called(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return code, out.getvalue(), err.getvalue()


def no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is no JSON")


def result(*arguments: str) -> dict[str, Any]:
    """What a command prints: one line of strict JSON."""
    code, out, err = called(*arguments, "--json")
    assert code == 0, err
    assert out.count("\n") == 1
    return json.loads(out, parse_constant=no_constant)


def assert_refused(*arguments: str) -> str:
    """Exit code 2, one line, nothing on stdout."""
    code, out, err = called(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err


def test_a_warning_is_one_line(tmp_path: Path) -> None:
    code, _, err = called(
        "explain", "fashion", "--steps", "3", "--order", "3", "--grid", "karras", "--out", str(tmp_path)
    )
    assert code == 0
    assert err.startswith("logsnr: warning: order 3 on the grid karras extrapolates far")
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A table of four steps for the embedded world, at the default guidance."""
    out = tmp_path_factory.mktemp("calibrated")
    return result("calibrate", "fashion", "--steps", "4", *TINY, "--out", str(out))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A pipeline of random weights that is no world."""
    tiny_sd().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def flow(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name under which ``load`` finds a flow model of random weights."""
    monkeypatch.setattr("logsnr.worlds.load.load", lambda _model: tiny_sd3())
    return "flow"


@pytest.fixture(autouse=True)
def few_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding ten thousand images for the reference would take most of the time."""
    monkeypatch.setattr("logsnr.evaluation.information.REFERENCE_IMAGES", 400)


def test_explain_tells_the_levels_and_draws_them(tmp_path: Path) -> None:
    values = result("explain", "fashion", "--steps", "5", "--grid", "tangent", "--out", str(tmp_path))
    assert {"levels", "plot", "sigmas", "times", "nfe"} <= values.keys()
    assert (values["nfe"], len(values["levels"])) == (5, 6)
    assert all({"t", "alpha", "sigma", "log_snr"} <= row.keys() for row in values["levels"])
    assert all(a["t"] > b["t"] for a, b in pairwise(values["levels"]))
    assert values["levels"][-1]["log_snr"] == "inf"
    assert values["sigmas"][-1] == values["times"][-1] == 0
    assert Image.open(values["plot"]).size[0] > 300


def test_explain_tells_a_person_the_same(tmp_path: Path) -> None:
    code, out, err = called("explain", "fashion", "--steps", "3", "--out", str(tmp_path))
    assert (code, err) == (0, "")
    assert "timestep" in out
    assert len([line for line in out.splitlines() if line.startswith("  ")]) >= 4


def test_explain_shows_the_step_of_the_corrector(tmp_path: Path) -> None:
    command = ["explain", "fashion", "--steps", "3", "--out", str(tmp_path)]
    assert all("corrected" not in row for row in result(*command)["levels"])
    rows = result(*command, "--corrector")["levels"]
    assert ["corrected" in row for row in rows] == [False, True, True, False]
    assert rows[1]["corrected"].keys() == {"linear", "values", "noise"}
    lines = [line for line in called(*command, "--corrector")[1].splitlines() if line.startswith("corrected")]
    shown = [
        [round(row["corrected"]["linear"], 4), *(round(x, 4) for x in row["corrected"]["values"])] for row in rows[1:3]
    ]
    assert [[float(word) for word in line.split()[1:]] for line in lines] == shown


def test_explain_of_a_flow_model_starts_at_infinite_noise(flow: str, tmp_path: Path) -> None:
    values = result("explain", flow, "--steps", "3", "--out", str(tmp_path))
    assert values["sigmas"][0] == "inf"
    assert values["levels"][0]["log_snr"] == "-inf"
    assert values["times"][0] == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [(["0.5"], ["0.5", "0.5", "0.5"]), (["sde"], ["1"]), (["ode"], ["0"]), (["1"], ["1", "1", "0"])],
)
def test_rho_is_a_number_a_list_or_a_preset(tmp_path: Path, one: list[str], other: list[str]) -> None:
    """The last step ends at clean data and draws no noise, whatever rho says there."""
    command = ["explain", "fashion", "--steps", "3", "--out", str(tmp_path)]
    first, second = (result(*command, "--rho", *rho)["levels"] for rho in (one, other))
    assert first == second
    noisy = [row["noise"] > 0 for row in first[:-1]]
    assert noisy == [one != ["ode"]] * 2 + [False]


def test_rho_as_a_list_and_as_a_preset_makes_images(tmp_path: Path) -> None:
    command = ["sample", "fashion", "--prompt", "a bag", "--steps", "3", "--seeds", "0-1"]
    lists = (["0.1", "0.2", "0"], ["sde"])
    made = [result(*command, "--out", str(tmp_path / rho[0]), "--rho", *rho) for rho in lists]
    records = [json.loads(Path(values["record"]).read_text()) for values in made]
    assert [record["sampling"]["rho"] for record in records] == [[0.1, 0.2, 0.0], "sde"]
    first, second = (np.asarray(Image.open(values["grid"]), dtype=int) for values in made)
    assert abs(first - second).max() > 1


def test_information_prints_values_with_their_errors(tmp_path: Path) -> None:
    values = result("information", "fashion", *BUDGET, "--quiet", "--out", str(tmp_path))
    assert {
        "mmse",
        "bits_per_dim",
        "bits_per_dim_stderr",
        "mutual_information",
        "network_calls",
        "plot",
    } <= values.keys()
    assert {"convention", "mutual_information_stderr", "protocol", "noise_information"} <= values.keys()
    assert {"nats_ode", "bits_per_dim_ode", "bits_per_dim_ode_stderr"} <= values.keys()
    assert values["network_calls"] <= 44
    assert values["sample_evaluations"] == 8 * values["network_calls"]
    assert [row["mmse"] for row in values["mmse"]] == sorted((row["mmse"] for row in values["mmse"]), reverse=True)
    assert values["bits_per_dim_stderr"] > 0
    assert Image.open(values["plot"]).size[0] > 300
    assert json.loads((tmp_path / "information.json").read_text()) == values


def test_information_tells_a_person_the_convention(tmp_path: Path) -> None:
    code, out, err = called("information", "fashion", *BUDGET, "--out", str(tmp_path))
    assert (code, "batches" in err) == (0, True)
    assert "bits per latent dimension" in out
    assert "upper bound" in out
    assert "nats about the label" in out


def test_calibrate_writes_a_table_at_the_price_it_named(calibrated: dict[str, Any], tmp_path: Path) -> None:
    keys = {"solver", "sigmas", "network_evaluations", "error_before", "error_after"}
    assert keys | {"times", "gate", "winner", "grid_only", "grid_share", "error_now"} <= calibrated.keys()
    assert calibrated["error_after"] <= calibrated["error_before"] <= calibrated["error_now"]
    assert len(calibrated["sigmas"]) == 5
    assert all(a > b for a, b in pairwise(calibrated["sigmas"]))
    table = json.loads(Path(calibrated["solver"]).read_text())
    assert (len(table["log_snr"]), table["guidance_scale"]) == (4, 2)
    out = tmp_path / "out"
    command = ["calibrate", "fashion", "--steps", "4", *TINY, "--guidance-scale", "2", "--out", str(out)]
    dry = result(*command, "--dry-run")
    assert dry["network_evaluations"] >= calibrated["network_evaluations"]
    free = result(*command[:-4], "--guidance-scale", "1", "--out", str(out), "--dry-run")
    assert dry["network_evaluations"] == 2 * free["network_evaluations"]
    assert not out.exists()


def test_calibrate_stays_within_a_budget(tmp_path: Path) -> None:
    asked = ("calibrate", "fashion", "--steps", "2", "--budget", "1500", "--out", str(tmp_path))
    promised = result(*asked, "--dry-run")["network_evaluations"]
    assert result(*asked, "--quiet")["network_evaluations"] <= promised <= 1500
    assert "give --budget, or sizes, not both" in assert_refused(*asked, "--num-fit", "20")
    assert "too small for 9 steps" in assert_refused("calibrate", "fashion", "--steps", "9", "--budget", "99")


def test_calibrate_matches_the_real_images_of_a_world(tmp_path: Path) -> None:
    small = ("--matching.num-fit", "40", "--matching.num-selection", "40", "--matching.num-real", "300")
    command = ("calibrate", "fashion", "--steps", "2", "--guidance-scale", "1", "--out", str(tmp_path), *TINY)
    asked = (*command, "--match", *small, "--matching.rounds", "1")
    price = result(*asked, "--dry-run")["network_evaluations"]
    found = result(*asked, "--quiet")
    assert found["network_evaluations"] <= price
    assert found["frechet_after"] < found["frechet_before"]
    table = json.loads(Path(found["solver"]).read_text())
    assert table["record"] == {name: found[name] for name in ("frechet_before", "frechet_after")}
    assert result(
        "sample",
        "fashion",
        "--prompt",
        "a sneaker",
        "--out",
        str(tmp_path),
        "--solver",
        found["solver"],
        "--guidance-scale",
        "1",
    )


def test_a_bad_option_of_matching_is_named() -> None:
    said = assert_refused("calibrate", "fashion", "--match", "--matching.num-fit", "10")
    assert said.removeprefix("logsnr: ").startswith("matching needs at least 20")


def test_matching_needs_real_images(folder: str) -> None:
    assert "no judges" in assert_refused("calibrate", folder, "--prompts", "a", "--match", "--quiet")


def test_calibrate_is_quiet_and_repeats_itself(calibrated: dict[str, Any], tmp_path: Path) -> None:
    command = ["calibrate", "fashion", "--steps", "4", *TINY, "--guidance-scale", "2", "--out", str(tmp_path)]
    code, out, err = called(*command, "--quiet")
    assert (code, err) == (0, "")
    assert "sigma / alpha:" in out
    assert f"`sample` without a table {calibrated['error_now']:.4f}, " in out
    mine, first = (json.loads(path.read_text()) for path in (tmp_path / "solver-4.json", Path(calibrated["solver"])))
    assert np.allclose(mine["log_snr"], first["log_snr"])


def test_calibrate_needs_prompts_where_there_is_no_world(folder: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["calibrate", folder, "--steps", "3", *TINY, "--quiet", "--out", str(out)]
    assert_refused(*command)
    assert not out.exists()
    values = result(*command, "--prompts", "a photo of a bag", "a dark sneaker", "--negative", "a boot")
    assert json.loads(Path(values["solver"]).read_text())["negative"] == "a boot"


def test_calibrate_says_that_it_needs_prompts(folder: str, tmp_path: Path) -> None:
    command = ["calibrate", folder, "--steps", "3", *TINY, "--quiet", "--out", str(tmp_path / "out")]
    assert "--prompts" in assert_refused(*command)


def test_explain_shows_the_levels_of_a_table(calibrated: dict[str, Any], tmp_path: Path) -> None:
    values = result("explain", "fashion", "--solver", calibrated["solver"], "--out", str(tmp_path))
    assert values["nfe"] == 4
    assert values["sigmas"] == pytest.approx(calibrated["sigmas"])


def test_sample_runs_the_table(calibrated: dict[str, Any], tmp_path: Path) -> None:
    command = ["sample", "fashion", "--prompt", "a bag", "--seeds", "0-1", "--out", str(tmp_path)]
    values = result(*command, "--solver", calibrated["solver"])
    assert values["nfe"] == 4
    assert values["network_evaluations"] == 4 * 2 * 2
    record = json.loads(Path(values["record"]).read_text())
    assert record["sampling"]["solver"] == calibrated["solver"]
    assert len(record["levels"]) == 5


def test_a_dry_run_knows_the_steps_of_a_table(calibrated: dict[str, Any], tmp_path: Path) -> None:
    command = ["sample", "fashion", "--prompt", "a bag", "--out", str(tmp_path / "out"), "--dry-run"]
    values = result(*command, "--solver", calibrated["solver"])
    assert (values["nfe"], values["network_evaluations"]) == (4, 8)


def test_a_dry_run_takes_a_list_of_rho(tmp_path: Path) -> None:
    command = ["sample", "fashion", "--prompt", "a bag", "--out", str(tmp_path / "out"), "--dry-run"]
    assert result(*command, "--steps", "3", "--rho", "0.1", "0.2", "0")["nfe"] == 3


def test_calibrate_of_a_flow_model_prints_strict_json(flow: str, tmp_path: Path) -> None:
    values = result("calibrate", flow, "--prompts", "a bag", "--steps", "3", *TINY, "--out", str(tmp_path))
    assert values["error_now"] > 0
    assert values["sigmas"][0] == "inf"
    assert values["times"][0] == 1


@pytest.mark.parametrize(
    "command",
    [
        ["explain", "fashion", "--steps", "0"],
        ["explain", "fashion", "--rho", "-1"],
        ["explain", "fashion", "--rho", "0.5", "0.5"],
        ["explain", "fashion", "--rho", "loud"],
        ["explain", "fashion", "--grid", "spiral"],
        ["explain", "fashion", "--steps", "2000"],
        ["explain", "no-such-world"],
        ["information", "fashion", "--calls", "3"],
        ["information", "fashion", "--batch-size", "0"],
        ["information", "fashion", "--levels", "1"],
        ["information", "fashion", "--data", "clouds"],
        ["information", "no-such-world"],
        ["calibrate", "fashion", "--steps", "0"],
        ["calibrate", "fashion", "--steps", "61"],
        ["calibrate", "fashion", "--grids", "spiral"],
        ["calibrate", "fashion", "--grids"],
        ["calibrate", "fashion", "--ridges", "0"],
        ["calibrate", "fashion", "--rivals", "0"],
        ["calibrate", "fashion", "--num-gate", "1"],
        ["calibrate", "no-such-world", "--quiet"],
        ["calibrate", "fashion", "--guidance-scale", "nan", "--dry-run"],
    ],
    ids=" ".join,
)
def test_bad_options_are_one_line_and_write_nothing(tmp_path: Path, command: list[str]) -> None:
    out = tmp_path / "out"
    assert_refused(*command, "--out", str(out))
    assert not out.exists()


@pytest.mark.parametrize("verb", ["explain", "information", "calibrate"])
def test_an_unwritable_out_is_refused_before_any_work(tmp_path: Path, verb: str) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    assert "--out" in assert_refused(verb, "fashion", "--out", str(file / "below"))
    assert file.read_text() == "kept"


BROKEN = {
    "no JSON": lambda table: "{",
    "a list": lambda table: "[1]",
    "another format": lambda table: json.dumps({**table, "format": "logsnr solver table 0"}),
    "too few coefficients": lambda table: json.dumps({**table, "coefficients": [[1, 0, 0, 0]], "analytic": None}),
    "levels out of order": lambda table: json.dumps({**table, "log_snr": table["log_snr"][::-1]}),
    "words for levels": lambda table: json.dumps({**table, "log_snr": ["a", "b", "c", "d"]}),
}


@pytest.mark.parametrize("verb", ["explain", "sample"])
@pytest.mark.parametrize("name", [*BROKEN, "not there", "a folder"])
def test_a_broken_table_is_one_line(calibrated: dict[str, Any], tmp_path: Path, verb: str, name: str) -> None:
    path, out = tmp_path / "table.json", tmp_path / "out"
    if name == "a folder":
        path.mkdir()
    elif name in BROKEN:
        path.write_text(BROKEN[name](json.loads(Path(calibrated["solver"]).read_text())))
    prompt = ["--prompt", "a bag"] if verb == "sample" else []
    assert_refused(verb, "fashion", *prompt, "--solver", str(path), "--out", str(out))
    assert not out.exists()


@pytest.mark.parametrize("verb", ["sample", "explain"])
def test_a_table_that_is_not_there_is_said_to_be_missing(tmp_path: Path, verb: str) -> None:
    prompt, out = ["--prompt", "a bag"] if verb == "sample" else [], tmp_path / "out"
    said = assert_refused(verb, "fashion", *prompt, "--solver", "/nope.json", "--out", str(out))
    assert said == "logsnr: there is no file /nope.json: check the path, or make that file first\n"
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--rho", "0.5"], "rho"),
        (["--steps", "4"], "steps"),
        (["--order", "3", "--corrector", "--variant", "heun", "--grid", "time"], "order, corrector, variant, grid"),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", ["sample", "explain"])
def test_options_that_a_table_would_replace_are_refused_beside_it(
    calibrated: dict[str, Any], tmp_path: Path, verb: str, options: list[str], names: str
) -> None:
    prompt, out = ["--prompt", "a bag"] if verb == "sample" else [], tmp_path / "out"
    said = assert_refused(verb, "fashion", *prompt, *options, "--solver", calibrated["solver"], "--out", str(out))
    why = f"{names} cannot stand beside solver, whose table brings its own: drop {names}, or solver"
    assert said == f"logsnr: {why}\n"
    assert not out.exists()


@pytest.mark.parametrize("verb", ["sample", "explain"])
def test_a_table_of_another_model_or_guidance_is_one_line(
    calibrated: dict[str, Any], tmp_path: Path, verb: str
) -> None:
    out, prompt = tmp_path / "out", ["--prompt", "a bag"] if verb == "sample" else []
    command = [verb, "fashion", *prompt, "--out", str(out), "--solver"]
    assert "guidance_scale 2, not 3" in assert_refused(*command, calibrated["solver"], "--guidance-scale", "3")
    other = tmp_path / "other.json"
    write_json(other, {**json.loads(Path(calibrated["solver"]).read_text()), "fingerprint": "0" * 16})
    assert "another network" in assert_refused(*command, str(other))
    assert not out.exists()


def test_numbers_that_json_does_not_have_are_words(capsys: pytest.CaptureFixture[str]) -> None:
    """As the error of a solver that left the finite numbers."""
    Console(json=True).result({"gate": {"a": 1.5, "b": math.inf}, "rows": [-math.inf, (math.nan, None)]}, [])
    printed = json.loads(capsys.readouterr().out, parse_constant=no_constant)
    assert printed == {"gate": {"a": 1.5, "b": "inf"}, "rows": ["-inf", ["nan", None]]}


def test_the_real_command_explains(tmp_path: Path) -> None:
    """Once through a process of its own, as a user's shell would."""
    command = [sys.executable, "-m", "logsnr", "explain", "fashion", "--steps", "3", "--json", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["levels"]) == 4
    assert done.stderr == ""
