"""Messages between the engine and a worker: any size, any plain values, and a descriptor if need be.

Eight bytes of length, then marshal: the two ends are the same interpreter. Standard library only; both ends
use it. A peer that is gone is an EOFError.
"""

from __future__ import annotations

import _socket as socket
import marshal
import os
import struct

TYPE_CHECKING = False  # The module of that name costs a worker several milliseconds at its start.
if TYPE_CHECKING:
    from typing import Any

_HEAD = struct.Struct("=Q")
_DESCRIPTOR = struct.Struct("=i")
_AT_ONCE = 65536
_RIGHTS_SPACE = socket.CMSG_SPACE(4)


class Channel:
    """One end of a stream socket."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._rest = b""
        """What came with the last message and belongs to the next."""
        end.setblocking(True)

    def fileno(self) -> int:
        return self._socket.fileno()

    def pending(self) -> bool:
        """Whether a message, or the beginning of one, has arrived already: the socket will not tell of it again."""
        return bool(self._rest)

    def send(self, message: Any, descriptor: int | None = None) -> None:
        body = marshal.dumps(message)
        whole = _HEAD.pack(len(body)) + body
        try:
            if descriptor is not None:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(descriptor))]
                sent = self._socket.sendmsg([whole], rights)
                whole = whole[sent:]
            if whole:
                self._socket.sendall(whole)
        except OSError as error:
            raise EOFError from error

    def receive(self) -> tuple[Any, int]:
        """A message and the descriptor that came with it, or -1."""
        whole, descriptor = self._rest, -1
        try:
            while len(whole) < _HEAD.size:
                piece, found = self._some()
                whole += piece
                descriptor = max(descriptor, found)
            wanted = _HEAD.size + _HEAD.unpack_from(whole)[0]
            size = len(whole)
            if size < wanted:
                pieces = [whole]
                while size < wanted:
                    piece, found = self._some()
                    pieces.append(piece)
                    size += len(piece)
                    descriptor = max(descriptor, found)
                whole = b"".join(pieces)
        except OSError as error:
            raise EOFError from error
        self._rest = whole[wanted:]
        return marshal.loads(whole[_HEAD.size : wanted]), descriptor

    def _some(self) -> tuple[bytes, int]:
        piece, ancillary, _, _ = self._socket.recvmsg(_AT_ONCE, _RIGHTS_SPACE)
        if not piece:
            raise EOFError
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptor = _DESCRIPTOR.unpack_from(content)[0]
                os.set_inheritable(descriptor, False)
                return piece, descriptor
        return piece, -1

    def close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # Wakes a thread of ours that waits for an answer.
        except OSError:
            return  # The other end is gone.
        finally:
            self._socket.close()
