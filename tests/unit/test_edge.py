"""The edge's environment, and what the HAProxy wrapper does to Ray's configuration."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from jobs.errors import InvalidInput
from service.edge import LOOPBACK, Edge, EdgePlan, haproxy_binary, port_is_free
from service.haproxy_wrapper import Unconfinable, confine

needs_haproxy = pytest.mark.skipif(haproxy_binary() is None, reason="no HAProxy on this platform")

CONFIG = """global
    # a comment
    log 127.0.0.1:514 local0 info
    stats socket /run/admin.sock mode 666 level admin expose-fd listeners
    nbthread 1
defaults
    mode http
    log global
frontend prometheus
    bind :9101
    mode http
    http-request use-service prometheus-exporter if { path /metrics }
    no log
frontend http_frontend
    bind 127.0.0.1:8000
    default_backend default_backend
backend default_backend
    server one 127.0.0.1:20000 check
listen stats
  bind *:8404
  stats enable
"""


def test_stats_and_metrics_pages_are_dropped() -> None:
    confined = confine(CONFIG, LOOPBACK)

    assert "8404" not in confined
    assert "9101" not in confined
    assert "stats enable" not in confined
    assert "server one 127.0.0.1:20000 check" in confined


def test_admin_socket_is_for_its_owner_alone() -> None:
    assert "stats socket /run/admin.sock mode 600 level admin" in confine(CONFIG, LOOPBACK)


def test_access_logs_go_nowhere_unless_asked_for() -> None:
    assert "514" not in confine(CONFIG, LOOPBACK)
    assert "log 127.0.0.1:514 local0 info" in confine(CONFIG, LOOPBACK, keep_log=True)


@pytest.mark.parametrize(("host", "bind"), [("0.0.0.0", "0.0.0.0:8000"), ("::", "[::]:8000")])
def test_host_opens_the_api_alone(host: str, bind: str) -> None:
    config = CONFIG + "frontend grpc_frontend\n    bind *:9000 proto h2\n"

    confined = confine(config, host)

    assert f"    bind {bind}\n" in confined
    assert "    bind 127.0.0.1:9000 proto h2\n" in confined


def test_confining_twice_changes_nothing_more() -> None:
    once = confine(CONFIG, LOOPBACK)

    assert confine(once, LOOPBACK) == once


@pytest.mark.parametrize("bind", ["/run/api.sock", "*:8000,*:8001", "fd@7", "*:8000-8010"])
def test_a_bind_of_unknown_form_is_refused(bind: str) -> None:
    with pytest.raises(Unconfinable):
        confine(f"frontend other\n    bind {bind}\n", LOOPBACK)


@needs_haproxy
def test_wrapper_confines_the_file_and_becomes_haproxy(tmp_path: Path) -> None:
    plan = EdgePlan(Edge.HAPROXY, LOOPBACK, 8000, tmp_path)
    wrapper = plan.environment()["RAY_SERVE_HAPROXY_BINARY_PATH"]
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG.replace("/run/", f"{tmp_path}/"))

    # `-c` checks the configuration and exits.
    done = subprocess.run([wrapper, "-c", "-f", str(config)], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "8404" not in config.read_text()
    assert config.stat().st_mode & 0o777 == 0o600
    assert json.loads(plan.pids_file.read_text())["started"] > 0


@needs_haproxy
def test_wrapper_refuses_to_start_what_it_cannot_confine(tmp_path: Path) -> None:
    plan = EdgePlan(Edge.HAPROXY, LOOPBACK, 8000, tmp_path)
    wrapper = plan.environment()["RAY_SERVE_HAPROXY_BINARY_PATH"]
    config = tmp_path / "haproxy.cfg"
    config.write_text("listen strange\n    bind quic4@:443\n")

    done = subprocess.run([wrapper, "-f", str(config)], capture_output=True, text=True)

    assert done.returncode == 78
    assert "quic4@:443" in done.stderr


@needs_haproxy
def test_two_runs_share_no_path_and_no_port(tmp_path: Path) -> None:
    one = EdgePlan(Edge.HAPROXY, LOOPBACK, 8000, tmp_path / "one").environment()
    with socket.socket() as replica:
        replica.bind((LOOPBACK, int(one["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"])))
        two = EdgePlan(Edge.HAPROXY, LOOPBACK, 8001, tmp_path / "two").environment()

    own = [name for name in one if name.endswith(("_PORT", "_PATH", "_FILE", "_LOC", "_BASE"))]

    assert len(own) == 14
    assert [name for name in own if one[name] == two[name]] == []


def test_replica_ports_step_aside_for_whoever_holds_them(tmp_path: Path) -> None:
    plan = EdgePlan(Edge.HAPROXY, LOOPBACK, 8000, tmp_path)
    first, _ = plan._replica_ports()
    with socket.socket() as holder:
        holder.bind((LOOPBACK, first))
        holder.listen()

        second, _ = plan._replica_ports()

    assert second != first


def test_plain_proxy_listens_where_the_api_does(tmp_path: Path) -> None:
    plan = EdgePlan(Edge.PROXY, "0.0.0.0", 8000, tmp_path / "edge")

    environment = plan.environment()

    assert plan.serve_host == "0.0.0.0"
    assert environment["RAY_SERVE_ENABLE_DIRECT_INGRESS"] == "0"
    assert not plan.folder.exists()


def test_haproxy_keeps_replicas_on_loopback_when_the_api_is_open(tmp_path: Path) -> None:
    assert EdgePlan(Edge.HAPROXY, "0.0.0.0", 8000, tmp_path).serve_host == LOOPBACK


def test_unknown_edge_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="nginx"):
        Edge.choose("nginx")


def test_fastest_edge_is_chosen_unless_told() -> None:
    fastest = Edge.HAPROXY if haproxy_binary() else Edge.PROXY

    assert Edge.choose(None) is fastest
    assert Edge.choose("proxy") is Edge.PROXY


def test_a_held_port_is_not_free() -> None:
    with socket.socket() as holder:
        holder.bind((LOOPBACK, 0))
        holder.listen()

        assert not port_is_free(LOOPBACK, holder.getsockname()[1])


def test_wrapper_needs_no_package_of_ours(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "service" / "haproxy_wrapper.py"

    imported = [
        line.split()[1] for line in source.read_text().splitlines() if line.startswith("import ")
    ]

    assert set(imported) <= {"ctypes", "json", "os", "re", "signal", "sys"}
    assert os.access(source, os.R_OK)
