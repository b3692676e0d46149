"""Addresses, keys, proxies and the retry policy."""

import os
import random
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from shfcas.utils import http
from shfcas.utils.errors import UsageError, UserError
from shfcas.utils.http import Endpoint, Secret, backoff, check_base_url, is_loopback, is_temporary, retry_after

KEY = "sk-quince/medlar+secret"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SOME_KEY", KEY)


def endpoint(url: str = "https://server.example/v1") -> Endpoint:
    return Endpoint(url, "base_url", "SOME_KEY")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000/v1", "expected an address"),
        ("ftp://host/v1", "expected an address"),
        ("http:///v1", "expected an address"),
        ("http://host:port/v1", "not an address"),
        ("http://[::1", "not an address"),
        ("http://me:password@host/v1", "leave names, passwords"),
        ("http://host/v1?key=password", "leave names, passwords"),
        ("http://host/v1#password", "leave names, passwords"),
    ],
)
def test_other_addresses_are_refused_without_repeating_them(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^server.base_url: {message}") as caught:
        check_base_url(url, "server.base_url")
    assert "password@" not in str(caught.value) and "key=" not in str(caught.value)


def test_an_endpoint_knows_its_parts() -> None:
    here = endpoint("http://[::1]:8000/v1/")
    assert (here.url, here.host, here.root) == ("http://[::1]:8000/v1", "[::1]:8000", "http://[::1]:8000")
    assert here.authorization() == {"Authorization": f"Bearer {KEY}"}


def test_no_key_is_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", " ")
    assert endpoint().authorization() == {} and not endpoint().key
    assert endpoint().quote("nothing to hide") == "nothing to hide"


@pytest.mark.parametrize("key", ["schlüssel-0123", "two\nlines-0123", "bell\a-01234567"])
def test_a_key_that_no_header_can_carry_is_named_by_its_variable(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(UserError, match=r"^SOME_KEY: expected printable ASCII characters") as caught:
        endpoint()
    assert "0123" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"Bearer {KEY}!",
        KEY.replace("/", "\\/"),
        KEY.replace("/", "%2F").replace("+", "%2b"),
        KEY.replace("s", "\\u0073").replace("+", "\\u002B"),
        KEY.replace("/", "\\\\/"),
        KEY.replace("s", "\\\\\\\\u0073"),
        "".join(f"\\u{ord(c):04X}" for c in KEY),
        KEY.upper(),
        "quoted: \\" + KEY,
        KEY[:9] + KEY,
    ],
)
def test_the_key_is_hidden_also_if_it_is_escaped(text: str) -> None:
    assert "***" in Secret(KEY).hide(text) and "medlar" not in Secret(KEY).hide(text).lower()


@pytest.mark.parametrize("cut", [KEY[:-1], KEY[:9], KEY[:9] + "\\u00", KEY[:10] + "%2", f"{KEY} and {KEY[:12]}"])
def test_a_part_of_the_key_at_the_end_is_hidden(cut: str) -> None:
    """A text may have been cut inside the key, by us or by others."""
    assert Secret(KEY).hide(f"said {cut}").endswith("***") and KEY[:9] not in Secret(KEY).hide(f"said {cut}")
    assert Secret(KEY).hide(f"{KEY[:9]}!") == f"{KEY[:9]}!"  # a word that begins like it
    assert endpoint().quote("x" + " " * 100_000 + KEY[:12]) == "x ***"


def test_hiding_takes_linear_time() -> None:
    for text in ("s" * 10**6, "\\" * 10**6, KEY[:8] * 10**5, KEY[:-1] * 10**5, (KEY[:8] + "\\" * 1000) * 1000):
        began = time.process_time()
        Secret(KEY).hide(text)
        assert time.process_time() - began < 20  # a tenth of a second; quadratic time would be hours
    assert Secret("k" * 5000).hide("k" * 5000) == "***"


def test_a_remote_address_without_encryption_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    http._warn_unencrypted.cache_clear()
    for _ in range(3):
        endpoint("http://one.example/v1")
        endpoint("http://127.0.0.1/v1")
        endpoint("https://two.example/v1")
    monkeypatch.delenv("SOME_KEY")
    endpoint("http://three.example/v1")
    assert caplog.messages == [
        "SOME_KEY and all texts go to one.example unencrypted; use https, or a tunnel",
        "all texts go to three.example unencrypted; use https, or a tunnel",
    ]


def test_the_key_is_in_no_repr() -> None:
    here = endpoint()
    assert KEY not in repr(here) + repr(vars(here)) + repr(here.key) + str(here.key)
    assert Secret("EMPTY").hide("an EMPTY reply") == "an EMPTY reply"  # such a short key is no secret


def test_what_others_say_is_quoted_on_one_short_line() -> None:
    here = endpoint()
    assert here.quote(" two\n\tlines\x1b[31m \u202e") == "two lines[31m "
    assert here.quote(KEY[:5] + "\x00" + KEY[5:]) == "***"  # the key, once control characters are gone
    assert len(here.quote("x" * 1000)) == 200
    assert here.quote("x" * 190 + KEY)[190:] == "***"  # hidden before it is cut
    assert here.quote("") == ""


LOOPBACK = [
    "localhost",
    "LOCALHOST.",
    "a.localhost",
    "127.0.0.1",
    "127.8.9.1",
    "::1",
    "::ffff:127.0.0.1",
    "0.0.0.0",
    "::",
]
SHORT = ["127.1", "0x7f000001", "2130706433", "[::1]"]  # as the system reads them
OTHERS = ["example.com", "localhost.example.com", "10.0.0.1", "2001:db8::1", "128.0.0.1", "", "10.1", "localhost.evil"]


@pytest.mark.parametrize("host", [*LOOPBACK, *SHORT])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["example.com", "localhost.example.com", "10.0.0.1", "2001:db8::1", "128.0.0.1", "", "10.1", "localhost.evil"],
)
def test_no_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_proxies_come_from_the_environment_except_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert endpoint().proxy() is None
    monkeypatch.setenv("ALL_PROXY", "socks5://all.example:1")
    assert endpoint().proxy() == "socks5://all.example:1"
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    assert endpoint().proxy() == "http://proxy.example:3128"
    assert endpoint("http://server.example/v1").proxy() == "socks5://all.example:1"
    for url in ("http://localhost:1/v1", "https://127.0.0.1/v1", "http://[::1]:8000/v1", "http://0.0.0.0:8000/v1"):
        assert endpoint(url).proxy() is None
    monkeypatch.setenv("NO_PROXY", "other.example,.server.example,server.example")
    assert endpoint().proxy() is None
    assert endpoint("https://elsewhere.example/v1").proxy() is not None


def test_which_statuses_may_pass() -> None:
    assert [status for status in range(400, 512) if is_temporary(status)] == [408, 409, 425, 429, *range(500, 512)]


def test_backoff_doubles_up_to_a_minute_and_depends_on_its_source_alone() -> None:
    waits = [backoff(1.0, attempt, random.Random(7)) for attempt in (1, 2, 3, 4)]
    assert waits == [backoff(1.0, attempt, random.Random(7)) for attempt in (1, 2, 3, 4)]
    assert [wait / waits[0] for wait in waits] == [1, 2, 4, 8] and 0.75 <= waits[0] <= 1
    for first, attempt in ((1.0, 10**6), (1e300, 10**6), (100.0, 1)):
        assert 45 <= backoff(first, attempt, random.Random()) <= 60
    assert backoff(0.0, 10, random.Random()) == 0


def test_retry_after_is_a_number_or_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    assert retry_after({"retry-after": "1.5"}) == 1.5
    later = datetime.now(UTC) + timedelta(seconds=1000)
    forms = [format_datetime(later, usegmt=True), later.strftime("%A, %d-%b-%y %H:%M:%S GMT")]
    forms.append(later.strftime("%a %b %d %H:%M:%S %Y"))  # the oldest form, which leaves its time zone out
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        for form in forms:
            assert 900 < (retry_after({"retry-after": form}) or 0) <= 1000, form
    finally:
        monkeypatch.undo()
        time.tzset()
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "-3"}) == 0
    assert [retry_after({"retry-after": odd}) for odd in ("soon", "nan", "inf", "1e999", "")] == [None] * 5
    assert retry_after({}) is None
