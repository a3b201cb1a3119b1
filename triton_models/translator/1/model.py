"""Triton Python backend of the translator: converts request tensors, and calls the package's module.

The version's folder contains this file, translator.safetensors and manifest.json.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from scalr_prod.serving.client.keepalive import Heartbeat
from scalr_prod.serving.client.wire import INPUTS, OUTPUTS, ModelIdentity, answer_requests, digest_to_int64
from scalr_prod.translator.module import TranslatorModule


class TritonPythonModel:
    """One model instance of one version."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version in this folder."""
        if int(np.__version__.split(".")[0]) > 1:
            raise pb_utils.TritonModelException(
                f"numpy {np.__version__} is installed; this server needs numpy < 2, or its outputs arrive empty"
            )
        folder = Path(args["model_repository"]) / args["model_version"]
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["version"] != int(args["model_version"]):
            raise pb_utils.TritonModelException(f"{folder} holds version {manifest['version']}")
        # Instances share the threads of the server.
        instances = sum(group["count"] for group in json.loads(args["model_config"])["instance_group"])
        threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // instances)
        torch.set_num_threads(1)
        on_gpu = args["model_instance_kind"] == "GPU" and torch.cuda.is_available()
        if args["model_instance_kind"] == "GPU" and not on_gpu:
            pb_utils.Logger.log_warn(f"torch {torch.__version__} sees no GPU here: the translator runs on the CPU")
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        # Trusted: whoever can change the bundled estimators in this folder can also change this file. Both were checked when copied here.
        self.module = TranslatorModule.load(folder, device=device, threads=threads, trusted=True)
        # Lets the watchdog see that a long batch makes progress.
        self.module.on_progress = Heartbeat(args["model_name"], manifest["version"], args["model_instance_name"]).beat
        parameters = json.loads(args["model_config"]).get("parameters", {})
        self.module.warm_up(shortlists=parameters.get("shortlists", {}).get("string_value") == "yes")
        self.identity = ModelIdentity(manifest["version"], digest_to_int64(manifest["sha256"]), manifest["n_target"])

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer all waiting requests, in as few forward passes as possible."""
        answers = answer_requests(self.module, self.identity, [_read(request) for request in requests])
        return [_reply(request, found) for request, found in zip(requests, answers, strict=True)]


def _read(request: pb_utils.InferenceRequest) -> dict[str, np.ndarray]:
    tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in INPUTS}
    return {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}


def _reply(request: pb_utils.InferenceRequest, found: dict[str, np.ndarray] | ValueError) -> pb_utils.InferenceResponse:
    if isinstance(found, ValueError):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(found), pb_utils.TritonError.INVALID_ARG))
    requested = request.requested_output_names()
    tensors = [
        pb_utils.Tensor(name, np.ascontiguousarray(array, dtype=OUTPUTS[name]))
        for name, array in found.items()
        if not requested or name in requested
    ]
    return pb_utils.InferenceResponse(output_tensors=tensors)
