"""Stands in for the HAProxy binary: confines the configuration Ray wrote, then becomes HAProxy.

Ray Serve starts this for every start and every reload, with the arguments meant for HAProxy.
What it changes in the file behind `-f`, and why:

1. The stats page and the metrics page are dropped. Ray binds both on every interface, without
   authentication, and reads neither itself (it uses the admin socket).
2. The API's own `bind` gets the address the operator asked for; every other one gets loopback.
3. The admin socket is for its owner alone: Ray makes it writable for everyone.
4. Access logs go nowhere unless a target was asked for; Ray sends them to a syslog port.

Rule 1: a `bind` line it does not understand stops HAProxy: it must not listen unconfined.
Rule 2: only the standard library; it runs isolated, from a path, before HAProxy takes its place.
Rule 3: HAProxy must not outlive the process that started it, else it keeps the port and answers
errors for a Ray that is gone.
"""

import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Iterator

__all__ = ["Unconfinable", "confine"]

API_SECTION = "frontend http_frontend"
DROPPED_SECTIONS = ("frontend prometheus", "listen stats")
LOOPBACK = "127.0.0.1"
#: Exit code of a refusal: "configuration error" in sysexits.h.
EX_CONFIG = 78
PR_SET_PDEATHSIG = 1

BIND = re.compile(r"^(\s*)bind\s+(\S+)(.*)$")
ADDRESS = re.compile(r"^(?P<host>\*|\[[0-9a-fA-F:]*\]|[0-9A-Za-z.\-]*):(?P<port>\d+)$")


class Unconfinable(Exception):
    """The configuration listens in a way this file does not know."""


def confine(config: str, api_host: str, keep_log: bool = False) -> str:
    """Return the configuration with its API on `api_host` and the rest on loopback or gone."""
    return "".join(_confined_lines(config, api_host, keep_log))


def _confined_lines(config: str, api_host: str, keep_log: bool) -> Iterator[str]:
    section = ""
    for line in config.splitlines(keepends=True):
        if line.strip() and not line[0].isspace() and not line.startswith("#"):
            section = " ".join(line.split())
        if section in DROPPED_SECTIONS:
            continue
        words = line.split()
        if words[:1] == ["bind"]:
            yield _confined_bind(line, api_host if section == API_SECTION else LOOPBACK)
        elif words[:2] == ["stats", "socket"]:
            yield re.sub(r"\bmode\s+\d+", "mode 600", line)
        elif section == "global" and words[:1] == ["log"] and not keep_log:
            continue
        else:
            yield line


def _confined_bind(line: str, host: str) -> str:
    bind = BIND.match(line)
    address = ADDRESS.match(bind[2]) if bind else None
    if bind is None or address is None:
        raise Unconfinable(f"do not know how to confine this line: {line.strip()!r}")
    shown = f"[{host}]" if ":" in host else host
    return f"{bind[1]}bind {shown}:{address['port']}{bind[3].rstrip()}\n"


def _confine_file(path: str, api_host: str, keep_log: bool) -> None:
    # Ray wrote this path and looks for it in HAProxy's command line, so it is kept.
    with open(path, encoding="utf-8") as file:
        config = confine(file.read(), api_host, keep_log)
    fresh = f"{path}.{os.getpid()}"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(config)
    os.replace(fresh, path)


def _die_with_parent() -> None:
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # A parent that died before the call above sends no signal any more.
    if os.getppid() != parent or parent == 1:
        sys.exit(EX_CONFIG)


def _record(pids_file: str) -> None:
    # The process id and the start time stay the same across exec.
    with open("/proc/self/stat", encoding="utf-8") as stat:
        started = int(stat.read().rpartition(")")[2].split()[19])
    with open(pids_file, "a", encoding="utf-8") as file:
        file.write(json.dumps({"pid": os.getpid(), "started": started}) + "\n")


def main(argv: list[str]) -> None:
    """Run as `haproxy_wrapper.py SETTINGS.json [HAProxy's arguments]`."""
    with open(argv[1], encoding="utf-8") as file:
        settings = json.load(file)
    arguments = argv[2:]
    if "-f" in arguments:
        path = arguments[arguments.index("-f") + 1]
        try:
            _confine_file(path, settings["api_host"], settings["keep_log"])
        except Unconfinable as error:
            sys.stderr.write(f"drayman: HAProxy not started: {error}\n")
            sys.exit(EX_CONFIG)
        _die_with_parent()
        _record(settings["pids_file"])
    os.execv(settings["binary"], [settings["binary"], *arguments])


if __name__ == "__main__":
    main(sys.argv)
