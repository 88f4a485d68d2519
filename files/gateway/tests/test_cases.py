"""Every case of the translation has tests: T1 to T53 of the specification, and where each is shown.

A case is shown by fixtures (tests/fixtures, by their number), by tests that carry its number in their name
(`test_t05_…`), and by the tests named here. A test that is gone is noticed.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FOLDERS = (HERE, HERE.parents[2] / "tests" / "gateway")

CASES = {
    1: "the leading system messages become blocks and keep cache_control",
    2: "a later system message stays in its place",
    3: "neighbours of one role are joined, the user begins",
    4: "no empty text; no white space at the end of a prefill",
    5: "tool results share one turn and come first",
    6: "every tool call needs its result",
    7: "arguments that are no JSON never end the conversation",
    8: "schemas of tools go through whole",
    9: "tool names are made acceptable, and back",
    10: "tool calls in the history of a request without tools",
    11: "tool_choice and parallel_tool_calls",
    12: "images and documents; what cannot be sent is refused, not dropped",
    13: "stop",
    14: "max_tokens is asked for or the ceiling of the served model",
    15: "sampling is clamped, and dropped for models that refuse it",
    16: "a person is a pseudonym upstream, never an e-mail",
    17: "response_format",
    18: "reasoning_effort; no manual reasoning after unsigned tool calls",
    19: "cache_control goes through, four at most",
    20: "n and logprobs are refused; hints are left out and listed",
    21: "unknown fields never leave",
    22: "all text belongs to the answer; content is null with tool calls only",
    23: "reasoning is kept apart, with its signature",
    24: "stop reasons; an unknown one is no error",
    25: "prompt_tokens hold the cached ones",
    26: "the price is that of who served; an unknown price is counted, never zero",
    27: "id, created and model stay the same; headers say who served",
    28: "the role comes first; tools are counted as tools",
    29: "no {} before the arguments",
    30: "a call without arguments gets {}",
    31: "arguments of the vendor's own tools are nobody's call",
    32: "reasoning is no content",
    33: "usage is set where present and never added",
    34: "vendors that count the cache beside the prompt",
    35: "usage comes in a chunk of its own if asked for, and is always counted",
    36: "one finish reason, one [DONE], nothing after",
    37: "an error before content fails over with its own class",
    38: "an error after content is shown, without [DONE]",
    39: "a stream that ends without its end is broken",
    40: "the first content is the point of no return",
    41: "a caller may want no fallback",
    42: "heartbeats, and headers against buffering",
    43: "server-sent events as vendors really send them",
    44: "a client that leaves cancels upstream and pays for what it saw",
    45: "limits apart for first token, silence and the whole",
    46: "a document where a stream was asked for, and the reverse",
    47: "message_start carries usage",
    48: "the final usage holds the tokens of the prompt",
    49: "the vendor is always asked for the usage",
    50: "arguments of tools arrive as fragments of JSON",
    51: "blocks start and stop in pairs",
    52: "failover on the Messages route",
    53: "limits count the Messages route",
}
# Beside the tests that carry the number in their name.
ALSO = {
    24: ["test_conversation.py::test_a_stop_reason_nobody_knows_is_counted"],
    26: [
        "test_prices.py::test_each_kind_of_token_has_its_own_rate",
        "test_prices.py::test_the_price_is_that_of_the_provider_that_serves",
        "test_money.py::test_what_has_no_price_is_counted_apart_and_never_free",
        "test_money.py::test_a_request_that_failed_over_costs_what_the_one_that_served_charges",
    ],
    27: ["test_sdk.py::test_headers_say_who_served"],
    37: ["test_failover.py::test_a_fault_before_the_first_content_goes_on_to_the_next"],
    38: ["test_failover.py::test_a_fault_after_the_first_content_is_shown_and_nobody_takes_over"],
    40: [
        "test_conversation.py::test_before_the_first_content_the_next_provider_takes_over",
        "test_conversation.py::test_after_the_first_content_nobody_takes_over",
        "test_conversation.py::test_waiting_for_content_keeps_what_came_before_it",
    ],
    41: ["test_conversation.py::test_a_caller_may_want_no_fallback", "test_failover.py::test_a_caller_may_want_this_provider_or_none"],
    42: [
        "test_faults.py::test_heartbeats_while_the_vendor_is_silent",
        "test_http.py::test_streams_are_not_to_be_buffered",
    ],
    43: [
        "test_sse.py::test_cut_into_pieces_of_any_size",
        "test_sse.py::test_an_event_has_a_largest_size",
        "test_sdk.py::test_streams_in_odd_clothes",
    ],
    44: [
        "test_failover.py::test_a_client_that_leaves_cancels_at_the_vendor",
        "test_money.py::test_who_leaves_pays_what_was_seen",
    ],
    45: [
        "test_conversation.py::test_first_token_limit",
        "test_conversation.py::test_silence_limit",
        "test_conversation.py::test_total_limit_spans_all_attempts",
    ],
    49: ["test_golden_requests.py::test_the_vendor_gets_exactly_this"],
}


@cache
def functions() -> dict[str, set[str]]:
    """Names of test functions by file."""
    return {
        path.name: {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        for folder in FOLDERS
        for path in sorted(folder.glob("test_*.py"))
    }


def numbered(number: int) -> list[str]:
    """Tests and fixtures that carry the number of the case."""
    mark = re.compile(rf"test_(t\d\d_)*t{number:02}_")
    tests = [f"{file}::{name}" for file, names in functions().items() for name in names if mark.match(name)]
    return tests + [path.name for path in (HERE / "fixtures").glob(f"*/T{number:02}-*")]


@pytest.mark.parametrize("number", CASES)
def test_the_case_is_shown(number: int) -> None:
    assert numbered(number) or ALSO.get(number), f"T{number} ({CASES[number]}) has no test"


def test_the_list_is_whole() -> None:
    assert list(CASES) == list(range(1, 54))


@pytest.mark.parametrize("named", [named for tests in ALSO.values() for named in tests])
def test_the_tests_named_here_exist(named: str) -> None:
    file, _, name = named.partition("::")
    assert name in functions().get(file, set()), f"{named} is gone: name the test that shows the case now"


def test_both_providers_are_shown_where_a_request_is_translated() -> None:
    for number in range(1, 22):
        for provider in ("anthropic", "openai"):
            assert list((HERE / "fixtures" / "requests").glob(f"T{number:02}-*.{provider}.json")), f"T{number} at {provider}"
