"""Messages between the engine and a worker: any size, any plain values, and a descriptor if need be.

Eight bytes of length, then marshal: the two ends are the same interpreter. Standard library only; both ends
use it. A peer that is gone is an EOFError.
"""

from __future__ import annotations

import array
import contextlib
import marshal
import os
import socket
import struct
from typing import Any

_HEAD = struct.Struct("=Q")
_SMALL = 65536


class Channel:
    """One end of a stream socket."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        end.setblocking(True)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Any, descriptor: int | None = None) -> None:
        body = marshal.dumps(message)
        head = _HEAD.pack(len(body))
        rights = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        try:
            if len(body) < _SMALL:
                sent = self._socket.sendmsg([head + body], rights)
                self._socket.sendall((head + body)[sent:])
            else:
                self._socket.sendmsg([head], rights)  # Eight bytes are never split.
                self._socket.sendall(body)
        except OSError as error:
            raise EOFError from error

    def receive(self) -> tuple[Any, int]:
        """A message and the descriptor that came with it, or -1."""
        head = b""
        descriptor = -1
        try:
            while len(head) < _HEAD.size:
                piece, ancillary, _, _ = self._socket.recvmsg(_HEAD.size - len(head), socket.CMSG_SPACE(4))
                for level, kind, content in ancillary:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                        descriptor = array.array("i", content[:4])[0]
                        os.set_inheritable(descriptor, False)
                if not piece:
                    raise EOFError
                head += piece
            return marshal.loads(self._exactly(_HEAD.unpack(head)[0])), descriptor
        except OSError as error:
            raise EOFError from error

    def _exactly(self, size: int) -> bytearray:
        message = bytearray(size)
        view = memoryview(message)
        while view:
            got = self._socket.recv_into(view)
            if got == 0:
                raise EOFError
            view = view[got:]
        return message

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # Wakes a thread of ours that waits for an answer.
        self._socket.close()
