"""The list of people who may sign in, as text."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.hearth.plugins.module_utils import _emails as emails
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ann@example.org", "ann@example.org"),
        ("  Ann.Lee+chat@Example.ORG\t", "ann.lee+chat@example.org"),
        ("o'neil@example.org", "o'neil@example.org"),
        ("a@b-c.example.co.kr", "a@b-c.example.co.kr"),
    ],
)
def test_an_address_is_written_in_one_form(text: str, address: str) -> None:
    assert emails.normalise(text) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("*", "wildcards"),
        ("*@example.org", "wildcards"),
        ("ann", "exactly one @"),
        ("ann@@example.org", "exactly one @"),
        ("ann@x@example.org", "exactly one @"),
        ("@example.org", "both sides"),
        ("ann@", "both sides"),
        ("ann@home", "not a domain"),
        ("ann@example..org", "not a domain"),
        ("ann@-x.org", "not a domain"),
        ("ann@example.org # note", "not a domain"),
        ("ann lee@example.org", "before the @"),
        ("#ann@example.org", "before the @"),
        ('"ann"@example.org', "before the @"),
        ("ann,ben@example.org", "before the @"),
        (".ann@example.org", "before the @"),
        ("änn@example.org", "ASCII"),
        ("ann@ex\u0430mple.org", "ASCII"),  # a Cyrillic letter that looks like a Latin one
        ("a" * 65 + "@example.org", "longer"),
        ("ann\n@example.org", "before the @"),
        ("ann@example.org\nben@example.org", "exactly one @"),
    ],
)
def test_what_is_not_one_address_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(emails.EmailError, match=reason):
        emails.normalise(text)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(emails.EmailError, match=r"'ann'.*; .*'ben@'"):
        emails.normalise_all(["ann", "ok@example.org", "ben@"])


LIST = "# family\nann@example.org\n\n# guests, until Sunday\nben@example.org\n"


def test_comments_blank_lines_and_order_stay() -> None:
    assert emails.with_present(LIST, ["cy@example.org"]) == LIST + "cy@example.org\n"
    assert emails.with_absent(LIST, ["ann@example.org"]) == "# family\n\n# guests, until Sunday\nben@example.org\n"


def test_who_is_there_is_not_added_again() -> None:
    assert emails.with_present(LIST, ["ben@example.org", "ann@example.org"]) == LIST


def test_the_last_person_leaves_an_empty_list_and_not_a_blank_line() -> None:
    assert emails.with_absent("ann@example.org\n", ["ann@example.org"]) == ""
    assert emails.with_present("", ["ann@example.org"]) == "ann@example.org\n"


def test_a_hand_edited_list_is_written_back_plain() -> None:
    messy = "Ann@Example.org  \r\n# note\r\nben@example.org\r\nANN@example.org"
    assert emails.with_present(messy, []) == "ann@example.org\n# note\nben@example.org\n"


def test_removing_somebody_removes_every_spelling() -> None:
    assert emails.with_absent("Ann@example.org\nben@example.org\nann@EXAMPLE.org\n", ["ann@example.org"]) == "ben@example.org\n"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("ann@example.org\nben@example.org,guest\n", 2, "comma"),
        ('ann@example.org\n\n"ben@example.org"\n', 3, "quote"),
        ('# fine\nben"@example.org\n', 2, "quote"),
        ("\ufeffann@example.org\n", 1, "byte order mark"),
        ("ann@example.org # my sister\n", 1, "comment behind"),
        ("ann@example.org\n # indented\n", 2, "comment behind"),
        ("*\n", 1, "wildcards"),
        ("ann@example.org\nnot an address\n", 2, "exactly one @"),
    ],
)
def test_a_list_that_the_proxy_would_misread_is_refused_with_the_line(text: str, line: int, reason: str) -> None:
    for change in (emails.with_present, emails.with_absent):
        with pytest.raises(emails.MalformedListError, match=rf"line {line}: .*{reason}") as caught:
            change(text, ["cy@example.org"])
        assert [number for number, _ in caught.value.problems] == [line]


def test_commas_and_quotes_in_comments_are_comments() -> None:
    text = '# "family", all of it\nann@example.org\n'
    assert emails.listed(text) == ["ann@example.org"]


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("\ufeffann@example.org", "ann@example.org\n"),
        ("\ufeff# note", "# note\n"),
        ("\ufeff", ""),
        ('"Ann@example.org"', "ann@example.org\n"),
        ("ann@example.org # my sister", "# mended: ann@example.org # my sister\nann@example.org\n"),
        (" # indented", "# indented\n"),
        ("ann@example.org,guest", "# mended: ann@example.org,guest\nann@example.org\n"),
        # The proxy reads the first column only: mending must not let in the second.
        ("ann@example.org,ben@example.org", "# mended: ann@example.org,ben@example.org\nann@example.org\n"),
        ("guest,ann@example.org", "# not an address: guest,ann@example.org\n"),
        ("*@example.org", "# not an address: *@example.org\n"),
        ("*", "# not an address: *\n"),
        ("ann lee", "# not an address: ann lee\n"),
    ],
)
def test_a_malformed_line_is_mended_without_losing_a_word(line: str, becomes: str) -> None:
    text, mends = emails.mended(line)
    assert text == becomes
    assert [mend.number for mend in mends] == [1]
    assert emails.mended(text) == (text, []), "a mended list is plain"


def test_mending_leaves_plain_lines_as_they_are() -> None:
    text, mends = emails.mended(f"{LIST}dee@example.org,x\n")
    assert text == f"{LIST}# mended: dee@example.org,x\ndee@example.org\n"
    assert [(mend.number, mend.became) for mend in mends] == [(LIST.count("\n") + 1, "# mended: dee@example.org,x / dee@example.org")]
    # Nothing to mend: not even upper case or a missing newline is touched.
    assert emails.mended("ANN@example.org") == ("ANN@example.org", [])


def test_what_can_be_read_of_a_malformed_list() -> None:
    people, problems = emails.readable("ann@example.org\nx,y\nBen@example.org\n")
    assert people == ["ann@example.org", "ben@example.org"]
    assert [number for number, _ in problems] == [2]


ADDRESSES = st.from_regex(r"\A[a-z]{1,8}@[a-z]{1,6}\.(org|kr)\Z")
TEXTS = st.lists(st.one_of(ADDRESSES, ADDRESSES.map(str.upper), st.just(""), st.just("# note, with a comma"))).map("\n".join)


@given(TEXTS, st.lists(ADDRESSES, max_size=4))
def test_whatever_is_done_the_proxy_reads_exactly_the_people(text: str, people: list[str]) -> None:
    """Read as the sign-in proxy reads it: CSV, first column, comment lines skipped, lower case."""

    def as_the_proxy(content: str) -> set[str]:
        rows = [line for line in content.split("\n") if line and not line.startswith("#")]
        assert not any('"' in row or "," in row for row in rows)
        return {row.strip().lower() for row in rows}

    added = emails.with_present(text, people)
    assert as_the_proxy(added) == as_the_proxy(text) | set(people)
    assert emails.with_present(added, people) == added, "a second time changes nothing"
    exact = emails.with_exactly(text, people)
    assert as_the_proxy(exact) == set(people)
    assert [line for line in exact.split("\n") if line.startswith("#")] == [line for line in text.split("\n") if line.startswith("#")]
    assert as_the_proxy(emails.with_absent(added, people)) == as_the_proxy(text) - set(people)
    assert added == "" or (added.endswith("\n") and not added.endswith("\n\n"))


@given(st.text(alphabet='ab@.,"#* \t\ufeff\r\né', max_size=60), st.lists(ADDRESSES, max_size=2))
def test_whatever_a_list_looked_like_it_is_plain_after_mending(text: str, people: list[str]) -> None:
    plain, mends = emails.mended(text)
    was, problems = emails.readable(text)
    assert [(mend.number, mend.problem) for mend in mends] == problems
    assert emails.readable(plain)[1] == []
    assert set(was) <= set(emails.listed(plain)), "nobody on a sound line is lost"
    assert emails.mended(plain) == (plain, [])
    assert set(emails.listed(emails.with_exactly(plain, people))) == set(people)
