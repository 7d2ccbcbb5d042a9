"""Starts and stops everything: Ray, the cluster, the way in.

Read `Running.begin` and `Running.stop` first: they are the order of things. `up` is `drayman up`:
it starts, says where, waits and stops.

Rule 1: whatever was started before a failure is ended again. Rule 2: "ready" means that this run
answered over HTTP with its own nonce, not that something answers on the port. Rule 3: nothing
here knows what the application or the cluster are; both are given. Rule 4: the start is inside Ray
in a thread of its own, as Ray loses what a signal's handler raises there and puts its own handler
in place; the main thread only waits, so a signal is heard at once.
"""

import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import IO, Any

import httpx
import psutil

from jobs.errors import InvalidInput, NotFound, Unavailable
from service import head as ray_head
from service.edge import LOOPBACK, Edge, EdgePlan, port_is_free
from service.head import Head, expect_deaths, leave_out_deaths
from service.runfile import (
    RUN_ENV,
    ProcessRecord,
    RunFile,
    RunFolder,
    end_processes,
    find_descendants,
    identify,
    is_alive,
    read_pids,
    state_dir,
    write_private,
)

__all__ = [
    "Cluster",
    "Run",
    "Running",
    "Settings",
    "detach",
    "down",
    "up",
]

APPLICATION = "drayman"
RUN_HEADER = "Drayman-Run"
READY_PATH = "/readyz"
#: Generous: a cold laptop compiles every module of Ray and of the user's jobs first.
READY_S = 180.0
#: Between looks at Ray's processes while running.
WATCH_S = 0.5
#: Between looks at `/readyz` while starting.
POLL_S = 0.05
#: So long without a new HAProxy means that there will be none.
SETTLED_S = 0.75
#: So long a stop waits for a step of the start that cannot be called back.
STEP_S = 5.0
#: And where this process is to live on.
STOP_S = 30.0
#: `down` waits this long for a drain before it kills.
DOWN_S = 60.0
ANY_HOST = ("0.0.0.0", "::")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Exit codes of `up`.
EXIT_DONE, EXIT_DIED, EXIT_INTERRUPTED = 0, 1, 130


@dataclass(frozen=True, slots=True)
class Settings:
    """What `drayman up` was asked for."""

    port: int = 8000
    host: str = LOOPBACK
    store: str = ""
    jobs: tuple[str, ...] = ()
    #: Join this Ray instead of starting one.
    address: str | None = None
    #: `proxy` or `haproxy`; None takes the fastest that this machine has.
    edge: str | None = None
    ray_dashboard: bool = True
    #: Start on a store that another cluster used last and did not leave in good order.
    take_over: bool = False
    #: Folders of this machine that params of jobs may name files in.
    data_dirs: tuple[str, ...] = ()
    output_dirs: tuple[str, ...] = ()
    #: Private networks that `http.call` may reach, with commas.
    http_allow: str = ""
    #: Where people reach it, for links in mails and webhooks.
    public_url: str = ""
    #: A collector of OpenTelemetry, like `http://localhost:4318`.
    otlp: str = ""
    #: The store's folder is mounted on every node of the Ray that is joined.
    shared_mount: bool = False
    #: New work is refused while the store's disk has less room (MiB).
    free_space_min_mb: float = 1024.0
    #: A `drayman.toml`; None takes what suits the machine.
    config: Path | None = None
    #: Wishes like `cpu:memory_limit_mb=2000`, beyond it.
    pools: tuple[str, ...] = ()
    #: Processes that answer the API: while one restarts, another goes on.
    replicas: int = 1
    compact_after_s: float = 300.0
    retention_days: float | None = None
    state: Path = field(default_factory=state_dir)

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise InvalidInput("port", f"{self.port} is not a port; choose one from 1 to 65535")

    @property
    def url(self) -> str:
        """Where this machine reaches the API."""
        host = LOOPBACK if self.host in ANY_HOST else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Run:
    """What the cluster and the application need to know of this run."""

    settings: Settings
    #: `/readyz` answers with it in the header `Drayman-Run`.
    nonce: str
    ray_address: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """The manager and workers, as the floor below started them."""

    #: An admin's API token; `up` prints it and keeps it where the CLI finds it.
    token: str
    #: Stop taking work and let go of what runs. Called once, before the edge stops.
    drain: Callable[[], None]


#: Returns a `serve.Application`. It may run before Ray is imported, so it imports Ray itself.
ApplicationBuilder = Callable[[Run], Any]
ClusterStarter = Callable[[Run], Cluster]


class Running:
    """A Drayman that is claimed, started and stopped."""

    def __init__(
        self, settings: Settings, runs: RunFolder, file: RunFile, plan: EdgePlan, lock: IO[str]
    ) -> None:
        self.settings, self.file, self.plan = settings, file, plan
        self.head: Head | None = None
        self.cluster: Cluster | None = None
        self._runs, self._lock = runs, lock
        # Its thread lasts as long as the run: the kernel ends Ray with the thread that started it.
        self._starter = ThreadPoolExecutor(1, "start")
        self._starting: Future[None] | None = None
        #: The start takes no further step.
        self.is_stopping = False

    @property
    def run(self) -> Run:
        """What the cluster and the application need to know."""
        return Run(self.settings, self.file.nonce, self.file.ray_address)

    def begin(self, application: ApplicationBuilder, start_cluster: ClusterStarter) -> None:
        """Start everything and return when it answers over HTTP. Call `stop` if it fails.

        Raises InvalidInput where the port is taken, Unavailable where it does not become ready.
        """
        with _signals_kept():
            self._take(_start_ray, self)
        self._take(_start_serving, self, application, start_cluster)
        _wait_ready(self)
        self.file.ready = True
        self.record()

    def _take(self, step: Callable[..., None], *arguments: Any) -> None:
        self._starting = self._starter.submit(step, *arguments)
        self._starting.result()

    def dead_process(self) -> str | None:
        """Return the name of a vital process of Ray that died, if one did."""
        vital = self.head.vital_processes() if self.head else []
        return next((process.what for process in vital if not is_alive(process)), None)

    def record(self) -> None:
        """Write down what runs by now."""
        head = self.head or Head("", "", [])
        self.file.processes = head.processes + read_pids(self.plan.pids_file, "haproxy")
        self.file.ray_address, self.file.dashboard_url = head.address, head.dashboard_url
        self._runs.write(self.file)

    def keep_token(self, token: str) -> None:
        """Put the admin's token where the CLI finds it."""
        path = self._runs.path(self.file.port, "token")
        write_private(path, token.encode())
        self.file.token_path = str(path)

    def stop(self, drain: bool = True) -> bool:
        """Drain, then end everything this run started. Safe to call again.

        Returns False if Ray died meanwhile (a signal may go to a whole process group), or if the
        start is still inside it: then this process cannot end in good order either.
        """
        if self._lock.closed:
            return True
        self.is_stopping = True
        try:
            with _signals_kept():
                has_started = self._await_start(drain)
            is_polite = self.head is None or self._stop_politely(drain)
            return is_polite and has_started
        finally:
            self._release()

    def abandon(self) -> None:
        """End everything this run started at once: its Ray is dead and cannot be asked."""
        if not self._lock.closed:
            self._release()

    def _await_start(self, drain: bool) -> bool:
        """Return whether the start has ended, within a moment; to drain, a manager is enough.

        Who does not drain goes on in this process, whose end would wait for the start.
        """
        deadline = time.monotonic() + (STEP_S if drain else STOP_S)
        while self._starting is not None and not self._starting.done():
            can_drain = drain and self.cluster is not None
            if can_drain or self.dead_process() is not None or time.monotonic() > deadline:
                return False
            wait([self._starting], timeout=POLL_S)
        return True

    def _stop_politely(self, drain: bool) -> bool:
        asking = ThreadPoolExecutor(1, "stop")
        asked = asking.submit(self._ask_to_stop, drain)
        # What asks a Ray that is gone waits for a minute; nobody needs to wait with it.
        asking.shutdown(wait=False)
        while not asked.done():
            if self.dead_process() is not None:
                return False
            wait([asked], timeout=POLL_S)
        asked.result()
        return True

    def _ask_to_stop(self, drain: bool) -> None:
        import ray
        from ray import serve

        expect_deaths()
        if self.cluster is not None and drain:
            self.cluster.drain()
        # Lets requests in flight end. Serve itself goes with our Ray, or is not ours to stop.
        if self.file.ready or (not self.file.owns_ray and _has_controller()):
            serve.delete(APPLICATION)
        if self._starting is None or self._starting.done():
            ray.shutdown()

    def _release(self) -> None:
        self.file.processes += read_pids(self.plan.pids_file, "haproxy")
        _end_run(self.file)
        self._runs.remove(self.file)
        self._lock.close()
        self._starter.shutdown(wait=False)


def _claim(settings: Settings) -> Running:
    ray_head.require_ray_not_imported()
    edge = Edge.choose(settings.edge)
    runs = RunFolder(settings.state)
    lock = runs.lock(settings.port)
    file: RunFile | None = None
    try:
        _clear_up_after(runs, settings.port)
        _require_free(settings)
        folder = ray_head.make_folder()
        file = RunFile(
            nonce=secrets.token_hex(16),
            url=settings.url,
            host=settings.host,
            port=settings.port,
            edge=edge,
            store=settings.store,
            driver=this_process(),
            started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            folder=str(folder),
            owns_ray=settings.address is None,
        )
        runs.write(file)
    except BaseException:
        if file is not None:
            runs.remove(file)
        lock.close()
        raise
    plan = EdgePlan(edge, settings.host, settings.port, folder / "edge")
    return Running(settings, runs, file, plan, lock)


def _clear_up_after(runs: RunFolder, port: int) -> None:
    """End what an earlier run on this port left behind; whoever holds the lock is its heir."""
    earlier = runs.read(port)
    if earlier is not None:
        _end_run(earlier)
        runs.remove(earlier)


def _end_run(file: RunFile) -> None:
    if file.driver.boot != this_process().boot:
        return
    haproxies = read_pids(Path(file.folder) / "edge" / EdgePlan.PIDS_FILE, "haproxy")
    driver = [] if file.driver == this_process() else [file.driver]
    end_processes([*driver, *file.processes, *haproxies])
    # Twice, as a process may have started another while it was being ended.
    for _ in range(2):
        end_processes(find_descendants(file.nonce))


def _require_free(settings: Settings) -> None:
    if port_is_free(settings.host, settings.port):
        return
    holder = _port_holder(settings.port)
    raise InvalidInput(
        "port",
        f"{settings.port} is in use by {holder}; choose another with --port, or stop that process",
    )


def _port_holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            is_holder = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if is_holder and connection.pid is not None:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        # Another user's process, or one that just ended: not ours to see.
        pass
    return "another process"


def _start_ray(running: Running) -> None:
    settings, file = running.settings, running.file
    os.environ[RUN_ENV] = file.nonce
    if settings.address is not None:
        # A running Ray was given its edge when it was started; ours would be too late.
        running.head = Head.join(settings.address)
    else:
        token = RunFolder(settings.state).path(settings.port, "ray-token")
        file.ray_token_path = str(token)
        ray_head.forget_foreign_settings()
        os.environ.update(ray_head.environment(token))
        os.environ.update(running.plan.environment())
        running.head = Head.start(Path(file.folder), settings.ray_dashboard)
    leave_out_deaths()
    running.record()


def _start_serving(
    running: Running, application: ApplicationBuilder, start_cluster: ClusterStarter
) -> None:
    from ray import serve
    from ray.exceptions import RayActorError, RayTaskError

    # Serve sets its logger up when it is imported, for a terminal that asks for all of it.
    logging.getLogger(serve.__name__).setLevel(logging.WARNING)
    options = serve.HTTPOptions(host=running.plan.serve_host, port=running.settings.port)
    with ThreadPoolExecutor(1, "serve") as aside:
        # Serve's controller and edge take seconds to start, and so do the cluster's workers.
        serving = aside.submit(serve.start, http_options=options)
        running.cluster = start_cluster(running.run)
        running.keep_token(running.cluster.token)
        # The application's replica need not wait for the edge, but without a controller
        # `serve.run` would start one of its own, with other options.
        while not serving.done() and not _has_controller():
            time.sleep(POLL_S)
        if running.is_stopping:
            return
        serve.run(application(running.run), name=APPLICATION, route_prefix="/")
        try:
            serving.result()
        except (RayActorError, TimeoutError):
            # The edge was slow or died, and Serve starts another: `_wait_ready` is the judge.
            pass
        except RayTaskError:
            # The edge could not listen: who took its port meanwhile keeps it from the next, too.
            _require_free(running.settings)


def _has_controller() -> bool:
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def _wait_ready(running: Running) -> None:
    deadline = time.monotonic() + READY_S
    seen = "nothing answered"
    with httpx.Client(base_url=running.file.url, timeout=5.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            if (dead := running.dead_process()) is not None:
                raise Unavailable(f"Ray's {dead} ended while Drayman was starting")
            try:
                answer = client.get(READY_PATH)
            except httpx.TransportError as error:
                seen = str(error)
            else:
                seen = f"{answer.status_code} {answer.text[:200]}"
                is_ours = answer.headers.get(RUN_HEADER) == running.file.nonce
                if answer.is_success and is_ours:
                    return _wait_settled(running.plan, deadline)
            time.sleep(POLL_S)
    raise Unavailable(f"{running.file.url}{READY_PATH} was not ready in {READY_S:g} s: {seen}")


def _wait_settled(plan: EdgePlan, deadline: float) -> None:
    """Wait until HAProxy was not started anew for a moment: that closes open connections.

    Serve does it once more when the first replica has begun to answer.
    """
    count, since = -1, time.monotonic()
    while time.monotonic() < min(deadline, since + SETTLED_S):
        if (now := len(read_pids(plan.pids_file, "haproxy"))) != count:
            count, since = now, time.monotonic()
        time.sleep(POLL_S)


def up(
    settings: Settings,
    application: ApplicationBuilder,
    start_cluster: ClusterStarter,
    say: Callable[[str], None],
    attend: Callable[[Running], int] | None = None,
) -> int:
    """Run in the foreground until told to stop; return the exit code.

    The first SIGINT, SIGTERM or SIGHUP drains and stops, also while it starts; a second one stops
    draining. With `attend` it stays until that is done, which returns the exit code.
    """
    running: Running | None = None
    dead: str | None = None
    code: int | None = None
    with _signals_raise():
        try:
            try:
                running = _claim(settings)
                running.begin(application, start_cluster)
                if attend is None:
                    _announce(running.file, say)
                    dead = _watch(running)
                else:
                    code = attend(running)
            except Interrupted:
                say("stopping")
            except Exception:
                if running is not None:
                    running.stop(drain=False)
                raise
            if dead is not None:
                say(f"Ray's {dead} ended unexpectedly; stopping. Run `drayman up` again.")
            has_ended = running is None or (dead is None and running.stop())
        except Interrupted:
            has_ended = False
        if running is not None and not has_ended:
            running.abandon()
        if dead is None and code is None:
            say("stopped; what was not done goes on with the next `drayman up` on this store")
    if code is None:
        is_done = attend is None and running is not None and running.file.ready
        code = EXIT_DIED if dead is not None else EXIT_DONE if is_done else EXIT_INTERRUPTED
    if not has_ended:
        # Ray's own exit handlers would wait for the Ray that is gone.
        sys.stdout.flush()
        os._exit(code)
    return code


def detach(command: Sequence[str], settings: Settings, say: Callable[[str], None]) -> int:
    """Run `command` (a foreground `up`) in a session of its own; return when it is ready.

    Its output goes to a log file. Returns the exit code for the command line.
    """
    runs = RunFolder(settings.state)
    # Refused here, where the user sees it, rather than in the log of the other process.
    runs.lock(settings.port).close()
    log_path = settings.state / "log" / f"{settings.port}.log"
    log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with log_path.open("w") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        file = runs.read(settings.port)
        if file is not None and file.ready and file.driver.pid == child.pid:
            _announce(file, say)
            return EXIT_DONE
        if (code := child.poll()) is not None:
            say(log_path.read_text().rstrip())
            return code
        time.sleep(POLL_S)
    raise Unavailable(
        f"not ready in {READY_S:g} s; see {log_path}, and stop it with `drayman down`"
    )


def down(port: int, state: Path | None = None) -> str:
    """Stop the Drayman on `port`, or clear up after one that died; return what was done.

    Raises NotFound if nothing is recorded for the port.
    """
    runs = RunFolder(state or state_dir())
    file = runs.read(port)
    if file is None:
        raise NotFound("Drayman on port", str(port))
    if not is_alive(file.driver):
        _clear_up_after(runs, port)
        return f"the Drayman on {port} had died; cleared up after it"
    was_ended = end_processes([file.driver], grace_s=DOWN_S) and not runs.path(port).exists()
    if not was_ended:
        _clear_up_after(runs, port)
        return f"the Drayman on {port} did not stop in {DOWN_S:g} s; ended it by force"
    return f"stopped the Drayman on {port}"


class Interrupted(BaseException):
    """A signal asked this process to stop. Not an Exception, so that no handler keeps it."""


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    left = 2

    def interrupt(number: int, _: FrameType | None) -> None:
        # A third one would come in the way of what the second asked for.
        nonlocal left
        if left > 0:
            left -= 1
            raise Interrupted(signal.Signals(number).name)

    # What was ignored from the start stays so: `nohup drayman up` outlives its terminal.
    heard = [n for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    earlier = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    # Ray puts a handler of the kernel's kind before ours, which prints a stack.
    earlier = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _watch(running: Running) -> str | None:
    """Return the name of the process whose death ends the run. Left by a signal otherwise."""
    recorded = 0
    while (dead := running.dead_process()) is None:
        # HAProxy is started anew whenever a replica changes.
        if (now := len(read_pids(running.plan.pids_file, "haproxy"))) != recorded:
            recorded = now
            running.record()
        time.sleep(WATCH_S)
    return dead


def _announce(file: RunFile, say: Callable[[str], None]) -> None:
    token = Path(file.token_path).read_text()
    say(f"url: {file.url}")
    # After a `#`, as browsers send that to nobody: it comes into no log.
    say(f"store: {file.store}")
    say(f"dashboard: {file.url}/#token={token}")
    say(f"token: {token}")
    if file.dashboard_url:
        say(f"ray: {file.dashboard_url}")
        say(f"ray token file: {file.ray_token_path}")


def this_process() -> ProcessRecord:
    """Return the record of this process."""
    record = identify(os.getpid(), "driver")
    assert record is not None, "a process that runs exists"
    return record
