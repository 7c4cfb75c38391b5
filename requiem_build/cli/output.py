"""`-o FILE`: an answer as a file that is whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from ..core.errors import EnvironmentFault
from .globals import Globals


@contextmanager
def new_file(shared: Globals, name: str) -> Iterator[BinaryIO]:
    """A file beside the wanted one, which takes its place when all is written. Raises EnvironmentFault."""
    path = os.path.join(shared.start, name)
    temporary = f"{path}.{os.getpid()}.part"
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise EnvironmentFault(f'cannot write "{name}"', facts=[("cause", error.strerror or str(error))]) from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def write_file(shared: Globals, name: str, content: bytes) -> None:
    with new_file(shared, name) as file:
        file.write(content)
