"""Worker processes; one that dies, or computes for too long or for a client that has gone, is replaced by another."""

import asyncio
import multiprocessing
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from pebble import ProcessExpired, ProcessPool

from whence.errors import ModelError, WhenceError, first_line, is_out_of_memory
from whence.frontends.web import handlers
from whence.frontends.web.served_models import ServerConfig

TIMEOUT = 60.0
MAX_QUEUE = 64  # interactive requests that may wait for a process, and as many slow ones
RETRY_SECONDS = 5  # to wait after a refusal
START_SECONDS = 300.0  # for a process to load its models
ACCEPT_SECONDS = 5.0  # for a started process to take a question
POLL_SECONDS = 0.1  # between two readings of the progress of a question
GRACE = 2.0  # seconds for the answer to a client that has gone; a new process takes longer to start

CONTEXT = multiprocessing.get_context("spawn")
Watch = Callable[[int, int], None]  # is called with the progress of a question, (done, total)


class ServiceUnavailableError(WhenceError):
    """The server cannot answer now, but it can in a moment (HTTP status 503)."""


class Worker:
    """A process in a pool of its own: one that is killed while it holds a lock of its pool stops no other.

    Its temporary files lie in a folder that goes with it.
    """

    def __init__(self, served: ServerConfig):
        self._served = served
        self._counter = CONTEXT.RawArray("q", 2)  # done and total of the question under way, written by the process
        self._start()

    @property
    def is_ready(self) -> bool:
        """Whether the process has loaded its models."""
        return self._started.done()

    def reset_progress(self) -> None:
        """Forget the progress of the last question."""
        self._counter[:] = (0, 0)

    @property
    def progress(self) -> tuple[int, int]:
        """How many steps of the question are done, and of how many; (0, 0) if that is unknown."""
        return self._counter[0], self._counter[1]

    async def run(self, answer: Callable[..., Any], question: Any, seconds: float) -> Any:
        """Return `answer(question)`; replace a process that was stopped or died."""
        try:
            return await self._submit(answer, question, seconds)
        except BrokenProcessPool:  # the process had died before it took the question
            await self._replace()
            return await self._submit(answer, question, seconds)
        except (TimeoutError, ProcessExpired, asyncio.CancelledError):
            await self._replace()
            raise

    def close(self) -> None:
        """Stop the process and remove its temporary files."""
        self._pool.stop()
        self._pool.join()
        self._folder.cleanup()

    def _start(self) -> None:
        self._folder = TemporaryDirectory(prefix="whence-worker-", ignore_cleanup_errors=True)
        arguments = (self._served, self._folder.name, self._counter)
        self._pool = ProcessPool(1, initializer=handlers.initialize_worker, initargs=arguments, context=CONTEXT)
        self._started = self._pool.schedule(handlers.confirm_start)  # starts the process now, not at the first question

    async def _submit(self, answer: Callable[..., Any], question: Any, seconds: float) -> Any:
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.shield(_wrapped(self._started))
        except ProcessExpired as error:
            raise BrokenProcessPool from error
        try:
            future = self._pool.schedule(answer, args=(question,), timeout=seconds)
        except RuntimeError as error:  # the process died while it was idle
            raise BrokenProcessPool from error
        answered = _wrapped(future)
        await asyncio.wait({answered}, timeout=ACCEPT_SECONDS)
        if not answered.done() and not future.running():  # the pool broke as the question came, which pebble does not notice
            raise BrokenProcessPool
        return await answered

    async def _replace(self) -> None:
        await asyncio.to_thread(self.close)
        self._start()


def _wrapped(future: Any) -> "asyncio.Future[Any]":
    """Return a future of the event loop whose error counts as read, also if nobody waits for it any more."""
    wrapped = asyncio.wrap_future(future)
    wrapped.add_done_callback(lambda done: done.cancelled() or done.exception())
    return wrapped


@dataclass(eq=False)
class Turn:
    """A request that waits for a worker."""

    slow: bool
    worker: asyncio.Future[Worker] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class WorkerPool:
    """Worker processes, used from the event loop of the server.

    Requests that an interactive page waits for come before slow ones, which never occupy all workers.
    """

    def __init__(self, served: ServerConfig, count: int = 2, seconds: float = TIMEOUT):
        self._seconds = seconds
        self._workers = [Worker(served) for _ in range(count)]
        self._idle = list(self._workers)
        self._waiting: list[Turn] = []
        self._slow_free = max(1, count - 1)  # how many more slow requests may run

    async def ask(self, answer: Callable[..., Any], question: Any, slow: bool = False, watch: Watch | None = None) -> Any:
        """Return `answer(question)`, computed in a worker process; all failures raise `WhenceError`.

        `watch` is called with the progress several times a second. Cancelling removes the request from the queue, or stops its
        process if it does not end within `GRACE`.
        """
        worker = await self._acquire(slow)
        worker.reset_progress()
        running = asyncio.create_task(worker.run(answer, question, self._seconds))
        running.add_done_callback(partial(self._release, worker, slow))
        try:
            while watch is not None and not running.done():
                watch(*worker.progress)
                await asyncio.wait({running}, timeout=POLL_SECONDS)
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(GRACE, running.cancel)
            raise
        except WhenceError:
            raise
        except TimeoutError as error:
            raise ModelError(
                f"the computation exceeded {self._seconds:.0f} s and was stopped; choose a faster method"
            ) from error
        except (ProcessExpired, BrokenProcessPool) as error:
            raise ServiceUnavailableError("the worker process died and was restarted; try again") from error
        except Exception as error:
            what = "memory ran out" if is_out_of_memory(error) else first_line(error)
            raise ModelError(f"the request failed: {what}") from error

    def close(self) -> None:
        """Stop all processes."""
        for worker in self._workers:
            worker.close()

    async def _acquire(self, slow: bool) -> Worker:
        if sum(turn.slow == slow for turn in self._waiting) >= MAX_QUEUE:
            raise ServiceUnavailableError(f"{MAX_QUEUE} requests are queued; try again in a moment")
        turn = Turn(slow)
        self._waiting.append(turn)
        self._assign()
        try:
            return await turn.worker
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.worker.cancelled():  # assigned at the moment of the cancellation
                self._release(turn.worker.result(), slow)
            raise

    def _assign(self) -> None:
        """Give idle workers to the requests that wait: interactive ones first, each kind in the order of arrival."""
        for turn in sorted(self._waiting, key=lambda turn: turn.slow):
            if not self._idle or (turn.slow and not self._slow_free):
                return
            self._waiting.remove(turn)
            self._slow_free -= turn.slow
            worker = next((worker for worker in self._idle if worker.is_ready), self._idle[-1])
            self._idle.remove(worker)
            turn.worker.set_result(worker)

    def _release(self, worker: Worker, slow: bool, ended: asyncio.Task[Any] | None = None) -> None:
        if ended is not None and not ended.cancelled():
            ended.exception()  # marks it as read: the client of a cancelled request reads it no more
        self._idle.append(worker)
        self._slow_free += slow
        self._assign()
