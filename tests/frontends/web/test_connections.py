"""Connections of the server: half-sent requests end, too many connections are refused, clients that leave are noticed."""

import asyncio
import socket
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
from whence.frontends.web import app as web_app, connections, worker_pool  # noqa: E402
from whence.frontends.web.connections import BoundedProtocol  # noqa: E402
from whence.frontends.web.served_models import ServerConfig  # noqa: E402

HEAD = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"


async def echo(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def serving(app, lifespan="on"):
    """The app on a free port of this machine."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app, http=BoundedProtocol, ws="none", lifespan="off" if app is echo else lifespan, log_level="error"
        )
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve([listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await running


@asynccontextmanager
async def connected(port):
    """A connection to the server, closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    "begun", [b"", b"POST / HT", HEAD, HEAD + b"content-length: 10\r\n\r\nhalf"], ids=["nothing", "line", "headers", "body"]
)
def test_half_sent_requests_are_bounded_in_time(monkeypatch, begun):
    monkeypatch.setattr(connections, "TRANSFER_SECONDS", 0.2)

    async def test():
        async with serving(echo) as port, connected(port) as (reader, writer):
            writer.write(begun)
            assert await asyncio.wait_for(reader.read(), 20) == b""

    asyncio.run(test())


def test_requests_that_arrive_are_answered_one_after_the_other(monkeypatch):
    monkeypatch.setattr(connections, "TRANSFER_SECONDS", 0.2)

    async def test():
        async with serving(echo) as port, connected(port) as (reader, writer):
            for _ in range(3):  # the whole exchange takes longer than one request may
                writer.write(HEAD + b"content-length: 2\r\n\r\n{")
                await asyncio.sleep(0.1)
                writer.write(b"}")
                assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")

    asyncio.run(test())


def test_the_next_request_before_the_answer_ends_the_connection(monkeypatch):
    """uvicorn would hold it unread, with neither its deadline nor its end noticed."""

    async def test():
        async with serving(echo) as port, connected(port) as (reader, writer):
            writer.write(2 * (HEAD + b"content-length: 0\r\n\r\n") + HEAD + b"content-length: 9\r\n\r\nhalf")
            with suppress(ConnectionResetError):
                assert (await asyncio.wait_for(reader.read(), 20)).count(b"HTTP/1.1 200") <= 1

    asyncio.run(test())


def test_answers_that_are_not_read_are_bounded_in_time(monkeypatch):
    monkeypatch.setattr(connections, "TRANSFER_SECONDS", 0.2)
    size, ended = 50_000_000, asyncio.Event()

    async def large(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(size).encode())]})
        await send({"type": "http.response.body", "body": bytes(size)})
        ended.set()

    async def test():
        async with serving(large, lifespan="off") as port:
            client = socket.create_connection(("127.0.0.1", port))  # reads nothing
            client.sendall(HEAD + b"content-length: 0\r\n\r\n")
            await asyncio.wait_for(ended.wait(), 20)
            client.close()

    asyncio.run(test())


def test_connections_are_bounded_in_number(monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)

    async def test():
        async with serving(echo) as port, AsyncExitStack() as stack:
            (reader, writer), _ = [await stack.enter_async_context(connected(port)) for _ in range(2)]
            refused, _ = await stack.enter_async_context(connected(port))
            assert await asyncio.wait_for(refused.read(), 20) == b""
            writer.write(HEAD + b"content-length: 0\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")

    asyncio.run(test())


def test_a_client_that_leaves_takes_its_question_with_it(monkeypatch):
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def ask(self, answer, question, slow=False):
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    monkeypatch.setattr(worker_pool.WorkerPool, "ask", ask)

    async def test():
        async with serving(web_app.create_app(ServerConfig(()), port=80, workers=0)) as port:
            async with connected(port) as (_, writer):
                writer.write(b"GET /api/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
                await asyncio.wait_for(asked.wait(), 20)
            await asyncio.wait_for(cancelled.wait(), 20)

    asyncio.run(test())


def test_a_full_queue_is_answered_with_503_and_when_to_come_again(monkeypatch):
    monkeypatch.setattr(worker_pool, "MAX_QUEUE", 0)

    async def test():
        async with serving(web_app.create_app(ServerConfig(()), port=80, workers=0)) as port, httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{port}/api/models", headers={"host": "127.0.0.1"})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert answer.json() == {"error": "0 requests are queued; try again in a moment"}

    asyncio.run(test())


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example", "/%0d%0aset-cookie:%20a=b"])
def test_a_token_leads_to_no_other_host(path):
    async def test():
        app = web_app.create_app(ServerConfig(()), port=80, token="secret", workers=0)
        async with serving(app) as port, connected(port) as (reader, writer):
            writer.write(f"GET {path}?token=secret HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode())
            answer = (await reader.read()).decode().lower().split("\r\n")
            (location,) = [line.removeprefix("location: ") for line in answer if line.startswith("location")]
            assert location.startswith("/")
            assert location[1] not in "/\\"
            assert sum(line.startswith("set-cookie") for line in answer) == 1

    asyncio.run(test())
