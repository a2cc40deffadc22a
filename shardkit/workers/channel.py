"""Messages between the program and a worker, over a socket that the user's function may write to or close.

A message is framed, with its length and a checksum, so that stray bytes are recognized. The program never waits for
ever for the rest of one, and what it gets from a worker is plain data (JSON), which can be loaded without running code.
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
STALLED_TICKS = 600  # after so many in a row without a byte, the rest of a message is not expected any more


class Garbled(Exception):
    """What came over the pipe is not one of our messages."""


def framed(data: bytes) -> bytes:
    """A message as it is sent."""
    return HEAD.pack(MAGIC, len(data), zlib.crc32(data)) + data


class _Incoming:
    """The bytes received, and the messages in them."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def __len__(self) -> int:
        return len(self._bytes)

    def add(self, more: bytes) -> None:
        self._bytes += more

    def take(self) -> bytes | None:
        """The next message; None if it has not arrived completely.

        Raises:
            Garbled: the bytes are not a message.
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
    """The program's end: no single wait takes longer than a tick."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._socket.settimeout(0.0)
        self._incoming = _Incoming()
        self._quiet_ticks = 0

    def send(self, data: bytes) -> None:
        """Send a message.

        Raises:
            OSError: the other end is gone.
            Garbled: the worker does not read it.
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
            EOFError: the other end has closed the connection.
            OSError: it is gone.
            Garbled: what has come is not a message.
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
        """Whether no unexpected bytes have arrived."""
        try:
            self._read()
        except (EOFError, OSError):
            return False
        return not len(self._incoming)

    def close(self) -> None:
        """Close the connection."""
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
    """The worker's end, which waits as long as it takes."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._incoming = _Incoming()

    def send(self, data: bytes) -> None:
        """Send a message.

        Raises:
            OSError: the other end is gone, or the descriptor is closed.
        """
        left = memoryview(framed(data))
        while left:
            try:
                left = left[os.write(self.descriptor, left) :]
            except BlockingIOError:  # the function has changed it
                os.set_blocking(self.descriptor, True)

    def receive(self) -> bytes:
        """The next message.

        Raises:
            EOFError: the program has closed the connection.
            OSError: it is gone, or the descriptor is closed.
            Garbled: the function has read a part of the message.
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
