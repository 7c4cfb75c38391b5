"""Work in a thread that is thrown away: what Linux keeps for each thread goes with it. Standard library only."""

from __future__ import annotations

import _thread

TYPE_CHECKING = False  # The module of that name costs a worker several milliseconds at its start.
if TYPE_CHECKING:
    from collections.abc import Callable


def in_thread(work: Callable[..., None], failure: list[BaseException], *arguments: object) -> None:
    """Runs `work` in a thread that is gone, with all that belonged to it, when this returns."""
    done = _thread.allocate_lock()
    done.acquire()

    def body() -> None:
        try:
            work(*arguments)
        except BaseException as error:  # Reported to the engine by the caller.
            failure.append(error)
        finally:
            done.release()

    _thread.start_new_thread(body, ())
    done.acquire()
