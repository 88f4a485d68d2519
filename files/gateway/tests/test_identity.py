"""Tokens as files: who is let in, and how soon a change counts."""

from __future__ import annotations

import base64
import errno
import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import FakeClock

from hearth_gateway.core.identity import PREVIOUS, RELOAD_AFTER_S, TokenStore, normalise_email
from hearth_gateway.errors import GatewayError, Kind

TOKEN = "token-0123456789abcdef"
OTHER = "other-0123456789abcdef"


class Tokens:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.problems: list[tuple[str, str]] = []
        self.store = TokenStore(
            directory,
            self.clock,
            lambda *problem: self.problems.append(problem),
            proxy=["proxy", "proxy-next"],
            end_users=["house"],
        )

    def who(self, authorization: str | None = None, api_key: str | None = None, end_user: str | None = None) -> str:
        """The token's name, with the person if there is one; or the kind of the error."""
        try:
            caller = self.store.identify(authorization, api_key, end_user)
        except GatewayError as error:
            return error.kind.value
        return caller.name + (f"/{caller.person}" if caller.person else "") + ("/browser" if caller.browser else "")


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    (tmp_path / "operator").write_text(TOKEN + "\n")
    return Tokens(tmp_path)


def basic(address: str, token: str) -> str:
    return "Basic " + base64.b64encode(f"{address}:{token}".encode()).decode()


@pytest.mark.parametrize(
    ("authorization", "api_key", "expected"),
    [
        (f"Bearer {TOKEN}", None, "operator"),
        (f"bearer  {TOKEN} ", None, "operator"),
        (None, TOKEN, "operator"),
        (None, f" {TOKEN} ", "operator"),
        (f"Bearer {TOKEN}", TOKEN, "ambiguous_credentials"),
        (f"Bearer {TOKEN}", "", "ambiguous_credentials"),
        ("", TOKEN, "ambiguous_credentials"),
        (f"Bearer {TOKEN},{TOKEN}", None, "ambiguous_credentials"),
        (f"Bearer {TOKEN},Bearer {TOKEN}", None, "ambiguous_credentials"),
        (None, f"{TOKEN},", "ambiguous_credentials"),
        (None, None, "unauthenticated"),
        ("", None, "unauthenticated"),
        (None, "", "unauthenticated"),
        (TOKEN, None, "unauthenticated"),
        (f"Basic {TOKEN}", None, "unauthenticated"),
        (f"Digest {TOKEN}", None, "unauthenticated"),
        ("Bearer", None, "unauthenticated"),
        (f"Bearer {TOKEN}x", None, "unauthenticated"),
        (f"Bearer {TOKEN} {TOKEN}", None, "unauthenticated"),
        (None, "tökén", "unauthenticated"),
        (None, "\udcff", "unauthenticated"),
        ("Basic \udcff", None, "unauthenticated"),
    ],
)
def test_credentials(tokens: Tokens, authorization: str | None, api_key: str | None, expected: str) -> None:
    assert tokens.who(authorization, api_key) == expected


@pytest.fixture
def doors(tokens: Tokens) -> Tokens:
    """With a token of each role."""
    for name in ("proxy", "house"):
        (tokens.directory / name).write_text(f"{name}-{OTHER}")
    tokens.clock.sleep(RELOAD_AFTER_S)
    return tokens


PROXY = f"proxy-{OTHER}"
HOUSE = f"house-{OTHER}"


@pytest.mark.parametrize(
    ("credential", "expected"),
    [
        (basic("ann@example.org", PROXY), "proxy/ann@example.org/browser"),
        (basic("Ann@Example.ORG", PROXY), "proxy/ann@example.org/browser"),
        (basic("jo\N{COMBINING DIAERESIS}rg@example.org", PROXY), "proxy/j\N{LATIN SMALL LETTER O WITH DIAERESIS}rg@example.org/browser"),
        (basic("ann@example.org", PROXY).replace("Basic", "bAsIc"), "proxy/ann@example.org/browser"),
        # The same form for a program that may name people, without a browser's restrictions.
        (basic("ann@example.org", HOUSE), "house/ann@example.org"),
        # A token without exactly one address, or an address without the token: nobody.
        (basic("", PROXY), "unauthenticated"),
        (basic("ann", PROXY), "unauthenticated"),
        (basic("ann@example.org,bob@example.org", PROXY), "unauthenticated"),
        (basic("ann@bob@example.org", PROXY), "unauthenticated"),
        (basic("ann@example.org", ""), "unauthenticated"),
        (basic("ann@example.org", PROXY + "x"), "unauthenticated"),
        (basic("ann@example.org", f"{PROXY}:{PROXY}"), "unauthenticated"),
        (basic("ann@example.org", TOKEN), "unauthenticated"),
        (basic("ann@example.org:x", PROXY), "unauthenticated"),
        (f"Bearer {PROXY}", "unauthenticated"),
        ("Basic " + base64.b64encode(PROXY.encode()).decode(), "unauthenticated"),
        ("Basic " + base64.b64encode(b"ann@ex\xff:" + PROXY.encode()).decode(), "unauthenticated"),
        (basic("ann@example.org", PROXY) + "!", "unauthenticated"),
        (basic("ann@example.org", PROXY) + " x", "unauthenticated"),
        (basic("ann@example.org", PROXY) + "," + basic("bob@example.org", PROXY), "ambiguous_credentials"),
    ],
)
def test_people(doors: Tokens, credential: str, expected: str) -> None:
    assert doors.who(credential) == expected


def test_the_proxys_token_is_no_key_of_a_program(doors: Tokens) -> None:
    assert doors.who(None, PROXY) == "unauthenticated"


@pytest.mark.parametrize(
    ("authorization", "api_key", "end_user", "expected"),
    [
        (f"Bearer {HOUSE}", None, "Ann@example.org", "house/ann@example.org"),
        (None, HOUSE, "ann@example.org", "house/ann@example.org"),
        (None, HOUSE, None, "house"),
        (None, HOUSE, "", "end_user_refused"),
        (None, HOUSE, "ann", "end_user_refused"),
        (None, HOUSE, "ann@example.org,bob@example.org", "end_user_refused"),
        (None, TOKEN, "ann@example.org", "end_user_refused"),
        (None, TOKEN, "", "end_user_refused"),
        (basic("ann@example.org", PROXY), None, "bob@example.org", "end_user_refused"),
        (basic("ann@example.org", HOUSE), None, "ann@example.org", "end_user_refused"),
        (None, None, "ann@example.org", "unauthenticated"),
        (None, "wrong", "ann@example.org", "unauthenticated"),
    ],
)
def test_naming_a_person(doors: Tokens, authorization: str | None, api_key: str | None, end_user: str | None, expected: str) -> None:
    assert doors.who(authorization, api_key, end_user) == expected


def test_two_proxy_tokens_at_once(doors: Tokens) -> None:
    (doors.directory / "proxy-next").write_text(TOKEN[::-1])
    doors.clock.sleep(RELOAD_AFTER_S)
    caller = doors.store.identify(basic("ann@example.org", PROXY))
    assert doors.who(basic("ann@example.org", TOKEN[::-1])) == "proxy-next/ann@example.org/browser"
    (doors.directory / "proxy").unlink()
    doors.clock.sleep(RELOAD_AFTER_S)
    assert doors.who(basic("ann@example.org", PROXY)) == "unauthenticated"
    assert doors.who(basic("ann@example.org", TOKEN[::-1])) == "proxy-next/ann@example.org/browser"
    doors.store.check(caller)  # a rotation cuts nobody's answer
    (doors.directory / "proxy-next").unlink()
    doors.store.refresh()
    with pytest.raises(GatewayError):
        doors.store.check(caller)


def test_a_former_value_is_the_same_token_until_its_file_goes(doors: Tokens) -> None:
    """Name and role: the ledger, the limits and the right to speak for people all go by the token's name."""
    new = {name: f"new-{name}-0123456789" for name in ("proxy", "house", "operator")}
    old = {"proxy": PROXY, "house": HOUSE, "operator": TOKEN}
    open_answer = doors.store.identify(basic("ann@example.org", PROXY))
    for name, value in new.items():
        (doors.directory / name).write_text(value)
        (doors.directory / (name + PREVIOUS)).write_text(old[name])
    doors.clock.sleep(RELOAD_AFTER_S)
    for values in (old, new):
        assert doors.who(basic("ann@example.org", values["proxy"])) == "proxy/ann@example.org/browser"
        assert doors.who(None, values["proxy"]) == "unauthenticated"
        assert doors.who(None, values["house"], "ann@example.org") == "house/ann@example.org"
        assert doors.who(None, values["operator"]) == "operator"
    for name in new:
        (doors.directory / (name + PREVIOUS)).unlink()
    doors.clock.sleep(RELOAD_AFTER_S)
    assert doors.who(basic("ann@example.org", PROXY)) == doors.who(None, HOUSE) == doors.who(None, TOKEN) == "unauthenticated"
    assert doors.who(None, new["operator"]) == "operator"
    doors.store.check(open_answer)  # a rotation cuts nobody's answer


def test_a_bad_former_value_is_told_by_its_files_name(doors: Tokens) -> None:
    (doors.directory / f"operator{PREVIOUS}").write_text("short")
    doors.clock.sleep(RELOAD_AFTER_S)
    assert doors.who(None, TOKEN) == "operator"
    assert doors.problems == [("operator.previous", "is shorter than 16 characters")]


def test_a_revoked_token_ends_its_open_answers_and_a_rotated_one_does_not(doors: Tokens) -> None:
    caller = doors.store.identify(None, TOKEN)
    (doors.directory / "operator").write_text(OTHER + "!")
    doors.store.refresh()
    doors.store.check(caller)
    assert doors.who(None, TOKEN) == "unauthenticated"
    (doors.directory / "operator").unlink()
    doors.store.refresh()
    with pytest.raises(GatewayError) as caught:
        doors.store.check(caller)
    assert caught.value.kind is Kind.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("given", "normalised"),
    [
        ("ann@example.org", "ann@example.org"),
        ("Ann.O'Brien+chat@EXAMPLE.org", "ann.o'brien+chat@example.org"),
        ("A\N{COMBINING RING ABOVE}sa@example.org", "\N{LATIN SMALL LETTER A WITH RING ABOVE}sa@example.org"),
        ("\N{ANGSTROM SIGN}sa@example.org", "\N{LATIN SMALL LETTER A WITH RING ABOVE}sa@example.org"),
        ("a" * 242 + "@example.org", "a" * 242 + "@example.org"),
        ("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}@example.org", "i\N{COMBINING DOT ABOVE}@example.org"),
    ],
)
def test_one_spelling(given: str, normalised: str) -> None:
    assert normalise_email(given) == normalised
    assert normalise_email(normalised) == normalised


@pytest.mark.parametrize(
    "garbage",
    [
        "", "@", "ann", "ann@", "@example.org", "a@b@c", "ann@@example.org", " ann@example.org", "ann@example.org ",
        "ann @example.org", "ann@example.org\n", "ann@exam\tple.org", "ann\0@example.org", "ann@example.org\x7f",
        "ann@example.org,bob@example.org", '"ann"@example.org', "<ann@example.org>", "ann:x@example.org",
        "ann\\@example.org", "ann(home)@example.org", "ann;@example.org", "ann@[127.0.0.1]",
        "ann\N{NO-BREAK SPACE}@example.org", "ann\N{ZERO WIDTH SPACE}@example.org", "ann\N{RIGHT-TO-LEFT OVERRIDE}@example.org",
        "ann\N{LINE SEPARATOR}@example.org", "ann\udcff@example.org", "ann\N{FULLWIDTH COMMERCIAL AT}example.org",
        "\ue000@example.org", "a" * 243 + "@example.org", "\N{EURO SIGN}" * 81 + "@example.org",
    ],
)  # fmt: skip
def test_garbage_is_no_address(garbage: str) -> None:
    with pytest.raises(ValueError) as caught:
        normalise_email(garbage)
    # The sentence goes to the client and to the operator's terminal: it never quotes what was given.
    assert str(caught.value) in {
        "holds spaces or control characters",
        "holds commas, quotes or brackets",
        "must be one address such as ann@example.org",
        "is longer than 254 bytes",
    }


def test_random_text_never_breaks_the_normaliser() -> None:
    chars = random.Random(4711)
    pool = "aA@.,: \"'\0\u0301\u0130\ud800\U0001f600ß€\u200b"
    for _ in range(5000):
        text = "".join(chars.choices(pool, k=chars.randrange(12)))
        try:
            found = normalise_email(text)
        except ValueError:
            continue
        assert found.count("@") == 1 and normalise_email(found) == found


def test_only_digests_are_kept(tokens: Tokens) -> None:
    assert TOKEN not in repr(vars(tokens.store))


def test_changes_count_within_five_seconds(tokens: Tokens) -> None:
    assert RELOAD_AFTER_S < 5
    (tokens.directory / "kitchen").write_text(OTHER)
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=OTHER) == "kitchen"
    (tokens.directory / "operator").unlink()
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=TOKEN) == "unauthenticated"
    (tokens.directory / "kitchen").write_text(TOKEN)  # a new value in place
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=TOKEN) == "kitchen"
    assert tokens.who(api_key=OTHER) == "unauthenticated"


def test_a_directory_that_goes_away_lets_nobody_in(tokens: Tokens) -> None:
    (tokens.directory / "operator").unlink()
    tokens.directory.rmdir()
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=TOKEN) == "unauthenticated"
    assert len(tokens.store) == 0


@contextmanager
def no_file_descriptors_left() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_machine_that_cannot_read_revokes_nobody_and_is_told_once(tokens: Tokens) -> None:
    (tokens.directory / "short").write_text("abc")
    tokens.clock.sleep(RELOAD_AFTER_S)
    caller = tokens.store.identify(None, TOKEN)
    for _ in range(2):
        tokens.problems.clear()
        with no_file_descriptors_left():
            for _ in range(3):
                tokens.clock.sleep(RELOAD_AFTER_S)
                assert tokens.who(api_key=TOKEN) == "operator"
                tokens.store.check(caller)
        problem = f"cannot be read: {os.strerror(errno.EMFILE)}; what was read before stays valid"
        assert tokens.problems == [(tokens.directory.name, problem)]
        tokens.clock.sleep(RELOAD_AFTER_S)
        assert tokens.who(api_key=TOKEN) == "operator"


def test_a_removal_that_could_not_be_seen_counts_once_the_machine_can_read(tokens: Tokens) -> None:
    (tokens.directory / "kitchen").write_text(OTHER)
    tokens.clock.sleep(RELOAD_AFTER_S)
    caller = tokens.store.identify(None, TOKEN)
    (tokens.directory / "operator").unlink()
    with no_file_descriptors_left():
        tokens.clock.sleep(RELOAD_AFTER_S)
        assert tokens.who(api_key=TOKEN) == "operator"
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert (tokens.who(api_key=TOKEN), tokens.who(api_key=OTHER)) == ("unauthenticated", "kitchen")
    with pytest.raises(GatewayError):
        tokens.store.check(caller)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_a_file_that_cannot_be_read_now_keeps_its_value_and_is_read_again(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tokens.directory / "kitchen").write_text(OTHER)
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=OTHER) == "kitchen"
    new = "new-0123456789abcdef"
    opened = Path.open

    def broken(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == "operator":
            raise OSError(number, os.strerror(number))
        return opened(path, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", broken)
        os.truncate(tokens.directory / "operator", 0)
        (tokens.directory / "kitchen").unlink()
        for _ in range(3):
            tokens.clock.sleep(RELOAD_AFTER_S)
            assert (tokens.who(api_key=TOKEN), tokens.who(api_key=OTHER)) == ("operator", "unauthenticated")
        assert tokens.problems == [("operator", f"cannot be read: {os.strerror(number)}; what was read before stays valid")]
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=TOKEN) == "unauthenticated", "read again, although nothing changed since"
    (tokens.directory / "operator").write_text(new)
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=new) == "operator"


@pytest.mark.parametrize("error", [FileNotFoundError, NotADirectoryError, PermissionError])
def test_a_directory_taken_away_is_no_fault_of_the_machine(tokens: Tokens, monkeypatch: pytest.MonkeyPatch, error: type[OSError]) -> None:
    def gone(path: Path) -> Any:
        raise error

    monkeypatch.setattr(Path, "iterdir", gone)
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=TOKEN) == "unauthenticated" and len(tokens.store) == 0


def test_a_mounted_secret_as_kubernetes_lays_it_out(tmp_path: Path) -> None:
    def version(name: str, **values: str) -> None:
        (tmp_path / name).mkdir()
        for key, value in values.items():
            (tmp_path / name / key).write_text(value)
        (tmp_path / "..tmp").symlink_to(name)
        os.replace(tmp_path / "..tmp", tmp_path / "..data")

    version("..2026_01", operator=TOKEN)
    (tmp_path / "operator").symlink_to("..data/operator")
    tokens = Tokens(tmp_path)
    assert tokens.who(api_key=TOKEN) == "operator" and len(tokens.store) == 1
    version("..2026_02", operator=OTHER)
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=OTHER) == "operator"
    assert tokens.who(api_key=TOKEN) == "unauthenticated"


def test_a_bad_file_is_told_and_the_others_work(tokens: Tokens) -> None:
    (tokens.directory / "short").write_text("abc")
    (tokens.directory / "comma").write_text(f"{TOKEN},x")
    (tokens.directory / "empty").write_text("")
    (tokens.directory / "folder").mkdir()
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=TOKEN) == "operator"
    assert tokens.who(api_key="abc") == "unauthenticated"
    assert tokens.problems == [
        ("comma", "holds a comma, which separates two credentials in a header"),
        ("empty", "is empty"),
        ("folder", "is a directory, not a file"),
        ("short", "is shorter than 16 characters"),
    ]


def test_the_refusal_names_both_headers(tokens: Tokens) -> None:
    with pytest.raises(GatewayError) as caught:
        tokens.store.identify(None)
    assert caught.value.kind is Kind.UNAUTHENTICATED
    assert "Authorization" in caught.value.message and "x-api-key" in caught.value.message
