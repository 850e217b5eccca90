"""The life of a stack, top to bottom: set up, engines, gateway, ready, wait, stop in order.

Apart from supervisor.py (one process) and plan.py (no process at all).
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

from stack import plan, ports
from stack.console import Screen
from stack.errors import StackError
from stack.logs import LogFile, ProcessLog
from stack.plan import Place, ServedEngine
from stack.process import Child, Spec, describe_exit
from stack.rundir import locked, write_config
from stack.settings import StackFile, fill
from stack.supervisor import Status, Supervisor
from stack.waiting import Stopped, abandon, unless_failed, unless_stopped

EXIT_STOPPED = 0
EXIT_KILLED = 130
SLOW_S = 1.0
SECOND_SIGNAL_AFTER_S = 0.5  # nearer ones are one: make forwards what the terminal sent already


class Stack:
    """One stack from start to end; `run()` once."""

    def __init__(
        self,
        file: StackFile,
        place: Place,
        address: tuple[str, int],
        environ: dict[str, str],
        key: str | None,
        screen: Screen,
    ) -> None:
        self._file = file
        self._place = place
        self._address = address
        self._environ = environ
        self._key = key
        self._screen = screen
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()
        self._first_signal_s = 0.0
        self._engines: list[Supervisor] = []
        self._gateway: Supervisor | None = None
        self._tasks: dict[Supervisor, asyncio.Task[None]] = {}
        self._helpers: set[Child] = set()
        self._claims = ports.Claims()

    async def run(self) -> int:
        """Returns the exit code; raises StackError when it could not start or had to give up."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
                loop.add_signal_handler(number, self._on_signal, number)
        with locked(self._place.run):
            async with self._progress():
                try:
                    await self._start()
                    await self._watch()
                except Stopped:
                    pass
                finally:
                    await self._shut_down()
                    self._claims.close()
        return EXIT_KILLED if self._kill.is_set() else EXIT_STOPPED

    async def _start(self) -> None:
        engines = plan.served_engines(self._file, self._place)
        rpc = plan.rpc_port(self._file)
        on_ports = plan.choose_ports(engines, self._address, self._claims, rpc)
        plan.require_free_ports(engines, self._address, on_ports, rpc)
        config = plan.gateway_config(self._file, engines, self._address, on_ports, self._key)
        config_path = write_config(self._place.run, config)
        checked = asyncio.create_task(self._check_gateway(config_path))
        try:
            await unless_failed(checked, self._start_engines(engines, on_ports, checked))
            await unless_stopped(self._stop, checked)
        finally:
            await abandon(checked)
        await self._until_ready(self._engines)
        self._gateway = self._supervise(plan.gateway_spec(config_path, self._place, self._address, self._environ))
        await self._until_ready([self._gateway])
        self._screen.end_progress()
        self._announce(config)

    async def _start_engines(
        self, engines: list[ServedEngine], on_ports: dict[str, list[plan.Ports]], checked: asyncio.Task[None]
    ) -> None:
        """Set-ups and downloads go on while the gateway judges its configuration; no engine starts before it has."""
        self._screen.start_progress()
        await self._set_up(engines)
        checkpoints = {engine.name: await self._fetch(engine) for engine in engines if engine.needs_fetch}
        await asyncio.shield(checked)
        for engine in engines:
            checkpoint = checkpoints.get(engine.name)
            for spec in plan.replica_specs(engine, self._place, on_ports[engine.name], self._environ, checkpoint):
                self._engines.append(self._supervise(spec))

    async def _set_up(self, engines: list[ServedEngine]) -> None:
        """Run each profile's own set-up once, one after the other: they share the network and the disk."""
        done: set[tuple[str, ...]] = set()
        for engine in engines:
            known = plan.values(engine, self._place)
            command = tuple(fill(word, known) for word in engine.profile.setup or ())
            if command and command not in done:
                done.add(command)
                await self._helper(f"setup-{engine.name}", command, show=True)

    async def _fetch(self, engine: ServedEngine) -> str:
        """Download a hub id; the last line that is a folder says where it lies."""
        known = plan.values(engine, self._place)
        command = tuple(fill(word, known) for word in engine.profile.fetch or ())
        lines = await self._helper(f"fetch-{engine.name}", command, show=True)
        folder = next((line for line in reversed(lines) if line.startswith("/") and os.path.isdir(line)), None)  # noqa: ASYNC240
        if folder is None:
            raise StackError(f"downloading {engine.checkpoint} named no folder; it said:\n{_indent(lines)}")
        return folder

    async def _check_gateway(self, config_path: Path) -> None:
        """The gateway judges its configuration before an engine has taken a minute to start."""
        await self._helper("gateway-check", (sys.executable, "-m", "gateway", "check", str(config_path)), show=False)

    async def _helper(self, name: str, command: tuple[str, ...], show: bool) -> list[str]:
        """Run a short-lived program to its end; its last lines, or StackError with them."""
        environ = {key: text for key, text in self._environ.items() if key != plan.API_KEY_VARIABLE}
        log = self._log(name, self._screen.logs(name, from_the_start=True) if show else lambda _: None)
        child = Child(Spec(name=name, command=command, env=environ, cwd=self._place.root, grace_s=5), log)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        # A set-up that has nothing to do is not worth a word.
        told = loop.call_later(SLOW_S, self._screen.tell, Status(name, "running")) if show else None
        await child.start()
        self._helpers.add(child)
        try:
            code = await unless_stopped(self._stop, child.wait())
        finally:
            if told:
                told.cancel()
            await child.stop()
            self._helpers.discard(child)
            log.file.close()
        if code:
            raise StackError(f"{name} failed, {describe_exit(code)}:\n{_indent(log.tail)}")
        if told and loop.time() - began_s > SLOW_S:
            self._screen.tell(Status(name, "done", f"after {loop.time() - began_s:.0f} s"))
        return list(log.tail)

    def _supervise(self, spec: Spec) -> Supervisor:
        log = self._log(spec.name, self._screen.logs(spec.name))
        supervisor = Supervisor(spec, self._file.restart, log, self._tell)
        self._tasks[supervisor] = asyncio.create_task(supervisor.run(), name=spec.name)
        return supervisor

    def _log(self, name: str, forward: Callable[[list[str]], None]) -> ProcessLog:
        file = LogFile(self._place.logs / f"{name}.log", lambda text: self._screen.note(text, "yellow"))
        return ProcessLog(file, forward)

    def _tell(self, status: Status) -> None:
        self._screen.tell(status)
        if status.state == "gave up":
            supervisor = next(one for one in self._tasks if one.spec.name == status.name)
            self._screen.note(f"the last lines of {supervisor.log.file.path}:\n{_indent(supervisor.log.tail)}", "red")

    async def _until_ready(self, supervisors: list[Supervisor]) -> None:
        waits = [asyncio.create_task(_ready_or_given_up(one)) for one in supervisors]
        try:
            await unless_stopped(self._stop, asyncio.gather(*waits))
        finally:
            for wait in waits:
                wait.cancel()

    async def _watch(self) -> None:
        """Until asked to stop, or until what is left cannot serve: the gateway is lost, or every engine."""
        assert self._gateway is not None
        lost = [self._gateway.gave_up.wait(), _all_gave_up(self._engines)]
        tasks = [asyncio.ensure_future(one) for one in (*lost, self._stop.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        if not self._stop.is_set():
            gone = [one for one in (self._gateway, *self._engines) if one.gave_up.is_set()]
            raise StackError("; ".join(f"{one.spec.name} gave up: {one.reason}" for one in gone))

    async def _shut_down(self) -> None:
        """The gateway drains first, so that no request loses its engine; then the engines, all at once."""
        self._stop.set()
        killer = asyncio.create_task(self._kill_when_told())
        if self._gateway is not None:
            await self._end([self._gateway])
        await self._end(self._engines)
        await asyncio.gather(*(child.stop() for child in self._helpers))
        killer.cancel()
        for supervisor in self._tasks:
            supervisor.log.file.close()

    async def _end(self, supervisors: list[Supervisor]) -> None:
        await asyncio.gather(*(one.stop() for one in supervisors))
        await asyncio.gather(*(self._tasks[one] for one in supervisors))

    async def _kill_when_told(self) -> None:
        await self._kill.wait()
        self._screen.note("killing everything now", "red")
        for supervisor in self._tasks:
            supervisor.kill()
        for child in self._helpers:
            child.kill()

    def _on_signal(self, number: int) -> None:
        now_s = asyncio.get_running_loop().time()
        if not self._stop.is_set():
            self._first_signal_s = now_s
            self._screen.note(f"stopping ({signal.Signals(number).name}); Ctrl-C again kills at once")
            self._stop.set()
        elif number == signal.SIGINT and now_s - self._first_signal_s >= SECOND_SIGNAL_AFTER_S:
            self._kill.set()

    def _announce(self, config: dict[str, Any]) -> None:
        host, port = self._address
        base = ports.url(ports.reachable(host), port)
        models = list(config["models"])
        header = f' -H "authorization: Bearer ${plan.API_KEY_VARIABLE}"' if "auth" in config else ""
        body = f'{{"model": "{models[0]}", "messages": [{{"role": "user", "content": "Hello! What can you do?"}}]}}'
        self._screen.note(f"ready at {base}/v1", "bold green")
        rpc_port = plan.rpc_port(self._file)
        rpc = f"  gRPC    {config['rpc'].get('host', '127.0.0.1')}:{rpc_port}\n" if rpc_port else ""
        self._screen.plain(
            f"\n  curl {base}/v1/chat/completions -H 'content-type: application/json'{header} \\\n    -d '{body}'\n\n"
            f"{rpc}  models  {', '.join(models)}\n  logs    {self._place.logs}\n  stop    Ctrl-C\n"
        )

    @contextlib.asynccontextmanager
    async def _progress(self) -> AsyncIterator[None]:
        """The screen's clock, from start to end."""

        async def ticking() -> None:
            while True:
                await asyncio.sleep(1)
                self._screen.tick()

        ticker = asyncio.create_task(ticking())
        try:
            yield
        finally:
            ticker.cancel()
            self._screen.end_progress()


async def _ready_or_given_up(supervisor: Supervisor) -> None:
    ready = asyncio.create_task(supervisor.ready.wait())
    gave_up = asyncio.create_task(supervisor.gave_up.wait())
    try:
        await asyncio.wait({ready, gave_up}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ready.cancel()
        gave_up.cancel()
    if supervisor.gave_up.is_set():
        raise StackError(
            f"{supervisor.spec.name} did not start: {supervisor.reason}; its log: {supervisor.log.file.path}"
        )


async def _all_gave_up(supervisors: list[Supervisor]) -> None:
    for one in supervisors:
        await one.gave_up.wait()


def _indent(lines: Iterable[str]) -> str:
    return "\n".join(f"    {line}" for line in lines) or "    (it wrote nothing)"
