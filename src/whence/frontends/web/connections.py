"""HTTP connections, bounded in number and in the time that a request may take to arrive."""

from asyncio import Task, TimerHandle, Transport
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 128
REQUEST_SECONDS = 30.0  # from the first byte of a request, or from the connection, to the last byte


class BoundedProtocol(H11Protocol):
    """HTTP protocol that closes connections whose requests do not arrive in time, and connections beyond a number.

    Without it, clients that send half a request and wait ("slowloris") hold their connections for good.
    """

    tasks: set[Task[Any]]
    _deadline: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._update_deadline()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def _update_deadline(self) -> None:
        """Start the clock of a request that has not arrived entirely, and stop it when it has."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._cancel_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.close)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
