"""The server's store: tokens, grants, the one decision of a request, limits, and the audit."""

from __future__ import annotations

import json
import re
import sqlite3
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logsnr.core.errors import BrokenError, InputError
from logsnr.core.moment import later
from logsnr.serve.audit import START, verify
from logsnr.serve.config import Limits, ServeConfig
from logsnr.serve.errors import RefusedError
from logsnr.serve.store import Ask, Decision, Store
from logsnr.serve.tokens import Token, new_token, read_token

BY = Decision("test")


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Store:
    return Store(tmp_path / "s.db", Limits(failures=2), clock=clock)


def ask(token: str | None = None, *unlock: str, images: int = 1, address: str = "10.0.0.1", auto: bool = False) -> Ask:
    return Ask("r1", address, token, images, "auto" if auto else unlock)


def refused(found: Decision | RefusedError, status: int, code: str) -> RefusedError:
    assert isinstance(found, RefusedError), found
    assert (found.status, found.code) == (status, code)
    return found


def member(store: Store, *concepts: str, **options: float) -> tuple[str, str]:
    token, row = store.add_key("member", "m", by=BY, concepts=concepts, **options)
    return token, row["id"]


def events(store: Store) -> list[dict]:
    return [line["event"] for line in store.trail()]


def test_a_token_is_known_by_its_hash_alone_and_is_not_shown() -> None:
    text, token = new_token()
    assert read_token(text) == token
    assert text not in repr(token)
    assert len(text) > 50
    assert token.matches(token.digest)
    assert not token.matches(None)
    assert not token.matches(new_token()[1].digest)
    assert not Token("", "").matches(None)
    for wrong in ("", text[:-1], text + "a", text.upper(), f" {text}", text + "\n"):
        assert read_token(wrong) is None


def test_what_a_request_may_do_follows_from_token_and_grants(store: Store) -> None:
    token, _ = member(store, "boot", "bag")
    assert store.decide(ask()).concepts == ()
    assert store.decide(ask(token)).concepts == ()
    assert store.decide(ask(token, "boot")).concepts == ("boot",)
    assert store.decide(ask(token, "boot", "bag", "boot")).concepts == ("boot", "bag")
    assert store.decide(ask(token, auto=True)).concepts == ("bag", "boot")
    assert store.decide(ask(auto=True)).concepts == ()
    refused(store.decide(ask(token, "coat")), 403, "not_granted")
    refused(store.decide(ask(None, "boot")), 401, "token_needed")
    refused(store.decide(ask("lsnr_nonsense", "boot")), 401, "bad_token")
    refused(store.decide(ask("lsnr_nonsense")), 401, "bad_token")


def test_a_concept_that_does_not_exist_is_refused_as_one_that_is_not_granted(store: Store) -> None:
    token, _ = member(store, "boot")
    member(store, "coat")
    told = [refused(store.decide(ask(token, name)), 403, "not_granted").body() for name in ("coat", "unicorn")]
    assert told[0] == told[1]


def test_rotation_revocation_withdrawal_and_dates_hold_from_the_next_request(store: Store, clock: Clock) -> None:
    token, name = member(store, "boot")
    second = store.rotate(name, by=BY)
    refused(store.decide(ask(token)), 401, "bad_token")
    grant = store.grants()[0]["id"]
    assert store.decide(ask(second, "boot")).concepts == ("boot",)
    store.withdraw(grant, by=BY)
    refused(store.decide(ask(second, "boot")), 403, "not_granted")
    store.grant(name, "boot", by=BY, not_after=clock.now + 10)
    assert store.decide(ask(second, "boot")).concepts == ("boot",)
    clock.now += 11
    refused(store.decide(ask(second, "boot")), 403, "not_granted")
    store.revoke(name, by=BY)
    clock.now += 1000
    refused(store.decide(ask(second)), 401, "bad_token")
    short, _ = member(store, not_after=clock.now + 5)
    assert store.decide(ask(short)).role == "member"
    clock.now += 6
    refused(store.decide(ask(short)), 401, "bad_token")


def test_grants_are_for_members_in_use(store: Store) -> None:
    _, auditor = store.add_key("auditor", "", by=BY)
    for name, status in ((auditor["id"], 400), ("nobody", 404)):
        with pytest.raises(RefusedError) as found:
            store.grant(name, "boot", by=BY)
        assert found.value.status == status
    before = len(store.keys())
    with pytest.raises(RefusedError, match="members"):
        store.add_key("admin", "", by=BY, concepts=("boot",))
    assert len(store.keys()) == before, "a key whose grant is refused is not made"
    with pytest.raises(RefusedError, match="no role"):
        store.add_key("owner", "", by=BY)  # type: ignore[arg-type]
    _, name = member(store)
    store.revoke(name, by=BY)
    for call in (store.revoke, store.rotate):
        with pytest.raises(RefusedError, match="no such key"):
            call(name, by=BY)
    with pytest.raises(RefusedError, match="no such grant"):
        store.withdraw("nothing", by=BY)


def test_a_rate_lets_a_minute_through_at_once_and_then_one_after_another(tmp_path: Path, clock: Clock) -> None:
    store = Store(tmp_path / "s.db", Limits(requests_per_minute=6, anonymous_per_minute=3), clock=clock)
    token, _ = member(store)
    assert [isinstance(store.decide(ask(token)), Decision) for _ in range(7)] == [True] * 6 + [False]
    wait = refused(store.decide(ask(token)), 429, "rate_limit").retry_after
    assert wait == pytest.approx(10)
    clock.now += 9.9
    refused(store.decide(ask(token)), 429, "rate_limit")
    clock.now += 0.2
    assert isinstance(store.decide(ask(token)), Decision)
    assert [isinstance(store.decide(ask()), Decision) for _ in range(4)] == [True] * 3 + [False]
    assert isinstance(store.decide(ask(address="10.0.0.2")), Decision)


def test_a_budget_of_images_is_of_a_day_and_what_was_not_made_is_given_back(tmp_path: Path, clock: Clock) -> None:
    store = Store(tmp_path / "s.db", Limits(images_per_day=5), clock=clock)
    token, _ = member(store)
    first = store.decide(ask(token, images=4))
    assert first.images == 4
    wait = refused(store.decide(ask(token, images=2)), 429, "budget").retry_after
    assert 0 < wait <= 86_400
    store.undone(first, 500)
    assert isinstance(store.decide(ask(token, images=5)), Decision)
    refused(store.decide(ask(token)), 429, "budget")
    clock.now += wait
    assert isinstance(store.decide(ask(token, images=5)), Decision)
    own, _ = member(store, images_per_day=1)
    assert isinstance(store.decide(ask(own)), Decision)
    refused(store.decide(ask(own)), 429, "budget")


def test_failures_wait_longer_each_time_and_hold_up_nobody_else(store: Store, clock: Clock) -> None:
    token, _ = member(store, "boot")
    for _ in range(3):
        refused(store.decide(ask("bad")), 401, "bad_token")
        clock.now -= 1e-3  # another thread's moment, read before; none of these failures makes it wait
    clock.now += 3e-3
    assert refused(store.decide(ask("bad")), 429, "failures").retry_after == pytest.approx(1, abs=0.01)
    assert store.decide(ask(token, "boot")).concepts == ("boot",), "a valid token passes at the same address"
    refused(store.decide(ask("bad", address="10.0.0.9")), 401, "bad_token")
    waits = []
    for _ in range(12):
        clock.now += 900.1
        refused(store.decide(ask("bad")), 401, "bad_token")
        waits.append(refused(store.decide(ask("bad")), 429, "failures").retry_after)
    assert waits[:3] == pytest.approx([2, 4, 8])
    assert max(waits) == pytest.approx(900)
    clock.now += 1801
    refused(store.decide(ask("bad")), 401, "bad_token")
    refused(store.decide(ask("bad")), 401, "bad_token")
    for _ in range(3):
        refused(store.decide(ask(token, "coat")), 403, "not_granted")
    refused(store.decide(ask(token, "coat")), 429, "failures")
    assert store.decide(ask(token, "boot")).concepts == ("boot",), "what it may unlock it still may"


def test_every_decision_about_a_concept_is_written_down_and_no_secret_is(store: Store) -> None:
    token, name = member(store, "boot")
    told = {"prompt_hash": store.hashed("a boot"), "seed": 7}
    store.decide(Ask("r7", "10.0.0.1", token, 2, ("boot",), told))
    store.decide(ask(token, "coat"))
    store.decide(ask("lsnr_bad", "boot"))
    store.decide(ask(token))
    found = events(store)
    assert [event["decision"] for event in found] == ["key_added", "granted", "unlocked", "not_granted", "bad_token"]
    unlocked = found[2]
    assert unlocked["request"] == "r7"
    assert unlocked["key"] == name
    assert unlocked["role"] == "member"
    assert unlocked["concepts"] == ["boot"]
    assert unlocked["seed"] == 7
    assert token not in json.dumps(found)
    assert token.rsplit("_", 1)[1] not in json.dumps(list(store.trail()))
    assert store.hashed("a boot") != store.hashed("a bag")


def test_the_trail_shows_where_it_was_changed_cut_or_moved(store: Store) -> None:
    token, _ = member(store, "boot")
    for _ in range(4):
        store.decide(ask(token, "boot"))
    assert store.verify() is None
    number, digest = store.head()
    assert number == 6
    lines = list(store.trail())
    assert verify(lines, store.seal) is None
    assert verify([], store.seal) is None
    changed = [dict(line) for line in lines]
    changed[2] = {**changed[2], "event": {**changed[2]["event"], "concepts": ["bag"]}}
    assert verify(changed, store.seal) == 3
    assert verify(lines[:3] + lines[4:], store.seal) == 4
    assert verify([*lines[:2], lines[3], lines[2], *lines[4:]], store.seal) == 3
    assert verify(lines, b"x" * 32) == 1, "a trail that another key sealed is not this one"
    assert verify(lines[:4], store.seal) is None, "a cut tail is not seen"
    assert verify(lines[:4], store.seal, (number, digest)) == 5, "but with what was noted it is"
    assert verify(lines, store.seal, (number, digest)) is None
    assert verify(lines, store.seal, (2, START)) == 2


@settings(max_examples=15)
@given(st.lists(st.sampled_from(["boot", "bag", "", "ä\u2028\U0001f45f"]), max_size=3), st.text(max_size=8))
def test_any_text_can_be_written_down_and_verified(concepts: list[str], prompt: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "s.db")
        token, _ = store.add_key("member", prompt, by=BY, concepts=tuple(concepts))
        store.decide(Ask("r", "a", token, 1, "auto", {"prompt": prompt, "prompt_hash": store.hashed(prompt)}))
        assert store.verify() is None
        store.engine.dispose()


@pytest.mark.parametrize("wrong", ["{", "", "[" * 5000, '{"a": 1}'])
def test_whatever_a_line_was_changed_into_it_is_named(wrong: str, store: Store, tmp_path: Path) -> None:
    member(store, "boot")
    with sqlite3.connect(tmp_path / "s.db") as raw:
        raw.execute("UPDATE audit SET event = ? WHERE number = 2", (wrong,))
    assert store.verify() == 2
    with sqlite3.connect(tmp_path / "s.db") as raw:
        raw.execute("UPDATE audit SET digest = 'ä' WHERE number = 1")
    assert store.verify() == 1
    assert len(list(store.trail())) == 2


def test_an_audit_without_its_key_is_not_given_another(store: Store, tmp_path: Path) -> None:
    member(store, "boot")
    (tmp_path / "s.db.audit-key").unlink()
    with pytest.raises(InputError, match="restore it"):
        Store(tmp_path / "s.db")
    assert not (tmp_path / "s.db.audit-key").exists()


def test_a_token_that_could_not_be_shown_is_none(store: Store) -> None:
    def broken(_: str) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        store.first_admin(broken)
    assert store.keys() == []
    shown: list[str] = []
    assert store.first_admin(shown.append) == shown[0]
    token, name = member(store)
    with pytest.raises(OSError, match="no room"):
        store.rotate(name, by=BY, show=broken)
    assert store.decide(ask(token)).role == "member"


def test_bad_tokens_that_have_to_wait_write_nothing(store: Store, tmp_path: Path) -> None:
    for _ in range(3):
        store.decide(ask("bad"))
    number = store.head()[0]
    with sqlite3.connect(tmp_path / "s.db") as raw:
        raw.execute("BEGIN IMMEDIATE")
        refused(store.decide(ask("bad")), 429, "failures")
    assert store.head()[0] == number


@pytest.mark.parametrize(
    "wrong", ["", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2001-01-01T00:00:00+00:00"]
)
def test_an_end_lies_ahead(wrong: str) -> None:
    with pytest.raises(InputError, match="moment|lie ahead"):
        later(wrong, 1_800_000_000.0)
    assert later("2027-06-01T00:00:00+00:00", 1_800_000_000.0) == 1_811_808_000.0


def test_a_changed_database_is_found_by_verification(store: Store, tmp_path: Path) -> None:
    member(store, "boot")
    with sqlite3.connect(tmp_path / "s.db") as raw:
        raw.execute("UPDATE audit SET event = replace(event, 'boot', 'bag ') WHERE number = 2")
    assert store.verify() == 2


def test_what_cannot_be_written_is_not_granted(store: Store, tmp_path: Path) -> None:
    token, _ = member(store, "boot")
    with sqlite3.connect(tmp_path / "s.db") as raw:
        raw.execute("CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    from sqlalchemy.exc import SQLAlchemyError

    with pytest.raises(SQLAlchemyError):
        store.decide(ask(token, "boot", images=3))
    with sqlite3.connect(tmp_path / "s.db") as raw:
        raw.execute("DROP TRIGGER full")
        assert raw.execute("SELECT count(*) FROM budgets").fetchone() == (0,), "and nothing else is kept of it"
    assert store.decide(ask(token, "boot")).concepts == ("boot",)


def test_state_outlives_the_process_and_two_of_them_share_it(tmp_path: Path) -> None:
    first = Store(tmp_path / "s.db")
    token, name = member(first, "boot")
    second = Store(tmp_path / "s.db")
    assert second.decide(ask(token, "boot")).concepts == ("boot",)
    first.revoke(name, by=BY)
    refused(second.decide(ask(token, "boot")), 401, "bad_token")
    assert second.verify() is None
    assert second.head()[0] == 5


def test_files_are_for_their_owner_alone(store: Store, tmp_path: Path) -> None:
    member(store)
    for place in tmp_path.iterdir():
        assert stat.S_IMODE(place.stat().st_mode) & 0o077 == 0, place


def test_only_the_first_administrator_is_made_by_itself(store: Store) -> None:
    token = store.first_admin()
    assert store.first_admin() is None
    assert store.decide(ask(token, images=0)).role == "admin"
    store.revoke(store.keys()[0]["id"], by=BY)
    assert store.first_admin() is not None


def test_unusable_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(BrokenError, match="database"):
        Store(tmp_path / "no.db")
    Store(tmp_path / "s.db")
    (tmp_path / "s.db.audit-key").write_text("abc")
    with pytest.raises(InputError, match="key of the audit"):
        Store(tmp_path / "s.db")
    with pytest.raises(InputError):
        Limits(requests_per_minute=0)
    for wrong in ({"queue": 0}, {"identity": Path("x")}, {"deltas": (Path("a/d"), Path("b/d"))}, {"max_seconds": 0.0}):
        with pytest.raises(InputError):
            ServeConfig(model="fashion", database=Path("x"), **wrong)


def test_no_secret_is_compared_by_equality() -> None:
    source = Path(__file__).parents[2] / "src" / "logsnr"
    name = r"\b\w*(?:digest|seal|token|secret)\b(?!\.)"
    wrong = re.compile(rf"{name}\)?\s*[=!]=|[=!]=\s*{name}")
    assert wrong.search("if row.digest == token.digest:")
    files = [*(source / "serve").glob("*.py"), *(source / "hiding").glob("*.py")]
    assert len(files) > 20
    assert [(file.name, line) for file in files for line in file.read_text().splitlines() if wrong.search(line)] == []
