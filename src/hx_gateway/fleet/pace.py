"""What a deployment has been seen to do: how fast it reads, writes and loads, learned from its own answers."""

from __future__ import annotations

from math import exp

_SHARE = 0.15  # of each new observation in the average
LESSON_S = 0.02
_FORGET_S = 1.0  # half-life of a failure: a server that is not asked again would never be forgiven otherwise
_IN_LINE = 0.1  # share of the usual time of an answer, and
_IN_LINE_S = 0.05  # seconds: who waited longer than both together waited for a slot
_SILENT = 20.0  # times the usual time of an answer without one, and
_SILENT_S = 30.0  # at least so many seconds: what was learned is old
_MOSTLY = 0.5  # share of the work on a whole answer that has to be writing to learn from it
_MINUTE_S = 60.0
_ODD = 20.0  # an observation this many times off the average moves it by a bounded step only


class Pace:
    """Learned speeds of one deployment, with priors until something is known.

    Args:
        prefill_rate: Prompt tokens read per second.
        decode_rate: Tokens written per second by one request.
        load_s: Seconds to load the model into memory.
    """

    __slots__ = (
        "_counted",
        "_reading",
        "_recent",
        "_recent_s",
        "_writing",
        "decode_rate",
        "failed_s",
        "failures",
        "first_byte_s",
        "learn_at_s",
        "load_s",
        "old_s",
        "output_tokens",
        "prefill_rate",
        "seen",
        "service_s",
        "slots",
        "tokens",
    )  # fmt: skip

    def __init__(self, prefill_rate: float = 5000.0, decode_rate: float = 40.0, load_s: float = 8.0) -> None:
        self.prefill_rate = prefill_rate
        self.decode_rate = decode_rate
        self.load_s = load_s
        self.service_s = 0.0  # mean time a request occupies a slot
        self.first_byte_s = 0.0  # mean wait for the first byte
        self.output_tokens = 200.0  # mean length of an answer
        self.failures = 0.0  # recent share of calls that failed
        self.failed_s = 0.0  # when the last one did
        self.seen = 0
        self.slots = 0.0  # requests it works on at once, about; 0.0 until one was seen to wait for a slot
        self.tokens = 0  # of all prompts and answers so far
        self._counted, self._recent, self._recent_s = 0, 0.0, 0.0
        self._reading = _Rate(prefill_rate)
        self._writing = _Rate(decode_rate)
        self.old_s = 0.0  # monotonic time from which what was learned is old
        self.learn_at_s = 0.0  # monotonic time of the next lesson: a busy deployment need not teach with every answer

    def answered(
        self,
        service_s: float,
        first_byte_s: float,
        read_tokens: float,
        written_tokens: float,
        alone: bool,
        load_s: float = 0.0,
        line_s: float = -1.0,
        among: int = 0,
    ) -> None:
        """Learn from an answer.

        Args:
            service_s: From the call to the last byte.
            first_byte_s: From the call to the first byte; equal to ``service_s`` where the answer came whole.
            read_tokens: Prompt tokens that were not cached.
            written_tokens: Tokens of the answer.
            alone: Whether nothing else was under way at the endpoint when the call was sent, so that its time to
                the first byte was its own.
            load_s: Seconds of it that went into loading the model, where the server tells.
            line_s: Seconds of it that went into waiting for a slot; less than 0 where that cannot be known.
            among: Requests under way at the model there when the call was sent, itself included.
        """
        self.seen += 1
        self.service_s = _mixed(self.service_s, service_s - load_s, self.seen)
        self.first_byte_s = _mixed(self.first_byte_s, first_byte_s - load_s, self.seen)
        self.failures *= 1.0 - _SHARE
        self.old_s = self.learn_at_s + max(_SILENT * self.service_s, _SILENT_S)
        if load_s > 0.0:
            self.load_s = _mixed(self.load_s, load_s, 2)
        if written_tokens > 0.0:
            self.output_tokens = _mixed(self.output_tokens, written_tokens, self.seen)
            writing_s = service_s - first_byte_s
            if not writing_s and (alone or line_s >= 0.0):  # it came whole: what was neither waiting, loading nor reading was writing
                worked_s = service_s - load_s - max(line_s, 0.0)
                writing_s = worked_s - read_tokens / self.prefill_rate
                if writing_s < _MOSTLY * worked_s:
                    writing_s = 0.0  # the guess at reading decides too much
            if writing_s > 0.0 and written_tokens > 4:
                self.decode_rate = self._writing.seen(self.decode_rate, written_tokens, writing_s)
        if line_s >= 0.0:
            self._fitted(among, line_s > _IN_LINE * self.service_s + _IN_LINE_S)
        reading_s = first_byte_s - load_s
        if alone and read_tokens >= 64.0 and 0.0 < reading_s < service_s:
            self.prefill_rate = self._reading.seen(self.prefill_rate, read_tokens, reading_s)

    def _fitted(self, among: int, waited: bool) -> None:
        """Learn the slots: one of so many had to wait for one, or had not."""
        if waited:
            full = max(among - 1.0, 1.0)
            if not self.slots:
                self.slots = full
            elif full < self.slots:
                self.slots += (full - self.slots) * _SHARE
        elif among > self.slots > 0.0:
            self.slots += (among - self.slots) * _SHARE

    def guess(self, sibling: Pace) -> None:
        """Begin with a sibling's speeds where nothing was seen: a fleet faster than the priors would never ask who is new."""
        if not self._reading.count:
            self.prefill_rate = sibling.prefill_rate
        if not self._writing.count:
            self.decode_rate = sibling.decode_rate

    def forget(self, sibling: Pace) -> None:
        """Take it to be like a sibling until its next answer, which counts as the first: a slow server may have healed."""
        self._reading.count = self._writing.count = self.seen = 0
        self.guess(sibling)
        self.service_s, self.first_byte_s = sibling.service_s, sibling.first_byte_s

    def recent_tokens(self, now_s: float) -> float:
        """Tokens of prompts and answers of the last minute, about: what is longer ago counts less and less."""
        new, self._counted = self.tokens - self._counted, self.tokens
        silent_s, self._recent_s = now_s - self._recent_s, max(now_s, self._recent_s)
        self._recent = new + (self._recent * exp(-silent_s / _MINUTE_S) if silent_s > 0.0 else self._recent)
        return self._recent

    def failed(self, now_s: float = 0.0) -> None:
        """Learn from a call that failed by the server's fault."""
        self.failures = self.risk(now_s) + (1.0 - self.risk(now_s)) * _SHARE
        self.failed_s = now_s

    def risk(self, now_s: float) -> float:
        """How likely a call is to fail: the recent share of failures, which fades while nothing is heard."""
        failures = self.failures
        if failures < 0.001:
            return 0.0
        silent_s = now_s - self.failed_s
        return failures * 0.5 ** (silent_s / _FORGET_S) if silent_s > 0.0 else failures

    def __repr__(self) -> str:
        return f"<Pace reads {self.prefill_rate:.0f}/s writes {self.decode_rate:.1f}/s service {self.service_s:.2f} s load {self.load_s:.1f} s>"


class _Rate:
    """Tokens per second as recent tokens over recent seconds, so that a long text counts for more than a short one.

    A mean of rates would be drawn by short texts, whose time is mostly something else, and equal servers would seem unequal.
    """

    __slots__ = ("_seconds", "_tokens", "count", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._tokens = 0.0
        self._seconds = 0.0
        self.count = 0

    def seen(self, known: float, tokens: float, seconds: float) -> float:
        """Learn from one text; returns the rate. ``known`` is the rate until now, which others may have corrected."""
        if known != self.rate:
            self._tokens *= known / self.rate
            self.rate = known
        self.count += 1
        usual_s = tokens / self.rate
        seconds = min(max(seconds, usual_s / _ODD), usual_s * _ODD)
        share = max(_SHARE, 1.0 / self.count)
        self._tokens += (tokens - self._tokens) * share
        self._seconds += (seconds - self._seconds) * share
        self.rate = self._tokens / self._seconds
        return self.rate


def _mixed(known: float, seen: float, count: int) -> float:
    """A moving average that starts as a plain one, so that the first observations count."""
    if known > 0.0:
        seen = min(max(seen, known / _ODD), known * _ODD)
    return known + (seen - known) * max(_SHARE, 1.0 / count)
