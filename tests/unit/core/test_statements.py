"""Tests of the cache of prepared statements; the model server answers late and sometimes refuses."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgha._core.statements import Entry, Key, StatementCache


def key(text: str, *types: int) -> Key:
    return text.encode(), types


def prepared(cache: StatementCache, text: str) -> Entry:
    """Look up a statement until it is to be parsed, and confirm the parsing."""
    while (entry := cache.lookup(key(text))) is None:
        pass
    cache.parsed(entry)
    return entry


def looks_until_parse(threshold: int) -> int:
    cache = StatementCache(threshold, 10)
    for looks in range(1, 100):
        entry = cache.lookup(key("SELECT 1"))
        if entry is not None:
            assert not entry.ready and entry.name is not None
            return looks
    raise AssertionError("never")


@pytest.mark.parametrize(("threshold", "looks"), [(0, 1), (1, 2), (3, 4)])
def test_the_threshold_is_how_often_it_goes_unprepared(threshold: int, looks: int) -> None:
    assert looks_until_parse(threshold) == looks


def test_no_threshold_prepares_nothing_and_remembers_nothing() -> None:
    cache = StatementCache(None, 10)
    assert [cache.lookup(key("SELECT 1")) for _ in range(100)] == [None] * 100
    assert len(cache) == 0


def test_long_texts_are_not_prepared() -> None:
    cache = StatementCache(0, 10)
    assert cache.lookup(key("x" * (StatementCache.LONGEST + 1))) is None
    assert len(cache) == 0
    assert cache.lookup(key("x" * StatementCache.LONGEST)) is not None


def test_the_types_belong_to_the_key() -> None:
    cache = StatementCache(0, 10)
    number, text = cache.lookup(key("SELECT $1", 23)), cache.lookup(key("SELECT $1", 25))
    assert number is not None and text is not None
    assert number is not text and number.name != text.name


def test_others_go_unprepared_until_the_parse_is_confirmed() -> None:
    cache = StatementCache(0, 10)
    entry = cache.lookup(key("a"))
    assert entry is not None
    assert [cache.lookup(key("a")) for _ in range(5)] == [None] * 5
    cache.parsed(entry)
    assert cache.lookup(key("a")) is entry and entry.ready
    assert cache.closing() == []


def test_a_failed_parse_begins_anew_under_another_name() -> None:
    cache = StatementCache(1, 10)
    assert cache.lookup(key("a")) is None
    first = cache.lookup(key("a"))
    assert first is not None
    name = first.name
    cache.failed(first)
    assert len(cache) == 0 and cache.closing() == []
    assert cache.lookup(key("a")) is None  # the count begins again
    second = cache.lookup(key("a"))
    assert second is not None and second is not first and second.name != name


def test_the_least_recently_used_is_evicted_and_closed_once() -> None:
    cache = StatementCache(0, 2)
    a, b = prepared(cache, "a"), prepared(cache, "b")
    name = b.name
    assert cache.lookup(key("a")) is a
    prepared(cache, "c")
    assert len(cache) == 2
    assert cache.closing() == [name]
    assert cache.closing() == []
    assert cache.lookup(key("a")) is a


def test_what_is_only_counted_moves_up_too() -> None:
    cache = StatementCache(1, 2)
    assert cache.lookup(key("a")) is None
    assert cache.lookup(key("b")) is None
    cache.lookup(key("a"))
    cache.lookup(key("c"))  # evicts "b"
    assert cache.lookup(key("b")) is None
    assert cache.closing() == []


def test_evicted_while_parsing_is_closed_when_confirmed() -> None:
    cache = StatementCache(0, 1)
    first = cache.lookup(key("a"))
    assert first is not None
    name = first.name
    assert name is not None
    assert cache.lookup(key("b")) is not None
    assert cache.closing() == []  # not known to be on the server yet
    cache.parsed(first)
    assert cache.closing() == [name]


def test_evicted_while_parsing_and_failed_is_forgotten() -> None:
    cache = StatementCache(0, 1)
    first, second = cache.lookup(key("a")), cache.lookup(key("b"))
    assert first is not None and second is not None
    cache.failed(first)
    cache.parsed(second)
    assert cache.closing() == []
    assert cache.lookup(key("b")) is second


def test_a_late_failure_does_not_hit_a_namesake() -> None:
    cache = StatementCache(0, 1)
    old = cache.lookup(key("a"))
    cache.lookup(key("b"))
    new = cache.lookup(key("a"))
    assert old is not None and new is not None
    assert new.name != old.name
    cache.parsed(new)
    cache.failed(old)
    cache.spoiled(old)
    assert cache.lookup(key("a")) is new
    assert cache.closing() == []


def test_spoiled_is_closed_once_and_parsed_anew() -> None:
    cache = StatementCache(0, 10)
    entry = prepared(cache, "a")
    name = entry.name
    cache.spoiled(entry)
    cache.spoiled(entry)  # another segment in flight reused the statement too
    assert cache.closing() == [name]
    assert cache.closing() == []
    fresh = cache.lookup(key("a"))
    assert fresh is not None and not fresh.ready and fresh.name != name


def test_spoiled_after_its_eviction_is_not_closed_again() -> None:
    cache = StatementCache(0, 1)
    entry = prepared(cache, "a")
    name = entry.name
    prepared(cache, "b")
    cache.spoiled(entry)
    assert cache.closing() == [name]


# The state machine: the server processes segments in order, and the client learns answers in order.


class CacheAndServer(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.threshold: int | None = 0
        self.limit = 2
        self.cache = StatementCache(self.threshold, self.limit)
        self.names: set[bytes] = set()
        """The names on the server, once it has processed everything that was sent."""
        self.ever: set[bytes] = set()
        self.confirmed: set[bytes] = set()
        self.closed: set[bytes] = set()
        self.parsing: deque[tuple[Entry, bool]] = deque()
        """Unanswered Parse messages, and whether each will succeed."""
        self.reused: list[Entry] = []
        """Entries that were found ready; some of them have left the cache since."""
        self.seen: dict[Key, int] = {}
        """Lookups of each statement; the cache forgets statements, so its own counts are smaller."""

    @initialize(threshold=st.sampled_from([0, 0, 1, 3, None]), limit=st.integers(1, 3))
    def begin(self, threshold: int | None, limit: int) -> None:
        self.threshold, self.limit = threshold, limit
        self.cache = StatementCache(threshold, limit)

    @rule(texts=st.lists(st.sampled_from("abcd"), min_size=1, max_size=3), passes=st.booleans())
    def send(self, texts: list[str], passes: bool) -> None:
        """Send a segment in the order of `Link.send`: Close first, then the statements."""
        for name in self.cache.closing():
            self.close(name)
        for text in texts:
            entry = self.cache.lookup(key(text))
            self.seen[key(text)] = self.seen.get(key(text), 0) + 1
            if entry is None:
                continue
            assert self.threshold is not None and self.seen[key(text)] > self.threshold
            assert entry.key == key(text)
            assert entry.name is not None
            if entry.ready:
                assert entry.name in self.confirmed
                assert entry.name in self.names, "reused, but not on the server any more"
                self.reused.append(entry)
            else:
                self.parse(entry, entry.name, passes)

    def parse(self, entry: Entry, name: bytes, passes: bool) -> None:
        assert name not in self.ever, "a name was used twice"
        self.ever.add(name)
        self.parsing.append((entry, passes))
        if passes:
            self.names.add(name)

    def close(self, name: bytes) -> None:
        assert name in self.confirmed, "closed, but never confirmed"
        assert name not in self.closed, "closed twice"
        self.closed.add(name)
        self.names.remove(name)

    @rule(text=st.sampled_from("abcd"))
    def often(self, text: str) -> None:
        """Send one statement until it is ready, with every answer arriving in time."""
        for _ in range(2 + (self.threshold or 0)):
            self.send([text], passes=True)
            self.learn(1)

    @precondition(lambda self: self.parsing)
    @rule(how_many=st.integers(1, 3))
    def learn(self, how_many: int) -> None:
        for _ in range(min(how_many, len(self.parsing))):
            entry, passed = self.parsing.popleft()
            if passed:
                assert entry.name is not None
                self.confirmed.add(entry.name)
                self.cache.parsed(entry)
            else:
                self.fail(entry)

    def fail(self, entry: Entry) -> None:
        before = self.cache._entries.get(entry.key)
        self.cache.failed(entry)
        after = self.cache._entries.get(entry.key)
        assert after is (None if before is entry else before)

    @precondition(lambda self: self.reused)
    @rule(data=st.data())
    def spoil(self, data: st.DataObject) -> None:
        self.cache.spoiled(data.draw(st.sampled_from(self.reused)))

    @invariant()
    def bounded(self) -> None:
        assert len(self.cache) <= self.limit
        if self.threshold is None:
            assert len(self.cache) == 0

    def teardown(self) -> None:
        """After all answers and closes, the server has exactly the statements that the cache would reuse."""
        self.learn(len(self.parsing))
        for name in self.cache.closing():
            self.close(name)
        assert self.cache.closing() == []
        kept = {entry.name for entry in self.cache._entries.values() if entry.ready}
        assert self.names == kept
        assert all(entry.ready or entry.name is None for entry in self.cache._entries.values())


TestCacheAndServer = CacheAndServer.TestCase
TestCacheAndServer.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
