"""Messages between the program and a worker, over a socket that the user's function may write to or close.

A message is framed, with its length and a checksum, so that stray bytes are known for what they are. The program never
waits for the rest of one for ever, and what it gets from a worker is plain data (JSON), whose loading runs no code.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import zlib

MAGIC = b"\xf5sk\x01"
HEAD = struct.Struct("!4sQI")  # the magic, the length of what follows, its CRC
LONGEST_BYTES = 1 << 30
READ_BYTES = 1 << 20
TICK_S = 0.1
STALLED_TICKS = 600  # so many in a row without a byte, in the middle of a message: no more will come


class Garbled(Exception):
    """What has come over the pipe is no message of ours."""


def framed(data: bytes) -> bytes:
    """A message as it goes over the pipe."""
    return HEAD.pack(MAGIC, len(data), zlib.crc32(data)) + data


class _Incoming:
    """Bytes that have come, and the messages in them."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def __len__(self) -> int:
        return len(self._bytes)

    def add(self, more: bytes) -> None:
        self._bytes += more

    def take(self) -> bytes | None:
        """The next message; None if it is not there as a whole.

        Raises:
            Garbled: there is something else.
        """
        if not MAGIC.startswith(self._bytes[: len(MAGIC)]):
            raise Garbled
        if len(self._bytes) < HEAD.size:
            return None
        _, length, checksum = HEAD.unpack_from(self._bytes)
        if length > LONGEST_BYTES:
            raise Garbled
        if len(self._bytes) < HEAD.size + length:
            return None
        data = bytes(self._bytes[HEAD.size : HEAD.size + length])
        del self._bytes[: HEAD.size + length]
        if zlib.crc32(data) != checksum:
            raise Garbled
        return data


class Channel:
    """The program's end: nothing that it does waits for longer than a tick."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._socket.settimeout(0.0)
        self._incoming = _Incoming()
        self._quiet_ticks = 0

    def send(self, data: bytes) -> None:
        """Send a message.

        Raises:
            OSError: the other end has gone.
            Garbled: nobody reads it, though a worker should.
        """
        left, ticks = memoryview(framed(data)), 0
        while left:
            try:
                left = left[self._socket.send(left, socket.MSG_NOSIGNAL) :]
                ticks = 0
            except BlockingIOError:
                ticks += 1
                if ticks > STALLED_TICKS:
                    raise Garbled from None
                self._wait(select.POLLOUT)

    def receive(self) -> bytes | None:
        """A message; None if none has come within a tick.

        Raises:
            EOFError: the other end has hung up.
            OSError: it has gone.
            Garbled: what has come is no message.
        """
        if len(self._incoming) and (message := self._incoming.take()) is not None:
            return message
        if not self._wait(select.POLLIN):
            self._quiet_ticks += 1
            if len(self._incoming) and self._quiet_ticks > STALLED_TICKS:
                raise Garbled
            return None
        self._read()
        return self._incoming.take()

    def is_clean(self) -> bool:
        """Whether nothing has come that nobody has asked for."""
        try:
            self._read()
        except (EOFError, OSError):
            return False
        return not len(self._incoming)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _read(self) -> None:
        try:
            more = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        if not more:
            raise EOFError
        self._quiet_ticks = 0
        self._incoming.add(more)

    def _wait(self, event: int) -> bool:
        waiting = select.poll()
        waiting.register(self._socket, event)
        return bool(waiting.poll(TICK_S * 1000))


class WorkersEnd:
    """The worker's end: it waits for as long as it takes."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._incoming = _Incoming()

    def send(self, data: bytes) -> None:
        """Send a message.

        Raises:
            OSError: the other end has gone, or the descriptor is closed.
        """
        left = memoryview(framed(data))
        while left:
            try:
                left = left[os.write(self.descriptor, left) :]
            except BlockingIOError:  # the function has made it so
                os.set_blocking(self.descriptor, True)

    def receive(self) -> bytes:
        """The next message.

        Raises:
            EOFError: the program has hung up.
            OSError: it has gone, or the descriptor is closed.
            Garbled: somebody has read a part of it.
        """
        while (message := self._incoming.take()) is None:
            try:
                more = os.read(self.descriptor, READ_BYTES)
            except BlockingIOError:
                os.set_blocking(self.descriptor, True)
                continue
            if not more:
                raise EOFError
            self._incoming.add(more)
        return message
