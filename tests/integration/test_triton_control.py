"""Attacks on a local Triton: whoever reaches it must not control it, and must not learn secrets from it."""

from __future__ import annotations

import os
import stat
import subprocess
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from support.planted_environment import PLANTED
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from scalr_prod.serving import promote, rollback, served_version, start_triton, stop_triton, triton_status
from scalr_prod.serving.client import open_scorer
from scalr_prod.serving.local_server.server_state import read_record
from scalr_prod.translator.data.contexts import Contexts

#: Attacks a server of its own; who may read the secret's file is in unit/core/test_file_modes.py.
pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.long]

NOBODY = 65534
#: What an attacker sends: without a secret, with a wrong one, with one under another name.
HEADERS = {
    "no secret": (),
    "a wrong secret": (("triton-grpc-protocol-scalr", "0" * 64),),
    "an empty secret": (("triton-grpc-protocol-scalr", ""),),
    "another header": (("triton-grpc-protocol-admin", "scalr"),),
}


@pytest.fixture
def served(attacked):
    return attacked


@pytest.fixture
def stub(served):
    with grpc.insecure_channel(read_record(served).url) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def program(marker: Path) -> bytes:
    """A model that runs code when it is loaded."""
    return f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass TritonPythonModel:\n    pass\n".encode()


def attacks(marker: Path):
    """Every request that would change the server, or tell more about it than a worker needs."""
    load = pb.RepositoryModelLoadRequest(model_name="translator")
    override = pb.RepositoryModelLoadRequest(model_name="mine")
    override.parameters["config"].string_param = '{"backend": "python"}'
    override.parameters["file:1/model.py"].bytes_param = program(marker)
    replaced = pb.RepositoryModelLoadRequest(model_name="translator")
    replaced.parameters["config"].string_param = '{"backend": "python"}'
    replaced.parameters["file:1/model.py"].bytes_param = program(marker)
    log = pb.LogSettingsRequest()
    log.settings["log_verbose_level"].uint32_param = 3
    trace = pb.TraceSettingRequest()
    trace.settings["trace_level"].value.append("TENSORS")
    return {
        "load": ("RepositoryModelLoad", load),
        "load with files": ("RepositoryModelLoad", override),
        "replace by files": ("RepositoryModelLoad", replaced),
        "unload": ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="translator")),
        "index": ("RepositoryIndex", pb.RepositoryIndexRequest()),
        "shared memory": (
            "SystemSharedMemoryRegister",
            pb.SystemSharedMemoryRegisterRequest(name="mine", key="/mine", byte_size=64),
        ),
        "shared memory status": ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()),
        "shared memory off": ("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest()),
        "GPU memory": (
            "CudaSharedMemoryRegister",
            pb.CudaSharedMemoryRegisterRequest(name="mine", raw_handle=b"0" * 64, byte_size=64),
        ),
        "GPU memory status": ("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest()),
        "statistics": ("ModelStatistics", pb.ModelStatisticsRequest()),
        "log settings": ("LogSettings", log),
        "trace settings": ("TraceSetting", trace),
    }


@pytest.mark.parametrize("header", HEADERS)
def test_nobody_controls_the_server_without_its_secret(served, stub, tmp_path, header):
    marker = tmp_path / "ran"
    for name, (method, request) in attacks(marker).items():
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub, method)(request, timeout=20, metadata=HEADERS[header])
        assert "restricted" in caught.value.details(), name
    assert not marker.exists()
    assert triton_status(served).versions == [1, 2]
    with open_scorer(served, 2) as scorer:
        assert len(scorer.sample(one_context(), 2)) == 1


def test_planted_secrets_reach_no_process_of_the_server(served):
    server = psutil.Process(read_record(served).pid)
    family = [server, *server.children(recursive=True)]
    assert len(family) >= 3, "the server, and a process for each version"
    for process in family:
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"OMP_NUM_THREADS" in environment
        assert b"PLANTED" not in environment
        for name in PLANTED:
            assert name.encode() not in environment


def test_only_its_user_reaches_it(served):
    """No port but that of the metrics, and a socket in a folder of its user's: the secret in the command line opens nothing."""
    record = read_record(served)
    listening = {c.laddr for c in psutil.Process(record.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert [f"http://{ip}:{port}/metrics" for ip, port in listening] == [record.metrics_url]
    path = Path(record.url.removeprefix("unix:"))
    assert path.is_socket()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    regions = list(Path("/dev/shm").glob(f"{record.name}*"))  # noqa: S108 - where the server keeps it
    assert regions
    assert not any(stat.S_IMODE(region.stat().st_mode) & 0o077 for region in regions)
    if os.getuid() == 0:
        for mine in (path, *regions):
            look = ["/bin/sh", "-c", 'test -r "$0"', str(mine)]
            # The server removes the region of a process that only looked at the model's configuration.
            assert subprocess.run(look, check=False).returncode == 0 or not mine.exists()
            assert subprocess.run(look, check=False, user=NOBODY, group=NOBODY, extra_groups=[]).returncode == 1, mine


def test_the_secret_is_new_at_each_start_and_for_its_user_alone(served):
    secret = served.home / "triton-server" / "secret"
    first = secret.read_text()
    assert len(first) >= 32
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert first not in Path(read_record(served).log).read_text()
    assert first not in (served.home / "triton" / "server.json").read_text()
    assert stop_triton(served)
    assert not secret.exists()
    assert not Path(triton_status(served).url or "unix:/nowhere").exists()
    assert start_triton(served).versions == [1, 2]
    assert secret.read_text() != first


def test_who_has_the_secret_promotes_and_rolls_back(served):
    assert served_version(served) == 2
    assert rollback(served).version == 1
    assert promote(served, 2).loaded == [1, 2]
    status = triton_status(served)
    assert (status.running, status.versions) == (True, [1, 2])


def test_metrics_can_still_be_read(served):
    with open_scorer(served, 2) as scorer:
        scorer.sample(one_context(), 2)
    with urllib.request.urlopen(triton_status(served).metrics_url, timeout=10) as page:  # noqa: S310 - of our own server
        assert b'nv_inference_request_success{model="translator"' in page.read()


def one_context() -> Contexts:
    return Contexts(
        history_items=np.ones((1, 4), np.int32),
        history_ages=np.zeros((1, 4), np.float32),
        history_end=np.full(1, 1_719_792_000_000_000),
        event_time=np.full(1, 1_719_792_000_000_000),
        fold=np.full(1, -1, np.int32),
        noise_key=np.arange(1),
        exclude=np.full((1, 1), -1, np.int32),
    )
