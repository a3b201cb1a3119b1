"""Nobody else runs code on the local cluster, nor reads from it; a scheduler of one's own asks for certificates."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import SchedulerUnreachable, SettingsError
from scalr_prod.generation.cluster import open_cluster

#: Knocks at every port, as another user where the tests may become one: Dask's client in plain text, over TLS without a certificate and
#: with one of its own, and HTTP.
_ATTACK = """
import http.client, os, ssl, sys, threading, time
import dask
from distributed import Client, Security

if os.geteuid() == 0:  # the libraries are imported: nobody may be unable to read them
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
dask.config.set({"distributed.comm.timeouts.connect": "3s", "distributed.logging.distributed": "critical"})

class Anonymous(Security):
    def get_connection_args(self, role):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return {"ssl_context": context, "require_encryption": True, "extra_conn_args": {}}

def run(address, security):
    with Client(address, security=security, timeout=4, set_as_default=False) as client:
        return client.run_on_scheduler(os.getpid)

def read(port):
    asked = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    asked.request("GET", "/json/counts.json")
    answer = asked.getresponse()
    return answer.read() if answer.status == 200 else b""

WAYS = {
    "plain": lambda port: run(f"tcp://127.0.0.1:{port}", None),
    "anonymous": lambda port: run(f"tls://127.0.0.1:{port}", Anonymous()),
    "forged": lambda port: run(f"tls://127.0.0.1:{port}", Security.temporary()),
    "http": read,
}

def attack(port, way):
    try:
        if WAYS[way](int(port)):
            print(port, way, flush=True)
    except Exception:
        pass

ways = [asked.split("/") for asked in sys.argv[1:]]
threads = [threading.Thread(target=attack, args=asked, daemon=True) for asked in ways]
for thread in threads:
    thread.start()
until = time.monotonic() + 10
for thread in threads:
    thread.join(max(0, until - time.monotonic()))
os._exit(0)  # a client that spoke to something else may never close
"""


def listening() -> list[int]:
    """The ports that this process and its children listen on."""
    me = psutil.Process()
    found = [one.net_connections("tcp") for one in (me, *me.children(recursive=True))]
    return sorted({one.laddr.port for connections in found for one in connections if one.status == psutil.CONN_LISTEN})


@pytest.mark.slow
def test_nobody_else_gets_into_the_local_cluster(project):
    """The same attack gets into a scheduler without TLS."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=0, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as unprotected:
        scheduler, before = unprotected.scheduler, set(listening())
        with open_cluster(load_settings(project, compute={"dask": "local", "workers": 1}), tasks=1) as cluster:
            assert list(cluster.map(lambda: 7, [()])) == [7]
            ports = set(listening()) - before
            assert len(ports) >= 3, "scheduler, nanny, worker"
            easy = [f"{scheduler.port}/plain", f"{scheduler.http_server.port}/http"]
            ways = [f"{port}/{way}" for port in ports for way in ("plain", "anonymous", "forged", "http")]
            command = [sys.executable, "-c", _ATTACK, *easy, *ways]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd="/")
            assert list(cluster.map(lambda: 8, [()])) == [8]
    assert sorted(done.stdout.splitlines()) == sorted(way.replace("/", " ") for way in easy)


NAMED = {"ca_certificate": "ca.pem", "client_certificate": "client.pem", "client_key": "client.key"}


def test_a_scheduler_with_tls_is_reached_with_the_certificates_of_the_settings(project):
    from distributed import LocalCluster, Security

    security = Security.temporary()
    for name, text in zip(
        NAMED.values(), (security.tls_ca_file, security.tls_client_cert, security.tls_client_key), strict=True
    ):
        (project.parent / name).write_text(text)
    with LocalCluster(
        n_workers=1, processes=False, host="127.0.0.1", protocol="tls", security=security, dashboard_address=None
    ) as server:
        address = server.scheduler_address

        def works(**compute) -> bool:
            settings = load_settings(project, compute={"connect_timeout_s": 3, "dask": address} | compute)
            with open_cluster(settings, tasks=1) as cluster:
                return list(cluster.map(lambda: 7, [()])) == [7]

        assert works(**NAMED)
        with pytest.raises(SettingsError, match="no certificates are named"):
            works()
        with pytest.raises(SchedulerUnreachable):
            works(dask=address.replace("tls", "tcp"))


def test_a_certificate_that_cannot_be_read_is_told(project):
    compute = {"dask": "tls://127.0.0.1:9"} | NAMED
    with (
        pytest.raises(SettingsError, match="cannot be read") as caught,
        open_cluster(load_settings(project, compute=compute), tasks=1),
    ):
        pass
    assert "[compute]" in caught.value.where
