"""Worker processes; one that crashes or exceeds the timeout is replaced by another."""

import asyncio
import multiprocessing
from collections.abc import Callable
from typing import Any

from pebble import ProcessExpired, ProcessPool

from whence.errors import InputError, ModelError, WhenceError, first_line, is_out_of_memory
from whence.frontends.web import handlers
from whence.frontends.web.served_models import ServerConfig

TIMEOUT = 60.0
MAX_QUEUE = 64  # requests that may wait for a process


class WorkerPool:
    """A pool of worker processes, used from the event loop of the server."""

    def __init__(self, served: ServerConfig, count: int = 2, seconds: float = TIMEOUT):
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(max_workers=count, initializer=handlers.initialize_worker, initargs=(served,), context=context)
        self._seconds, self._waiting = seconds, 0

    async def ask(self, answer: Callable[..., Any], question: Any) -> Any:
        """Return `answer(question)`, computed in a worker process; all failures raise `WhenceError`."""
        if self._waiting >= MAX_QUEUE:
            raise InputError("too many requests are queued; try again in a moment")
        self._waiting += 1
        try:
            future = self._pool.schedule(answer, args=(question,), timeout=self._seconds)
            return await asyncio.wrap_future(future)
        except WhenceError:
            raise
        except TimeoutError as error:
            raise ModelError(
                f"the computation exceeded {self._seconds:.0f} s and was stopped; choose a faster method"
            ) from error
        except ProcessExpired as error:
            raise ModelError("the worker process died and was restarted; try again") from error
        except Exception as error:
            what = "memory ran out" if is_out_of_memory(error) else first_line(error)
            raise ModelError(f"the request failed: {what}") from error
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Stop all processes."""
        self._pool.stop()
        self._pool.join()
