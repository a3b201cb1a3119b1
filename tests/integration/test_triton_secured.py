"""A server that is not on loopback: TLS both ways, and its control protocols kept for those who have the header."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time

import psutil
import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ScoringError, ServerUnreachable, ServingError
from scalr_prod.serving import ensure_serving, promote, start_triton, stop_triton, triton_status
from scalr_prod.serving.client import open_scorer
from scalr_prod.serving.client.security import Security
from scalr_prod.serving.client.transport import Channel, RequestFailure
from scalr_prod.serving.install.environment import find_environment

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.nightly]

SECRET = "correct-horse-battery"  # noqa: S105 - made up


def certificate(folder, name: str, authority: str | None = None) -> None:
    """A key and a certificate in PEM, its own authority or another's."""
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]
    signed = [] if authority is None else ["-CA", folder / f"{authority}.pem", "-CAkey", folder / f"{authority}.key"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files, *signed],
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def secured(trained_home, tmp_path_factory):
    """The settings of a home whose server was started as its administrator would: with certificates and a secret."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates, and is not installed")
    folder = tmp_path_factory.mktemp("secured") / "logs"
    shutil.copytree(trained_home.parent, folder)
    certificate(folder, "authority")
    certificate(folder, "server", "authority")
    certificate(folder, "client", "authority")
    settings = load_settings(folder / "scalr.toml", serving={"threads": 1})
    promote(settings, 1)
    started = start_triton(settings)
    local = ("--grpc-address", "--grpc-port", "--grpc-restricted-protocol")
    command = [part for part in psutil.Process(started.pid).cmdline() if not part.startswith(local)]
    stop_triton(settings)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command += ["--grpc-address=127.0.0.1", f"--grpc-port={port}"]
    command += ["--grpc-use-ssl=true", f"--grpc-server-cert={folder}/server.pem", f"--grpc-server-key={folder}/server.key"]
    command += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={folder}/authority.pem"]
    command += [
        f"--grpc-restricted-protocol=model-repository,model-config,shared-memory,statistics,trace,logging:scalr={SECRET}"
    ]
    environment = find_environment(settings).server_variables(1)
    with (folder / "secured.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    serving = {
        "url": f"localhost:{port}",
        "tls": True,
        "ca_certificate": "authority.pem",
        "client_certificate": "client.pem",
        "client_key": "client.key",
        "header": f"scalr={SECRET}",
        "deadline_s": 20,
    }

    def settings_with(**changes):
        return load_settings(folder / "scalr.toml", serving=serving | changes)

    deadline = time.monotonic() + 120
    while not triton_status(settings_with()).running:
        assert server.poll() is None, (folder / "secured.log").read_text()[-3000:]
        assert time.monotonic() < deadline, triton_status(settings_with()).detail
        time.sleep(0.2)
    yield settings_with
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def test_with_certificates_and_secret_all_goes_on_as_ever(secured):
    settings = secured()
    with ensure_serving(settings, 1), open_scorer(settings, 1) as scorer:
        assert scorer.version == 1
    promote(settings, 2)
    assert triton_status(settings).versions == [1, 2]


def test_without_the_secret_events_can_be_asked_for_but_nothing_loaded(secured):
    settings = secured(header=None)
    with pytest.raises(ScoringError, match="SCALR_SERVING__HEADER") as caught:
        promote(settings, 2)
    assert SECRET not in str(caught.value)
    with Channel(settings.serving.url, Security.from_settings(settings)) as channel:
        assert channel.server_name(5)
        with pytest.raises(RequestFailure, match="protocol is restricted"):
            channel.load_model("translator", 5)
    wrong = secured(header="scalr=wrong")
    with pytest.raises((ScoringError, ServingError)):
        promote(wrong, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"tls": False, "ca_certificate": None, "client_certificate": None, "client_key": None},
        {"ca_certificate": "client.pem"},
        {"client_certificate": None, "client_key": None},
    ],
    ids=["a plain connection", "an unknown authority", "no certificate of ours"],
)
def test_nobody_else_gets_in(secured, changes):
    settings = secured(deadline_s=3, **changes)
    with pytest.raises(ServerUnreachable), open_scorer(settings, 1):
        pass
    assert not triton_status(settings).running


def test_a_certificate_that_is_not_there_is_named(secured):
    settings = secured(ca_certificate="nowhere.pem")
    with pytest.raises(Exception, match=r"\[serving\] ca_certificate = 'nowhere.pem'"):
        open_scorer(settings, 1)
