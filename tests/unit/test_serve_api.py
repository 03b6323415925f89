"""The API over a real hidden model: who gets which images, routes and roles, and every error in one form."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import PngImagePlugin
from served import GENERATIONS, PROMPT, Served, bearer, config, events, hidden_model, images, picture, serving

import logsnr
from logsnr.core.config import from_dict, to_dict
from logsnr.core.errors import InputError, MissingError
from logsnr.hiding.errors import ModelMismatchError, TamperedKeyError, WrongKeyError
from logsnr.hiding.keyfile import KeyFile
from logsnr.hiding.lock import new_identity, read_identities
from logsnr.serve.api import create_app
from logsnr.serve.config import Limits, ServeConfig
from logsnr.serve.errors import RefusedError
from logsnr.serve.requests import ImageRequest
from logsnr.serve.rights import scope_of
from logsnr.serve.store import Decision
from logsnr.train.preview import to_picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hidden_model(tmp_path_factory.mktemp("hidden"))


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(config(folder, tmp_path_factory.mktemp("state") / "s.db", max_steps=10)) as found:
        yield found


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_the_matrix_of_tokens_and_concepts(served: Served) -> None:
    hidden, revealed = images(served.ask()), images(served.ask(served.member, unlock=["sandal"]))
    assert hidden != revealed
    assert images(served.ask(served.member)) == hidden, "a token alone unlocks nothing"
    assert images(served.ask(served.member, unlock="auto")) == revealed
    for token in (None, served.admin, served.auditor):
        assert images(served.ask(token, unlock="auto")) == hidden, "auto gives what is granted"
    assert code(served.ask(None, unlock=["sandal"])) == (401, "token_needed")
    assert code(served.ask(served.member, unlock=["boot"])) == (403, "not_granted")
    for role in (served.admin, served.auditor):
        assert code(served.ask(role, unlock=["sandal"])) == (403, "not_granted")
    for bad in ("lsnr_bad", served.member[:-1] + "A" * (served.member[-1] != "A") + "B" * (served.member[-1] == "A")):
        for unlock in ([], "auto", ["sandal"]):
            assert code(served.ask(bad, unlock=unlock)) == (401, "bad_token"), "and never a hidden image instead"
    told = served.ask(served.member, unlock="auto").headers
    assert told["x-concepts-unlocked"] == "sandal"
    assert served.ask().headers["x-concepts-unlocked"] == ""


def test_a_revealed_image_is_what_the_key_makes(served: Served, folder: Path) -> None:
    key = KeyFile.open(folder / "keys" / "sandal.key", read_identities(folder / "identity"))
    pipe = logsnr.load(folder / "public")
    made = logsnr.reveal(pipe, PROMPT, key, seeds=[3], config=logsnr.SampleConfig(steps=2)).images[0]
    (found,) = images(served.ask(served.member, unlock=["sandal"]))
    expected, got = to_picture(made).tobytes(), picture(found).tobytes()
    assert max(abs(a - b) for a, b in zip(expected, got, strict=True)) <= 1


def test_images_carry_their_settings_and_name_no_key(served: Served) -> None:
    answer = served.ask(served.member, unlock="auto", n=2, seed=2**32 - 1, rho=0.5, negative_prompt="a bag")
    told = answer.json()
    assert [part["seed"] for part in told["data"]] == [2**32 - 1, 0]
    assert (told["size"], told["output_format"], told["nfe"]) == ("32x32", "png", 2)
    found = picture(images(answer)[1])
    assert isinstance(found, PngImagePlugin.PngImageFile)
    assert found.text["parameters"].startswith("a photo of a sandal\nNegative prompt: a bag\nSteps: 2, Sampler: logsnr")
    settings = json.loads(found.text["logsnr"])
    assert (settings["seed"], settings["sampling"]["rho"]) == (0, 0.5)
    assert "unlock" not in json.dumps(found.text)
    assert served.member not in json.dumps(found.text)


def test_sixty_four_mixed_requests_at_once_are_byte_equal_to_one_by_one(served: Served) -> None:
    wishes = [
        {"seed": k, "num_inference_steps": 1 + k % 3, "unlock": ["sandal"] if k % 2 else [], "prompt": f"{PROMPT} {k}"}
        for k in range(64)
    ]

    def ask(wish: dict[str, Any]) -> list[bytes]:
        return images(served.ask(served.member if wish["unlock"] else None, **wish))

    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(ask, wishes))
    assert together == [ask(wish) for wish in wishes]
    assert len({found[0] for found in together}) == 64


def test_a_stream_shows_the_run_and_ends_with_the_same_image(served: Served) -> None:
    wish = {"num_inference_steps": 6, "unlock": "auto"}
    answer = served.ask(served.member, stream=True, partial_images=3, **wish)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer.text)
    assert [event["type"].rpartition(".")[2] for event in found] == ["partial_image"] * 3 + ["completed"]
    assert [event["partial_image_index"] for event in found[:3]] == [0, 1, 2]
    (same,) = served.ask(served.member, **wish).json()["data"]
    assert {name: found[-1][name] for name in same} == same
    assert found[-1]["created_at"] > 0
    several = events(served.ask(stream=True, n=2).text)
    assert [(event["index"], event["seed"]) for event in several] == [(0, 3), (1, 4)]
    assert code(served.ask(stream=True, solver="fashion/7", num_inference_steps=None)) == (400, "input")


@pytest.mark.parametrize(
    ("wish", "status", "param"),
    [
        ({"prompt": None}, 400, "prompt"),
        ({"prompt": "x" * 2001}, 400, "prompt"),
        ({"seed": -1}, 400, "seed"),
        ({"seed": "3"}, 400, "seed"),
        ({"seed": 2**32}, 400, "seed"),
        ({"n": 9}, 400, "n"),
        ({"num_inference_steps": 0}, 400, "num_inference_steps"),
        ({"num_inference_steps": 11}, 400, "num_inference_steps"),
        ({"size": "512x512"}, 400, "size"),
        ({"model": "other"}, 404, "model"),
        ({"delta": "other"}, 404, "delta"),
        ({"response_format": "url"}, 400, "response_format"),
        ({"order": 5}, 400, "order"),
        ({"rho": -1.0}, 400, None),
        ({"guidance_scale": 1e9}, 400, "guidance_scale"),
        ({"grid": "nowhere"}, 400, "grid"),
        ({"solver": "/etc/passwd"}, 400, "solver"),
        ({"solver": "../../x/5"}, 400, "solver"),
        ({"solver": "proc/1"}, 400, None),
        ({"key": [[0.1, 0.2]]}, 400, "key"),
        ({"prompt_embeds": [0.1]}, 400, "prompt_embeds"),
        ({"key_file": "YWdl"}, 400, "key_file"),
        ({"steps": 3}, 400, "steps"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_form(served: Served, wish: dict, status: int, param: str | None) -> None:
    answer = served.ask(**wish)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if param:
        assert param in (error["param"] or "")
    assert "x" * 100 not in error["message"]


def test_steps_has_two_names(served: Served) -> None:
    body = {"prompt": PROMPT, "seed": 3, "steps": 2}
    assert images(served.client.post(GENERATIONS, json=body)) == images(served.ask())


def test_every_route_says_whom_it_is_for(served: Served) -> None:
    routes = [route for several in served.app.state.routers for route in several.routes]
    scopes = {(method, route.path): scope_of(route) for route in routes for method in route.methods}
    listed = {(method.upper(), path) for path, told in served.app.openapi()["paths"].items() for method in told}
    assert set(scopes) == listed, "which are all that there are"
    assert [route.path for route in served.app.routes if hasattr(route, "path")] == ["/openapi.json"]
    assert None not in scopes.values(), scopes
    open_ones = {"/", "/static/{name}", "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/schedule", "/v1/concepts"}
    public = {("GET", path) for path in open_ones} | {("POST", GENERATIONS)}
    assert {route for route, scope in scopes.items() if scope == "public"} == public
    assert {path for (_, path), scope in scopes.items() if scope == "auditor"} == {"/v1/audit", "/v1/audit/head"}


def test_roles_open_their_own_routes_alone(served: Served) -> None:
    routes = [("GET", "/v1/keys"), ("POST", "/v1/keys"), ("GET", "/v1/grants"), ("POST", "/v1/grants")]
    routes += [("DELETE", "/v1/keys/x"), ("POST", "/v1/keys/x/rotate"), ("DELETE", "/v1/grants/x")]
    trails = [("GET", "/v1/audit"), ("GET", "/v1/audit/head")]
    bodies = {"/v1/keys": {"role": "member"}, "/v1/grants": {"key": "x", "concept": "y"}}
    for own, others in ((routes, (served.member, served.auditor)), (trails, (served.member, served.admin))):
        for method, path in own:
            body = bodies.get(path) if method == "POST" else None
            assert code(served.call(method, path, None, body)) == (401, "token_needed")
            for token in others:
                assert code(served.call(method, path, token, body)) == (403, "role")
    before = len(served.call("GET", "/v1/keys", served.admin).json()["data"])
    asked = {"role": "member"}
    assert served.call("POST", "/v1/keys", served.member, asked).status_code == 403
    assert len(served.call("GET", "/v1/keys", served.admin).json()["data"]) == before


def test_an_administrator_runs_the_life_of_a_key(served: Served) -> None:
    asked = {"role": "member", "label": "lab", "images_per_day": 5}
    made = served.call("POST", "/v1/keys", served.admin, asked)
    assert made.status_code == 201
    token, name = made.json()["token"], made.json()["id"]
    rows = served.call("GET", "/v1/keys", served.admin)
    assert token not in rows.text
    assert "digest" not in rows.text
    assert served.call("GET", "/v1/concepts", token).json()["data"] == []
    granted = served.call("POST", "/v1/grants", served.admin, {"key": name, "concept": "sandal"})
    assert granted.status_code == 201
    assert served.call("GET", "/v1/concepts", token).json()["data"] == ["sandal"]
    assert images(served.ask(token, unlock=["sandal"])) == images(served.ask(served.member, unlock=["sandal"]))
    second = served.call("POST", f"/v1/keys/{name}/rotate", served.admin).json()["token"]
    assert code(served.ask(token, unlock=["sandal"])) == (401, "bad_token")
    assert served.call("DELETE", f"/v1/grants/{granted.json()['id']}", served.admin).status_code == 204
    assert code(served.ask(second, unlock=["sandal"])) == (403, "not_granted")
    assert served.call("DELETE", f"/v1/keys/{name}", served.admin).status_code == 204
    assert code(served.ask(second)) == (401, "bad_token")
    assert served.call("DELETE", f"/v1/keys/{name}", served.admin).status_code == 404
    late = {"role": "member", "not_after": "2027-01-31"}
    assert code(served.call("POST", "/v1/keys", served.admin, late)) == (400, "input")
    assert code(served.call("POST", "/v1/keys", served.admin, {**asked, "token": "mine"})) == (400, "input")


def test_an_auditor_reads_a_trail_that_verifies(served: Served) -> None:
    served.ask(served.member, unlock=["sandal"], seed=77)
    answer = served.call("GET", "/v1/audit", served.auditor)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[-1]["event"]["decision"] == "unlocked"
    assert lines[-1]["event"]["seed"] == 77
    assert served.app.state.store.verify() is None
    head = served.call("GET", "/v1/audit/head", served.auditor).json()
    assert head == {"number": lines[-1]["number"], "digest": lines[-1]["digest"]}
    part = served.call("GET", f"/v1/audit?after={head['number'] - 1}", served.auditor)
    assert len(part.text.splitlines()) == 1
    for secret in (served.member, served.admin, served.auditor, PROMPT):
        assert secret not in answer.text


def test_health_numbers_models_and_schedule(served: Served) -> None:
    assert served.client.get("/healthz").json() == {"status": "alive"}
    assert served.client.get("/readyz").json() == {"status": "ready"}
    numbers = served.client.get("/metrics").text
    assert 'logsnr_images_total{unlocked="true"}' in numbers
    assert "sandal" not in numbers
    (model,) = served.client.get("/v1/models").json()["data"]
    assert (model["id"], model["size"], model["deltas"]) == ("fashion", "32x32", [])
    levels = served.client.get("/v1/schedule?steps=5&grid=karras").json()["levels"]
    assert len(levels) == 6
    assert levels[0]["log_snr"] < 0
    assert levels[-1]["log_snr"] is None
    assert code(served.client.get("/v1/schedule?steps=11")) == (400, "steps")
    assert code(served.client.get("/nothing")) == (404, "http")
    assert code(served.client.put(GENERATIONS)) == (405, "http")
    assert served.client.get("/openapi.json").status_code == 200


def test_other_host_names_are_refused(served: Served) -> None:
    assert served.client.get("/v1/models", headers={"host": "evil.example"}).status_code == 400


def test_the_page_and_its_files_come_from_here_alone(served: Served) -> None:
    page = served.client.get("/").text
    assert "<title>logsnr</title>" in page
    for name in ("page.js", "page.css"):
        text = served.client.get(f"/static/{name}").text
        assert "http://" not in text.replace("http://www.w3.org", "")
        assert "https://" not in text
    assert served.client.get("/static/page.html").status_code == 400
    assert served.client.get("/static/..%2fapi.py").status_code in (400, 404)


def test_keys_that_do_not_belong_here_stop_the_start(folder: Path, tmp_path: Path) -> None:
    told = config(folder, tmp_path / "s.db")
    with pytest.raises(MissingError, match="no folder of keys"):
        create_app(from_dict(ServeConfig, {**to_dict(told), "key_dir": str(tmp_path / "none")}))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MissingError, match="holds no key"):
        create_app(from_dict(ServeConfig, {**to_dict(told), "key_dir": str(empty)}))
    with pytest.raises(ModelMismatchError, match="sandal"):
        create_app(from_dict(ServeConfig, {**to_dict(told), "model": "fashion"}))
    other = tmp_path / "identity"
    other.write_text(new_identity()[0].reveal())
    with pytest.raises(WrongKeyError, match="sandal"):
        create_app(from_dict(ServeConfig, {**to_dict(told), "identity": str(other)}))
    damaged = bytearray((folder / "keys" / "sandal.key").read_bytes())
    damaged[-1] ^= 1
    (empty / "sandal.key").write_bytes(damaged)
    with pytest.raises(TamperedKeyError, match="sandal"):
        create_app(from_dict(ServeConfig, {**to_dict(told), "key_dir": str(empty)}))


def test_keys_that_are_read_again_and_one_that_is_gone(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    place = keys / "sandal.key"
    place.write_bytes((folder / "keys" / "sandal.key").read_bytes())
    told = config(folder, tmp_path / "s.db", key_dir=keys)
    with serving(told) as served:
        studio = served.app.state.studio
        assert served.call("GET", "/v1/concepts", served.member).json()["data"] == ["sandal"]
        assert served.ask(served.member, unlock=["sandal"]).status_code == 200
        content = place.read_bytes()
        place.write_bytes(content[:-3])
        studio.reopen()
        assert code(served.ask(served.member, unlock=["sandal"])) == (403, "no_key")
        assert served.call("GET", "/v1/concepts", served.member).json()["data"] == []
        assert served.ask().status_code == 200
        place.unlink()
        place.mkdir()
        studio.reopen()
        assert code(served.ask(served.member, unlock=["sandal"])) == (403, "no_key")
        place.rmdir()
        place.write_bytes(content)
        studio.reopen()
        assert served.ask(served.member, unlock=["sandal"]).status_code == 200


def test_an_exact_key_is_for_those_who_are_granted_it_and_has_no_other_name(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    key = KeyFile.open(folder / "keys" / "sandal.key", read_identities(folder / "identity"))
    hidden = dict(logsnr.load(folder / "public").unet.named_parameters())
    own = logsnr.load("fashion").unet.named_parameters()
    changed = {f"unet.{name}": value for name, value in own if not torch.equal(value, hidden[name])}
    exact = KeyFile(replace(key.record, kind="exact"), key.prompt, changed)
    exact.save(keys / "exact.key", [(folder / "recipient").read_text()])
    told = config(folder, tmp_path / "s.db", key_dir=keys)
    with serving(told) as served:
        revealed = images(served.ask(served.member, unlock=["sandal"]))
        original = logsnr.sample(logsnr.load("fashion"), PROMPT, seeds=[3], config=logsnr.SampleConfig(steps=2)).images
        assert picture(revealed[0]).tobytes() == to_picture(original[0]).tobytes()
        hidden_one = images(served.ask())
        assert hidden_one != revealed
        assert images(served.ask()) == hidden_one, "and the public weights are as they were"
        name = exact.record.key_id
        assert code(served.ask(delta=name)) == (404, "delta")
        assert code(served.ask(model=name)) == (404, "model")
        assert served.client.get("/v1/models").json()["data"][0]["deltas"] == []
        assert "delta" not in json.loads(picture(revealed[0]).text["logsnr"])
        (keys / "exact.key").write_bytes(b"broken")
        served.app.state.studio.reopen()
        assert code(served.ask(delta=name)) == (404, "delta")
        assert served.client.get("/v1/models").json()["data"][0]["deltas"] == []


def test_a_key_for_later_has_to_be_of_this_model_now(folder: Path, tmp_path: Path) -> None:
    key = KeyFile.open(folder / "keys" / "sandal.key", read_identities(folder / "identity"))
    keys = tmp_path / "keys"
    keys.mkdir()
    for models, error in ((key.record.models, None), (("0" * 64,), ModelMismatchError)):
        later = replace(key.record, models=models, not_before="2100-01-01T00:00:00+00:00")
        KeyFile(later, key.prompt).save(keys / "later.key", [(folder / "recipient").read_text()])
        told = config(folder, tmp_path / "s.db", key_dir=keys)
        if error:
            with pytest.raises(error):
                create_app(told)
            continue
        with serving(told) as served:
            assert code(served.ask(served.member, unlock=["sandal"])) == (403, "no_key")


def test_what_no_gate_has_decided_is_not_made(served: Served) -> None:
    studio = served.app.state.studio
    asked = ImageRequest(prompt=PROMPT, unlock=["sandal"])
    for decision in (
        Decision("x"),
        Decision("x", images=1),
        Decision("x", concepts=("sandal",)),
        Decision("x", concepts=("sandal",), images=2),
    ):
        with pytest.raises(RefusedError, match="cannot be enforced"):
            studio.job(asked, decision)
    assert studio.job(asked, Decision("x", concepts=("sandal",), images=1)).key is not None


def test_the_schema_says_who_may_call_what_and_how_errors_look(served: Served) -> None:
    schema = served.client.get("/openapi.json").json()
    assert schema["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    told = schema["paths"][GENERATIONS]["post"]
    assert told["security"] == [{}, {"token": []}]
    assert "422" not in json.dumps(schema["paths"])
    assert told["responses"]["429"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorResponse")
    assert told["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/ImageResponse")
    assert schema["components"]["schemas"]["ImageRequest"]["examples"]
    assert schema["paths"]["/v1/keys"]["post"]["security"] == [{"token": []}]


def test_a_database_that_cannot_be_used_is_not_a_broken_server(folder: Path, tmp_path: Path) -> None:
    with serving(config(folder, tmp_path / "s.db")) as served:
        with sqlite3.connect(tmp_path / "s.db") as raw:
            raw.execute("CREATE TRIGGER full BEFORE INSERT ON keys BEGIN SELECT RAISE(ABORT, 'full'); END")
        answer = served.call("POST", "/v1/keys", served.admin, {"role": "member", "label": "hush"})
        assert code(answer) == (503, "no_database")
        assert "hush" not in answer.text
        with sqlite3.connect(tmp_path / "s.db") as raw:
            raw.execute("DROP TRIGGER full")
        assert "hush" not in json.dumps(list(served.app.state.store.trail()))


def test_auto_unlocks_what_has_a_valid_key_here(served: Served) -> None:
    asked = {"role": "member", "concepts": ["bag", "sandal"]}
    token = served.call("POST", "/v1/keys", served.admin, asked).json()["token"]
    answer = served.ask(token, unlock="auto")
    assert images(answer) == images(served.ask(served.member, unlock=["sandal"]))
    assert answer.headers["x-concepts-unlocked"] == "sandal"
    assert code(served.ask(token, unlock=["bag"])) == (403, "no_key")


def test_limits_answer_with_the_seconds_to_wait(folder: Path, tmp_path: Path) -> None:
    told = config(folder, tmp_path / "s.db", limits=Limits(anonymous_per_minute=2, images_per_day=9, failures=1))
    with serving(told) as served:
        assert [served.ask().status_code for _ in range(3)] == [200, 200, 429]
        assert int(served.ask().headers["retry-after"]) >= 1
        assert [served.ask(served.member, n=n).status_code for n in (8, 2, 1)] == [200, 429, 200]
        assert [served.ask("no").status_code for _ in range(3)] == [401, 401, 429]
        assert code(served.ask("no")) == (429, "failures")
        assert served.call("GET", "/v1/concepts", served.member).status_code == 200


def test_a_delta_stands_beside_the_model(tmp_path: Path) -> None:
    from logsnr.worlds.load import load_world

    delta = load_world("fashion").edits / "deltas" / "ankle-boot"
    told = ServeConfig(model="fashion", database=tmp_path / "s.db", deltas=(delta,), hosts=("testserver",), runners=1)
    with serving(told) as served:
        plain = served.ask(prompt="a photo of an ankle boot")
        changed = served.ask(prompt="a photo of an ankle boot", delta="ankle-boot")
        assert images(plain) != images(changed)
        assert images(plain) == images(served.ask(prompt="a photo of an ankle boot")), "and changes nothing in it"
        assert json.loads(picture(images(changed)[0]).text["logsnr"])["delta"] == "ankle-boot"
        assert served.client.get("/v1/models").json()["data"][0]["deltas"] == ["ankle-boot"]
    with pytest.raises(InputError, match="different names"):
        ServeConfig(model="fashion", database=tmp_path / "s.db", name="ankle-boot", deltas=(delta,))


def test_bearer_is_the_only_way_to_give_a_token(served: Served) -> None:
    for headers in ({"x-api-key": served.member}, {"cookie": f"token={served.member}"}):
        answer = served.client.post(GENERATIONS, json={"prompt": PROMPT, "unlock": ["sandal"]}, headers=headers)
        assert code(answer) == (401, "token_needed")
    asked = {"prompt": PROMPT, "unlock": ["sandal"]}
    assert code(served.client.post(f"{GENERATIONS}?token={served.member}", json=asked)) == (401, "token_needed")
    assert served.client.post(GENERATIONS, json=asked, headers=bearer(served.member)).status_code == 200
