"""Worker processes of the server: killed ones are replaced, questions of gone clients end, strokes come before reports."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pebble")
pytest.importorskip("fastapi")
from whence.frontends.web import worker_pool
from whence.frontends.web.served_models import ServerConfig
from whence.frontends.web.worker_pool import ServiceUnavailableError, WorkerPool

PID, FOLDER = "__import__('os').getpid()", "__import__('tempfile').mkdtemp()"
NOTHING_SERVED = ServerConfig(models=())


def run_with_pool(test, count=1):
    """Run `await test(pool)`, then stop the pool."""

    async def run():
        pool = WorkerPool(NOTHING_SERVED, count)
        try:
            return await test(pool)
        finally:
            pool.close()

    return asyncio.run(run())


def until(path):
    """Return code that runs until there is a file `path`."""
    return f"import os, time\nwhile not os.path.exists({str(path)!r}): time.sleep(0.01)"


def ended(pid):
    return not Path(f"/proc/{pid}").exists() or ") Z " in Path(f"/proc/{pid}/stat").read_text()


def test_a_process_that_dies_while_it_waits_is_replaced():
    async def test(pool):
        for sent in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            killed = await pool.ask(eval, PID)
            os.kill(killed, sent)
            answers = await asyncio.gather(*(pool.ask(eval, PID) for _ in range(3)))
            assert len(set(answers)) == 1
            assert killed not in answers

    run_with_pool(test)


def test_a_process_that_dies_while_it_answers_fails_its_question_alone(tmp_path):
    async def test(pool):
        with pytest.raises(ServiceUnavailableError, match="died and was restarted; try again"):
            await pool.ask(os._exit, 3)
        assert await pool.ask(eval, "1 + 1") == 2

    run_with_pool(test)


def test_what_a_gone_client_asked_is_stopped_and_its_files_removed(monkeypatch):
    monkeypatch.setattr(worker_pool, "GRACE", 0.0)

    async def test(pool):
        pid, folder = await pool.ask(eval, PID), await pool.ask(eval, FOLDER)
        asked = asyncio.create_task(pool.ask(time.sleep, 600))
        waiting = asyncio.create_task(pool.ask(exec, "raise SystemExit"))  # would end the next process
        await asyncio.sleep(0)
        assert Path(folder).is_dir()
        waiting.cancel()
        asked.cancel()
        assert await pool.ask(eval, "1 + 1") == 2
        assert ended(pid)
        assert not Path(folder).exists()

    run_with_pool(test)


def test_a_question_that_ends_soon_after_its_client_has_gone_keeps_its_process(tmp_path):
    async def test(pool):
        pid = await pool.ask(eval, PID)
        asked = asyncio.create_task(pool.ask(exec, until(tmp_path / "end")))
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.sleep(0)
        (tmp_path / "end").touch()
        assert await pool.ask(eval, PID) == pid

    run_with_pool(test)


def test_strokes_come_before_reports_and_reports_leave_one_process_free(tmp_path):
    async def test(pool):
        order = []

        async def ask(name, code, slow):
            await pool.ask(exec, code, slow=slow)
            order.append(name)

        report = until(tmp_path / "end")
        reports = [asyncio.create_task(ask("report", report, True)) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.gather(*(ask("stroke", "pass", False) for _ in range(4)))
        (tmp_path / "end").touch()
        await asyncio.gather(*reports)
        assert order == ["stroke"] * 4 + ["report"] * 3

    run_with_pool(test, 2)


def test_a_full_queue_is_said_and_its_cancelled_questions_free_it(monkeypatch, tmp_path):
    monkeypatch.setattr(worker_pool, "MAX_QUEUE", 2)

    async def test(pool):
        asked = [asyncio.create_task(pool.ask(exec, until(tmp_path / "end"))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ServiceUnavailableError, match="2 requests are queued; try again in a moment"):
            await pool.ask(eval, "1")
        asked[1].cancel()
        await asyncio.sleep(0)
        (tmp_path / "end").touch()
        assert await pool.ask(eval, "1") == 1

    run_with_pool(test)


def test_temporary_files_go_with_the_server(tmp_path, monkeypatch):
    folders = []

    async def test(pool):
        folders.append(Path(await pool.ask(eval, FOLDER)).parent)
        assert folders[0].is_dir()

    run_with_pool(test)
    assert not folders[0].exists()


def test_a_cancelled_question_gives_back_the_worker_that_it_was_just_given():
    async def test(pool):
        asked = asyncio.create_task(pool.ask(time.sleep, 0))
        second = asyncio.create_task(pool.ask(time.sleep, 0))
        await asked
        second.cancel()
        assert await asyncio.wait_for(pool.ask(eval, "1"), 60) == 1

    run_with_pool(test)


def test_queued_reports_do_not_refuse_strokes(monkeypatch, tmp_path):
    monkeypatch.setattr(worker_pool, "MAX_QUEUE", 1)

    async def test(pool):
        reports = [asyncio.create_task(pool.ask(exec, until(tmp_path / "end"), slow=True)) for _ in range(2)]
        await asyncio.sleep(0)
        assert await pool.ask(eval, "1 + 1") == 2
        with pytest.raises(ServiceUnavailableError):
            await pool.ask(eval, "1 + 1", slow=True)
        (tmp_path / "end").touch()
        await asyncio.gather(*reports)

    run_with_pool(test, 2)


SERVER = """
import asyncio, sys, time
from whence.frontends.web.served_models import ServerConfig
from whence.frontends.web.worker_pool import WorkerPool

async def main():
    pool = WorkerPool(ServerConfig(models=()), 1)
    pid, folder = [await pool.ask(eval, code) for code in ("__import__('os').getpid()", "__import__('tempfile').mkdtemp()")]
    print(pid, folder, flush=True)
    await pool.ask(time.sleep, 600)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_processes_and_their_files_go_with_a_server_that_is_killed(tmp_path):
    (tmp_path / "server.py").write_text(SERVER)
    with subprocess.Popen([sys.executable, tmp_path / "server.py"], stdout=subprocess.PIPE, text=True) as server:
        pid, folder = server.stdout.readline().split()
        server.kill()
    deadline = time.monotonic() + 60
    while (not ended(pid) or Path(folder).exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended(pid)
    assert not Path(folder).exists()
