"""`understudy up` as a user meets it: a terminal, a link, signals, accidents."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import trio

from understudy.daemon.rundir import Standing
from understudy.store.watchdog import read_postmaster
from understudy.testing.processes import Machine, free_port, kill, open_machine, wait_until


@asynccontextmanager
async def open_up(*arguments: str) -> AsyncIterator[tuple[Machine, trio.Process]]:
    """A machine on which `up` has said that it is up."""
    async with open_machine(UNDERSTUDY_PORT=str(free_port())) as machine:
        process = await start_up(machine, *arguments)
        yield machine, process


async def start_up(machine: Machine, *arguments: str) -> trio.Process:
    machine.log("up").unlink(missing_ok=True)
    process = await machine.start("up", *arguments)
    await wait_until(lambda: "Ctrl-C stops" in machine.said("up") or process.poll() is not None)
    assert process.returncode is None, machine.said("up")
    return process


def address(machine: Machine) -> str:
    return f"http://127.0.0.1:{machine.environment['UNDERSTUDY_PORT']}"


def agents(machine: Machine) -> list[int]:
    """The agents at work, as their keepers wrote them down."""
    kept = [each for each in machine.runs() if each.look() is Standing.KEPT]
    states = [each.state() for each in kept if (each.run_dir / "state.json").exists()]
    return [state.agent_pid for state in states if state.agent_pid is not None]


async def give_work(machine: Machine, *, step_s: float) -> str:
    """An agent at work on UND-1; the task's id."""
    arguments = ["--", "--step-s", str(step_s)]
    await machine.run("agent", "create", "Nia", "--provider", "scripted", *arguments)
    made = await machine.ask("issue", "create", "Work", "--agent", "Nia")
    await wait_until(lambda: agents(machine))
    return str(made["task"]["id"])


async def wait_ended(machine: Machine, task: str) -> Any:
    """The run, whole: completed at the first attempt, each message and the comment once."""
    with trio.fail_after(90):
        while True:
            shown = await machine.run("task", "show", task, "--json")
            if b'"completed"' in shown.stdout:
                break
            await trio.sleep(0.2)
    shown = await machine.ask("issue", "show", "UND-1")
    assert [(each["status"], each["attempt"]) for each in shown["tasks"]] == [("completed", 1)]
    assert len(shown["comments"]) == 1
    said = (await machine.run("task", "logs", task)).stdout.decode()
    assert len(re.findall(r"Process \d+ is at work", said)) == 1
    assert len(re.findall(r"^Sum up for the reviewer\.$", said, re.MULTILINE)) == 1
    return shown


async def test_the_link_logs_in_once_and_the_server_is_well() -> None:
    async with open_up() as (machine, _):
        [link] = re.findall(r"Log in once with: (\S+)", machine.said("up"))
        assert f"Understudy is at {address(machine)}" in machine.said("up")
        async with httpx2.AsyncClient(trust_env=False, base_url=address(machine)) as http:
            assert (await http.get("/api/health")).json()["status"] == "ok"
            assert (await http.get("/api/me")).status_code == 401
            followed = await http.get(link)
            assert followed.headers["location"] == "/"
            assert (await http.get("/api/me")).status_code == 200
        async with httpx2.AsyncClient(trust_env=False, base_url=address(machine)) as http:
            assert "spent" in (await http.get(link)).headers["location"]
            assert (await http.get("/api/me")).status_code == 401


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        (signal.SIGTERM, 0),
    ],
)
async def test_a_signal_stops_all_but_the_agent_whom_the_next_up_finds(
    number: signal.Signals, code: int
) -> None:
    """R7.4, R8.1"""
    async with open_up() as (machine, process):
        task = await give_work(machine, step_s=0.8)
        before = agents(machine)
        process.send_signal(number)
        with trio.fail_after(30):
            assert await process.wait() == code
        assert "Traceback" not in machine.said("up")
        assert machine.running("serve") is None
        assert not [name for name in machine.left() if name.startswith("postgres")]
        assert agents(machine) == before
        await start_up(machine)
        await wait_ended(machine, task)


async def test_a_port_in_use_is_one_sentence_and_exit_1() -> None:
    async with open_machine() as machine:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = str(other.getsockname()[1])
            done = await machine.run("up", environment={"UNDERSTUDY_PORT": port})
        assert done.returncode == 1
        [sentence] = done.stderr.decode().splitlines()
        assert f"127.0.0.1:{port} is in use" in sentence
        assert machine.left() == {}


async def test_a_second_up_in_one_home_says_so_and_harms_nothing() -> None:
    async with open_up() as (machine, process):
        for port in (machine.environment["UNDERSTUDY_PORT"], str(free_port())):
            done = await machine.run("up", environment={"UNDERSTUDY_PORT": port})
            assert done.returncode == 1, done.stdout
            [sentence] = done.stderr.decode().splitlines()
            assert f"already (pid {process.pid})" in sentence
        task = await give_work(machine, step_s=0.1)
        await wait_ended(machine, task)
        assert process.returncode is None


async def test_sigkill_of_up_leaves_nothing_but_keepers() -> None:
    """R8.1"""
    async with open_up() as (machine, process):
        task = await give_work(machine, step_s=1.0)
        kill(process.pid)
        kept = agents(machine)

        def only_keepers() -> bool:
            running = [machine.running(each) for each in ("serve", "daemon")]
            return not any(running) and not any("postgres" in name for name in machine.left())

        await wait_until(only_keepers)
        assert agents(machine) == kept
        await start_up(machine)
        await wait_ended(machine, task)


async def test_a_killed_server_is_started_again_under_a_running_agent() -> None:
    """R6.4"""
    async with open_up() as (machine, process):
        task = await give_work(machine, step_s=0.5)
        serve = await wait_until(lambda: machine.running("serve"))
        kill(serve.pid)
        again = await wait_until(lambda: machine.running("serve"))
        assert again != serve
        await wait_ended(machine, task)
        assert process.returncode is None


@pytest.mark.slow
async def test_a_killed_daemon_is_started_again_under_a_running_agent() -> None:
    """R8.1"""
    async with open_up() as (machine, process):
        task = await give_work(machine, step_s=1.0)
        before = agents(machine)
        daemon = await wait_until(lambda: machine.running("daemon", "run"))
        kill(daemon.pid)
        assert agents(machine) == before
        await wait_ended(machine, task)
        assert process.returncode is None


@pytest.mark.slow
async def test_a_killed_database_is_started_again_under_a_running_agent() -> None:
    async with open_up() as (machine, process):
        task = await give_work(machine, step_s=1.0)
        postmaster = read_postmaster(machine.home / "postgres")
        assert postmaster is not None
        kill(postmaster.pid)
        await wait_ended(machine, task)
        assert process.returncode is None
