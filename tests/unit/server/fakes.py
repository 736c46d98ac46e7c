"""A client connection without a socket: what a door writes, and whether it reads."""

from __future__ import annotations

from typing import Any


class FakeTransport:
    """Remembers what was done to it (`asyncio.Transport`)."""

    def __init__(self) -> None:
        self.written = b""
        self.reading = True
        self.closing = False
        self.aborted = False
        self.ended = False

    def write(self, data: bytes) -> None:
        """Keep the bytes."""
        assert not self.ended, "written after the end was written"
        self.written += data

    def writelines(self, pieces: Any) -> None:
        """Keep the bytes."""
        self.write(b"".join(pieces))

    def pause_reading(self) -> None:
        """Read no more."""
        self.reading = False

    def resume_reading(self) -> None:
        """Read again."""
        self.reading = True

    def is_closing(self) -> bool:
        """Whether it is closing."""
        return self.closing

    def can_write_eof(self) -> bool:
        """TCP can."""
        return True

    def write_eof(self) -> None:
        """Remember the end."""
        self.ended = True

    def close(self) -> None:
        """Remember it."""
        self.closing = True

    def abort(self) -> None:
        """Remember it."""
        self.closing = self.aborted = True

    def get_extra_info(self, name: str) -> Any:
        """Nothing is known."""
        return None
