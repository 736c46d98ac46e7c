"""A simulated server: every second of it can be worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from hx_gateway.core import errors
from hx_gateway.core.errors import ErrorKind
from hx_gateway.simulation.cache import BlockCache
from hx_gateway.simulation.events import Events
from hx_gateway.simulation.plan import ServerPlan
from hx_gateway.simulation.server import Job, Server
from hx_gateway.simulation.trace import Arrival, chained


class Client:
    """Notes when what came of a request."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.cached = -1
        self.load_s = -1.0
        self.line_s = -1.0
        self.broken: ErrorKind | None = None

    def began(self, cached_tokens: int) -> None:
        self.first_s, self.cached = self.events.now_s, cached_tokens

    def ended(self, load_s: float, line_s: float) -> None:
        self.last_s, self.load_s, self.line_s = self.events.now_s, load_s, line_s

    def broke(self, kind: ErrorKind) -> None:
        self.last_s, self.broken = self.events.now_s, kind


class House:
    """A server on a clock."""

    def __init__(self, sizes: dict[str, float] | None = None, chance: float = 0.5, **plan: Any) -> None:
        self.events = Events()
        settings: dict[str, Any] = {"prefill_tokens_per_second": 100.0, "decode_tokens_per_second": 10.0, **plan}
        self.server = Server(ServerPlan(**settings), sizes or {"m": 1.0}, 10, self.events, lambda: chance)

    def send(self, at_s: float, prompt: int, output: int, blocks: tuple[int, ...] = (), model: str = "m") -> Client:
        client = Client(self.events)
        self.events.at(at_s, lambda: self.server.send(Job(Arrival(at_s, prompt, output, model, blocks), model, client)))
        return client

    def run(self) -> None:
        while self.events.step():
            pass


def test_one_request_is_read_then_written() -> None:
    house = House()
    client = house.send(1.0, 200, 30)
    house.run()
    assert (client.first_s, client.last_s, client.load_s) == (3.0, 6.0, 0.0)
    assert (house.server.read_s, house.server.written_tokens) == (2.0, 30)


def test_speed_scales_reading_and_writing() -> None:
    house = House(speed=0.5)
    client = house.send(0.0, 100, 10)
    house.run()
    assert (client.first_s, client.last_s) == (2.0, 4.0)


def test_prompts_are_read_one_after_the_other_and_answers_written_side_by_side() -> None:
    house = House()
    one, two = house.send(0.0, 100, 20), house.send(0.0, 100, 20)
    house.run()
    assert (one.first_s, one.last_s, two.first_s, two.last_s) == (1.0, 3.0, 2.0, 4.0)


def test_a_fuller_batch_writes_each_answer_more_slowly() -> None:
    house = House(decode_slowdown=1.0)  # two at once: half the rate each
    one, two = house.send(0.0, 100, 20), house.send(0.0, 100, 20)
    house.run()
    # Alone for one second (10 tokens), then both at 5 a second: the other 10 take 2 s; then two has 10 left, alone again.
    assert (one.last_s, two.last_s) == (4.0, 5.0)


def test_who_finds_no_slot_waits_for_one() -> None:
    house = House(slots=1)
    one, two = house.send(0.0, 100, 20), house.send(0.0, 100, 20)
    house.run()
    assert (one.last_s, two.first_s, two.last_s) == (3.0, 4.0, 6.0)


def test_a_cached_prefix_is_not_read_again() -> None:
    house = House(cache_tokens=1000)
    first = house.send(0.0, 100, 1, chained(range(10)))
    again = house.send(10.0, 100, 1, chained([*range(5), 99]))
    whole = house.send(20.0, 100, 1, chained(range(10)))
    house.run()
    assert (first.cached, again.cached, whole.cached) == (0, 50, 99)  # the last token is always read
    assert again.first_s == 10.5
    assert (house.server.prompt_tokens, house.server.cached_tokens) == (300, 149)


def test_the_cache_forgets_the_longest_unused_and_ends_before_beginnings() -> None:
    cache = BlockCache(4)
    cache.keep([1, 2, 3])
    cache.keep([7])
    cache.keep([1, 8])
    assert len(cache) == 4
    assert cache.leading([1, 8]) == 2  # just used
    assert cache.leading([1, 2, 3]) == 2  # its end went, its beginning is there
    assert cache.leading([7]) == 1
    cache.keep(range(100, 110))
    assert cache.leading(range(100, 110)) == 4  # of what is larger than the cache the beginning stays
    assert BlockCache(0).leading([1]) == 0


SIZES = {"a": 4.0, "b": 6.0, "c": 4.0}


def test_a_model_is_loaded_when_asked_for_and_stays() -> None:
    house = House(SIZES, memory_gb=10, load_gb_per_second=2)
    first, second = house.send(0.0, 100, 10, model="a"), house.send(20.0, 100, 10, model="a")
    house.run()
    assert (first.first_s, first.load_s) == (3.0, 2.0)
    assert (second.first_s, second.load_s) == (21.0, 0.0)
    assert house.server.loads == 1 and house.server.loaded == {"a": 4e9}


def test_the_model_unused_longest_makes_room() -> None:
    house = House(SIZES, memory_gb=10, load_gb_per_second=2)
    for at_s, model in ((0.0, "a"), (20.0, "b"), (40.0, "a"), (60.0, "c")):
        house.send(at_s, 100, 10, model=model)
    house.run()
    assert set(house.server.loaded) == {"a", "c"} and house.server.loads == 3


def test_a_model_in_use_is_not_pushed_out() -> None:
    house = House(SIZES, models_that_fit=1, load_gb_per_second=2)
    busy = house.send(0.0, 100, 100, model="a")  # loaded at 2, read at 3, written at 13
    other = house.send(5.0, 100, 10, model="c")
    late = house.send(6.0, 100, 10, model="a")  # must not hold a's place against c
    house.run()
    assert busy.last_s == 13.0
    assert (other.load_s, other.first_s) == (10.0, 16.0)
    assert other.last_s == 17.0 and late.load_s == 13.0 and late.first_s == 20.0
    assert house.server.loads == 3


def test_models_are_loaded_one_after_the_other() -> None:
    house = House(SIZES, memory_gb=20, load_gb_per_second=2)
    clients = [house.send(0.0, 100, 10, model=model) for model in "abc"]
    house.run()
    assert [client.load_s for client in clients] == [2.0, 5.0, 7.0]


def test_slots_are_for_each_model() -> None:
    house = House(SIZES, memory_gb=20, slots=1, load_gb_per_second=1000)
    one, two = house.send(0.0, 100, 50, model="a"), house.send(0.0, 100, 50, model="b")
    house.run()
    assert two.last_s is not None and one.last_s is not None and two.last_s - one.last_s < 1.1


def test_waiting_for_a_slot_is_told_apart_from_loading() -> None:
    house = House(SIZES, memory_gb=20, slots=1, load_gb_per_second=1)
    one, two = house.send(0.0, 100, 50, model="a"), house.send(0.0, 100, 50, model="a")
    house.run()
    assert one.line_s == 0.0 and one.load_s == two.load_s > 0.0
    assert one.last_s is not None and two.line_s == pytest.approx(one.last_s - one.load_s)


def test_a_share_of_requests_is_answered_with_an_error() -> None:
    house = House(errors=0.3, chance=0.2)
    client = house.send(0.0, 100, 10)
    house.run()
    assert client.broken is errors.UPSTREAM_ERROR
    spared = House(errors=0.3, chance=0.4)
    client = spared.send(0.0, 100, 10)
    spared.run()
    assert client.broken is None and client.last_s == 2.0


def test_a_server_that_dies_breaks_what_it_has_and_comes_back_empty() -> None:
    house = House(cache_tokens=1000)
    writing = house.send(0.0, 100, 100, chained(range(10)))
    reading = house.send(1.5, 100, 10)
    refused = house.send(3.0, 100, 10)
    after = house.send(5.0, 100, 10, chained(range(10)))
    house.events.at(2.0, house.server.stop)
    house.events.at(4.0, house.server.start)
    house.run()
    assert (writing.broken, writing.last_s) == (errors.STREAM_BROKEN, 2.0)
    assert (reading.broken, reading.last_s) == (errors.CONNECTION_RESET, 2.0)
    assert (refused.broken, refused.last_s) == (errors.CONNECT_FAILED, 3.0)
    assert (after.broken, after.cached, after.first_s, after.last_s) == (None, 0, 6.0, 7.0)


def test_work_done_is_counted_in_seconds() -> None:
    house = House(slots=4)
    house.send(0.0, 100, 40)
    house.run()
    assert house.server.busy_s == pytest.approx(1.0 + 40 / (4 * 10.0))
