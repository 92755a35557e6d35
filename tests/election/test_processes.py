"""Elections and the life of their process: its end, its forks, its signals, its event loop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import fencer
from fencer.embedded import Server
from tests.election import bugs
from tests.election.conftest import eventually
from tests.faults import bugs as shared
from tests.faults.history import History
from tests.faults.planted import twin
from tests.faults.record import BEGIN

THREADS = """
import os, signal, sys, time
import fencer
client = fencer.connect(sys.argv[1], holder="child")
def on_lost(reason):
    sys.stdout.write(f"lost {client.inspect('lead').held}\\n")  # in one go: others print, too
    sys.stdout.flush()
election = fencer.Election(client, "lead", ttl=30, on_lost=on_lost)
def lead():
    election.start()
    while not election.is_leader: time.sleep(0.01)
    print("leads", flush=True)
"""

ASYNCIO = """
import asyncio, os, signal, sys
import fencer
async def on_lost(reason):
    await asyncio.sleep(0.1)
    print("lost", (await client.inspect("lead")).held, flush=True)
async def prepare():
    global client, election
    client = fencer.connect_async(sys.argv[1], holder="child")
    election = fencer.AsyncElection(client, "lead", ttl=30, on_lost=on_lost)
async def lead():
    await prepare()
    await election.start()
    while not election.is_leader: await asyncio.sleep(0.01)
    print("leads", flush=True)
"""


@contextmanager
def running(script: str, server: Server) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", BEGIN + script, server.unix_url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ends(script: str, server: Server) -> tuple[int, str, str]:
    with running(script, server) as process:
        out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def held(server: Server) -> bool:
    with fencer.connect(server.unix_url) as client:
        return client.inspect("lead").held


@twin(bugs.ends_without_a_stop)
@pytest.mark.parametrize(
    "script",
    [
        THREADS + "lead()",
        THREADS + "lead(); sys.exit(0)",
        ASYNCIO + "asyncio.run(lead())",
    ],
    ids=["threads", "exit", "asyncio"],
)
def test_the_end_of_the_program_is_a_graceful_stop(script: str, server: Server) -> None:
    """A program that ends would leave its work unstopped, or nobody to lead for a ttl."""
    assert ends(script, server) == (0, "leads\nlost True\n", "")
    assert not held(server)


@twin(bugs.ends_as_a_leader)
def test_a_follower_at_the_end_of_the_program(server: Server) -> None:
    """A program would not end, or not in silence, because it waits to lead."""
    with fencer.connect(server.unix_url) as client, client.acquire("lead", ttl=60):
        script = THREADS + "election.start(); time.sleep(0.3)"
        assert ends(script, server) == (0, "", "")
        script = ASYNCIO + (
            "async def follow():\n"
            "    await prepare()\n"
            "    await election.start()\n"
            "    await asyncio.sleep(0.3)\n"
            "asyncio.run(follow())"
        )
        assert ends(script, server) == (0, "", "")


@twin(bugs.never_releases)
def test_a_task_that_is_cancelled_in_its_block_steps_down(server: Server) -> None:
    """A cancelled task would leave a leader behind that nobody can reach any more."""
    script = ASYNCIO + (
        "async def work():\n"
        "    async with election:\n"
        "        while not election.is_leader: await asyncio.sleep(0.01)\n"
        "        await asyncio.sleep(60)\n"
        "async def main():\n"
        "    await prepare()\n"
        "    task = asyncio.create_task(work())\n"
        "    while not election.is_leader: await asyncio.sleep(0.01)\n"
        "    task.cancel()\n"
        "    await asyncio.wait([task])\n"
        "    print(task.cancelled(), (await client.inspect('lead')).held)\n"
        "    await client.close()\n"
        "asyncio.run(main())"
    )
    assert ends(script, server) == (0, "lost True\nTrue False\n", "")


RUN = {
    "threads": THREADS + "print('runs', flush=True); election.run(); print('done')",
    "asyncio": ASYNCIO + "async def main():\n"
    "    await prepare()\n"
    "    print('runs', flush=True)\n"
    "    await election.run()\n"
    "    print('done')\n"
    "    await client.close()\n"
    "asyncio.run(main())",
}
RUN = {
    api: script.replace("on_lost=", "on_elected=lambda _: print('leads', flush=True), on_lost=")
    for api, script in RUN.items()
}


def leads(process: subprocess.Popen[str]) -> None:
    """Wait until its on_elected has run."""
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["runs\n", "leads\n"]


@twin(bugs.hears_no_sigterm)
@pytest.mark.parametrize("api", RUN)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_by_a_signal(api: str, number: int, server: Server) -> None:
    """A service could not be stopped as every other program is."""
    with running(RUN[api], server) as process:
        leads(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "lost True\ndone\n", "")
    assert not held(server)


@twin(bugs.hides_a_second_signal)
@pytest.mark.parametrize("api", RUN)
def test_a_second_signal_ends_a_stop_that_hangs(api: str, server: Server) -> None:
    """A service whose on_lost hangs could be stopped with SIGKILL only."""
    sleep = "time.sleep(60)" if api == "threads" else "await asyncio.sleep(60)"
    begin = "def on_lost(reason):\n"
    script = RUN[api].replace(begin, f"{begin}    print('hangs', flush=True); {sleep}\n")
    with running(script, server) as process:
        leads(process)
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM


@twin(bugs.remembers_in_a_child)
def test_a_forked_child_has_no_part_in_the_lead(server: Server) -> None:
    """A child would believe that it leads, or end its parent's term when it ends."""
    script = THREADS + (
        "lead()\n"
        "if os.fork() == 0:\n"
        "    print(election.is_leader, election.lease, flush=True)\n"
        "    election.stop()\n"
        "    election.start()\n"
        "    while client.inspect('lead').waiters != 1: time.sleep(0.01)\n"
        "    sys.exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]), election.is_leader, flush=True)\n"
    )
    code, out, err = ends(script, server)
    assert (code, err) == (0, "")
    assert out == "leads\nFalse None\n0 True\nlost True\n"
    assert not held(server)


@twin(shared.one_token_for_all)
def test_a_leader_that_is_killed_is_replaced(server: Server, history: History) -> None:
    """Nobody would lead after a crash."""
    script = THREADS.replace("ttl=30", "ttl=1, retry_interval=1") + "lead(); time.sleep(60)"
    with (
        running(script, server) as process,
        fencer.connect(server.unix_url) as client,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "leads\n"
        with fencer.Election(client, "lead", ttl=1, retry_interval=1) as election:
            eventually(lambda: client.inspect("lead").waiters == 1)
            process.kill()
            history.healed(30)
            eventually(lambda: election.is_leader)


@twin(shared.believes_too_long)
def test_a_leader_that_was_paused_is_a_follower(server: Server) -> None:
    """A process that wakes up would go on leading beside its successor, or take the lead back."""
    script = THREADS.replace("ttl=30", "ttl=1, retry_interval=1") + (
        "lead()\nwhile election.is_leader: time.sleep(0.01)\n"
        "while not (leader := election.leader()): time.sleep(0.01)\n"
        "sys.stdout.write(f'{leader.holder} {election.is_leader}\\n'); sys.stdout.flush()\n"
        "time.sleep(60)"
    )
    with (
        running(script, server) as process,
        fencer.connect(server.unix_url, holder="parent") as client,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "leads\n"
        with fencer.Election(client, "lead", ttl=1, retry_interval=1) as election:
            process.send_signal(signal.SIGSTOP)
            eventually(lambda: election.is_leader)
            process.send_signal(signal.SIGCONT)
            told = {process.stdout.readline() for _ in range(2)}
            assert told == {"lost True\n", "parent False\n"}
            time.sleep(0.5)
            assert election.is_leader
