"""The gateway's tokens as data of Secrets."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import yaml
from ansible_collections.homelab.hearth.plugins.module_utils import _token as token

NAMES = yaml.safe_load((Path(__file__).resolve().parents[2] / "contract" / "names.yml").read_text())
OLD, NEW, OTHER = "old-0123456789abcdef", "new-0123456789abcdef", "other-0123456789abcdef"


def coded(**values: str) -> dict[str, str]:
    return {name.replace("_previous", ".previous"): token.encode(value) for name, value in values.items()}


def test_a_generated_token_has_256_bits_and_no_line_break() -> None:
    made = {token.generate() for _ in range(100)}
    assert len(made) == 100
    for value in made:
        assert len(base64.urlsafe_b64decode(value + "=")) == 32
        assert token.value_of(token.encode(value)) == value == value.strip()


@pytest.mark.parametrize("name", ["proxy", "home-assistant", "a", "7", "a" * 40])
def test_names(name: str) -> None:
    token.check_name(name)


@pytest.mark.parametrize("name", ["", "Proxy", "proxy.previous", "-a", "a-", "a_b", "a b", "a" * 41, "../a", "a\n", "é"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(token.TokenError, match="is no name for a token: use up to 40 lower-case letters, digits and dashes"):
        token.check_name(name)


def test_the_spelling_is_that_of_the_contract() -> None:
    assert NAMES["gateway"]["tokens"]["previous_suffix"] == token.PREVIOUS
    for name in (NAMES["gateway"]["tokens"]["operator"], NAMES["gateway"]["tokens"]["proxy"]):
        token.check_name(name)


def test_a_token_is_made_once_and_kept() -> None:
    others = coded(other=OTHER)
    made = token.with_token(others, "proxy", NEW)
    assert made == coded(other=OTHER, proxy=NEW)
    assert token.with_token(made, "proxy", OTHER) == made
    # Somebody created the key and never filled it.
    assert token.with_token({"proxy": ""}, "proxy", NEW) == coded(proxy=NEW)


def test_a_rotation_keeps_the_old_value_beside_the_new_one_until_it_is_settled() -> None:
    rotated = token.with_rotation(coded(other=OTHER, proxy=OLD), "proxy", NEW)
    assert rotated == coded(other=OTHER, proxy=NEW, proxy_previous=OLD)
    assert token.with_rotation(rotated, "proxy", OTHER) == rotated, "a second rotation would drop a value that is still shown"
    assert token.with_token(rotated, "proxy", OTHER) == rotated
    settled = token.with_rotation_settled(rotated, "proxy")
    assert settled == coded(other=OTHER, proxy=NEW)
    assert token.with_rotation_settled(settled, "proxy") == settled
    assert token.with_rotation(settled, "proxy", NEW) == settled, "the run that made this value begins no second rotation"


def test_removing_removes_both_values_and_nothing_else() -> None:
    assert token.without_token(coded(other=OTHER, proxy=NEW, proxy_previous=OLD), "proxy") == coded(other=OTHER)
    assert token.without_token({}, "proxy") == {}


@pytest.mark.parametrize("data", [{}, {"proxy": ""}, coded(other=OTHER)])
def test_what_is_not_there_is_neither_replaced_nor_settled(data: dict[str, str]) -> None:
    message = "there is no token proxy: make it with state=present, or correct the name"
    with pytest.raises(token.TokenError, match=message):
        token.with_rotation(data, "proxy", NEW)
    with pytest.raises(token.TokenError, match=message):
        token.with_rotation_settled(data, "proxy")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_line_break_that_kubectl_left_is_not_part_of_the_token(ending: str) -> None:
    """The sign-in proxy answers every request with 502 when its token file ends in one."""
    data = coded(proxy=OLD + ending)
    assert token.held(data, "proxy").current == OLD
    assert token.with_rotation(data, "proxy", NEW) == coded(proxy=NEW, proxy_previous=OLD)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"two words", "holds characters that no token has"),
        (b"tiny", "is shorter than 16 characters"),
        (b"0123456789abcdef,0", "holds characters that no token has"),
        (b"0123456789abcdef\n\n", "holds characters that no token has"),
        (b"0123456789abcdef\xff", "holds characters that no token has"),
    ],
)
def test_a_value_that_the_gateway_refuses_is_not_kept_as_if_it_were_good(raw: bytes, problem: str) -> None:
    data = {"proxy": base64.b64encode(raw).decode()}
    with pytest.raises(token.TokenError, match=problem) as caught:
        token.with_token(data, "proxy", NEW)
    assert "remove it with state=absent, then make it anew" in str(caught.value)
    assert raw.decode(errors="replace").strip() not in str(caught.value), "the value is not told"
    assert token.without_token(data, "proxy") == {}
    # As the value before, it lets nobody in: a rotation may replace it.
    assert token.with_rotation({**coded(proxy=OLD), "proxy.previous": data["proxy"]}, "proxy", NEW) == coded(proxy=NEW, proxy_previous=OLD)
