"""Another user of the machine, where the tests may become one; prints what it got at.

Each line of stdin is a way and a target: a port, by Dask's client in plain text, over TLS without a certificate or with one of its own, and
by HTTP; a file, to be read; a socket, to be connected to.
"""

import http.client
import os
import socket
import ssl
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import dask
from distributed import Client, Security

if os.geteuid() == 0:  # the libraries are imported: nobody may be unable to read them
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
dask.config.set({"distributed.comm.timeouts.connect": "3s", "distributed.logging.distributed": "critical"})


class Anonymous(Security):
    def get_connection_args(self, role):  # noqa: ARG002 - of the base class
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return {"ssl_context": context, "require_encryption": True, "extra_conn_args": {}}


def run(address, security):
    with Client(address, security=security, timeout=4, set_as_default=False) as client:
        return client.run_on_scheduler(os.getpid)


def connect(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.connect(path)
    return True


def get(port):
    asked = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    asked.request("GET", "/json/counts.json")
    answer = asked.getresponse()
    return answer.read() if answer.status == 200 else b""


WAYS = {
    "plain": lambda port: run(f"tcp://127.0.0.1:{port}", None),
    "anonymous": lambda port: run(f"tls://127.0.0.1:{port}", Anonymous()),
    "forged": lambda port: run(f"tls://127.0.0.1:{port}", Security.temporary()),
    "http": get,
    "read": lambda path: Path(path).read_bytes(),
    "connect": connect,
}


def attack(way, target):
    with suppress(Exception):
        if WAYS[way](target):
            sys.stdout.write(f"{way} {target}\n")
            sys.stdout.flush()


threads = []
for line in sys.stdin:
    threads.append(threading.Thread(target=attack, args=line.strip().split(" ", 1), daemon=True))
    threads[-1].start()
until = time.monotonic() + 10
for thread in threads:
    thread.join(max(0, until - time.monotonic()))
os._exit(0)  # a client that spoke to something else may never close
