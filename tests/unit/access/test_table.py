"""The table: what is written stays, survives torn writes and damage, and what the dead had under way is taken back."""

from __future__ import annotations

import logging
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hx_gateway.access import table as tables
from hx_gateway.access.sharing import shared_memory
from hx_gateway.access.table import SIZE, State, Table, TableError

KEY, OTHER = b"k" * 16, b"o" * 16
TODAY = 20_000


class Peer:
    """Another process with the same table, which does as it is told."""

    CODE = """
import sys
from pathlib import Path
from hx_gateway.access.table import State, Table
state = State()
table = Table(Path(sys.argv[1]))
index = table.find(b"k" * 16, 20000)
print(index, flush=True)
for line in sys.stdin:
    print(eval(line), flush=True)
"""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", self.CODE, str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.index = int(self.process.stdout.readline())

    def do(self, words: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "limits.map"


@pytest.fixture
def table(path: Path) -> Iterator[Table]:
    made = Table(path)
    yield made
    made.close()


@pytest.fixture
def peer(table: Table, path: Path) -> Iterator[Peer]:
    made = Peer(path)
    yield made
    made.end()


def write(table: Table, index: int, **values: float) -> None:
    state = State()
    assert table.acquire(index) and table.read(index, state)
    for name, value in values.items():
        setattr(state, name, value)
    table.write(index, state)
    table.release(index)


def read(table: Table, index: int) -> State:
    state = State()
    assert table.read(index, state)
    return state


def test_what_is_written_is_there_after_a_restart(path: Path) -> None:
    table = Table(path)
    index = table.find(KEY, TODAY)
    write(table, index, day_tokens=7, month_cost=10**18, requests=12.5)
    name = table.id
    table.close()
    assert path.stat().st_mode & 0o777 == 0o600
    table = Table(path)
    assert table.id == name and table.find(KEY, TODAY) == index
    state = read(table, index)
    assert (state.day_tokens, state.month_cost, state.requests) == (7, 10**18, 12.5)
    table.close()


def test_after_a_boot_times_are_forgotten_and_sums_kept(path: Path) -> None:
    table = Table(path)
    index = table.find(KEY, TODAY)
    write(table, index, day_tokens=7, requests=1e9, tokens=1e9)
    table.close()
    with path.open("r+b") as file:
        file.seek(24)
        file.write(b"\x07" * 16)  # another boot
    table = Table(path)
    state = read(table, index)
    assert (state.requests, state.tokens, state.day_tokens) == (0.0, 0.0, 7)
    table.close()


def test_keys_do_not_share_slots_and_find_their_own(table: Table) -> None:
    keys = [struct.pack("<QQ", number % 3, number) for number in range(200)]  # nearly all want the same three slots
    found = {key: table.find(key, TODAY) for key in keys}
    assert len(set(found.values())) == 200 and min(found.values()) > 1
    assert {key: table.find(key, TODAY) for key in keys} == found
    assert table.find(b"g" * 16, TODAY, fixed=0) == 0


def test_a_full_table_says_so_and_takes_the_slots_of_those_long_gone(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_PROBES", 4)
    same = [struct.pack("<QQ", 5, number) for number in range(6)]
    first = [table.find(key, TODAY) for key in same[:4]]
    assert -1 not in first and table.find(same[4], TODAY) == -1
    write(table, first[2], day=TODAY - 100, day_tokens=9)
    table.add(first[2], 1)
    assert table.find(same[4], TODAY) == -1, "it has a request under way"
    table.add(first[2], -1)
    assert table.find(same[4], TODAY) == first[2]
    assert read(table, first[2]).day_tokens == 0


def test_a_torn_write_leaves_the_state_before_it(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    index = table.find(KEY, TODAY)
    write(table, index, day_tokens=1)
    write(table, index, day_tokens=2)
    newest = State()
    table.read(index, newest)
    table._bytes[newest.place + 20] ^= 0xFF
    assert read(table, index).day_tokens == 1
    write(table, index, day_tokens=3)
    assert read(table, index).day_tokens == 3
    assert not caplog.records


def test_a_damaged_slot_is_reset_with_a_word_and_those_behind_it_are_still_found(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    first, second = struct.pack("<QQ", 9, 1), struct.pack("<QQ", 9, 2)
    one, two = table.find(first, TODAY), table.find(second, TODAY)
    write(table, two, day_tokens=5)
    start = 4096 + one * tables._SLOT
    table._bytes[start : start + 256] = os.urandom(256)
    with caplog.at_level(logging.ERROR):
        assert table.find(second, TODAY) == two, "what stands behind it is not lost"
        assert table.find(first, TODAY) == one
    assert read(table, two).day_tokens == 5 and read(table, one).day_tokens == 0
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_file_that_is_none_of_ours_is_put_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b"something else")
    table = Table(path)
    assert table.find(KEY, TODAY) > 1 and path.stat().st_size == SIZE
    assert path.with_name("limits.map.unusable").read_bytes() == b"something else"
    assert "kept as limits.map.unusable" in caplog.text
    table.close()


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="directory"):
        Table(tmp_path)


def test_two_tables_in_one_process_keep_each_other_out(table: Table, path: Path) -> None:
    other = Table(path)
    index = table.find(KEY, TODAY)
    assert table.acquire(index) and not other.acquire(index)
    other.close()  # does not give our lock back
    third = Table(path)
    assert not third.acquire(index)
    table.release(index)
    assert third.acquire(index)
    third.close()


def test_memory_without_a_name_is_shared_by_who_inherits_it() -> None:
    memory = shared_memory()
    one, two = Table(inherited=memory), Table(inherited=memory)
    index = one.find(KEY, TODAY)
    assert two.find(KEY, TODAY) == index
    assert one.acquire(index) and not two.acquire(index)
    assert one.column != two.column
    one.close()
    two.close()
    os.close(memory)


def test_what_a_killed_process_had_under_way_is_taken_back(table: Table, peer: Peer) -> None:
    index = table.find(KEY, TODAY)
    assert index == peer.index
    table.add(index, 1, 10, 100)
    peer.do("table.add(index, 2, 20, 200)")
    assert (table.requests(index), table.reserved(index), table.mine(index)) == (3, (30, 300), (1, 10, 100))
    assert table.take_back(time.monotonic()) and table.requests(index) == 3, "it lives"
    peer.process.kill()
    peer.process.wait()
    assert table.take_back(time.monotonic() + 1)
    assert (table.requests(index), table.reserved(index)) == (1, (10, 100))


def test_a_lock_dies_with_its_holder(table: Table, peer: Peer) -> None:
    assert peer.do("table.acquire(index)") == "True"
    assert not table.acquire(peer.index)
    peer.process.kill()
    peer.process.wait()
    assert table.acquire(peer.index)


def test_a_stopped_holder_is_not_waited_for(table: Table, peer: Peer) -> None:
    assert peer.do("table.acquire(index)") == "True"
    os.kill(peer.process.pid, signal.SIGSTOP)
    assert not table.acquire(peer.index)  # comes back at all
    assert table.take_back(time.monotonic()) and table.processes() == 2


def test_counts_stay_in_their_bounds(table: Table) -> None:
    index = table.find(KEY, TODAY)
    table.add(index, -5, -5, -5)
    assert table.mine(index) == (0, 0, 0)
    table.add(index, 70_000)
    assert table.requests(index) == 65_535


class Shared(RuleBasedStateMachine):
    """Two processes with one table, of which the other is killed now and then, against a model of what each has under way."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "limits.map"
        self.table = Table(self.path)
        self.index = self.table.find(KEY, TODAY)
        self.peer = Peer(self.path)
        self.mine = self.theirs = self.used = 0
        self.now_s = time.monotonic()

    def teardown(self) -> None:
        self.peer.end()
        self.table.close()
        self.folder.cleanup()

    @rule(count=st.integers(1, 5))
    def take(self, count: int) -> None:
        self.table.add(self.index, count, count * 10, count * 100)
        self.mine += count

    @rule(count=st.integers(1, 5))
    def they_take(self, count: int) -> None:
        self.peer.do(f"table.add(index, {count}, {count * 10}, {count * 100})")
        self.theirs += count

    @rule(tokens=st.integers(0, 10**12))
    def use(self, tokens: int) -> None:
        write(self.table, self.index, day_tokens=self.used + tokens)
        self.used += tokens

    @rule(tokens=st.integers(0, 10**12))
    def they_use(self, tokens: int) -> None:
        words = "table.acquire(index)", "table.read(index, state)", f"setattr(state, 'day_tokens', state.day_tokens + {tokens})"
        self.peer.do(f"[{', '.join(words)}, table.write(index, state), table.release(index)]")
        self.used += tokens

    @rule()
    def they_are_killed(self) -> None:
        self.peer.process.kill()
        self.peer.process.communicate()
        self.now_s += 1
        assert self.table.take_back(self.now_s)
        self.theirs = 0
        assert self.table.requests(self.index) == self.mine
        self.peer = Peer(self.path)

    @invariant()
    def both_agree(self) -> None:
        if hasattr(self, "peer"):
            total = self.mine + self.theirs
            assert (self.table.requests(self.index), self.table.reserved(self.index)) == (total, (total * 10, total * 100))
            assert read(self.table, self.index).day_tokens == self.used
            assert self.peer.do("(table.requests(index), table.read(index, state) and state.day_tokens)") == str((total, self.used))


TestShared = Shared.TestCase
TestShared.settings = hypothesis_settings(max_examples=6, stateful_step_count=20)
