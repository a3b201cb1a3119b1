# The translator in NVIDIA's own Triton container: the same model repository, loaded as it lies there.
# Build from the checkout:  docker build -f deploy/triton.Dockerfile -t scalr-triton .
# 24.12 carries Triton 2.53 and Python 3.12 (images before 24.11 have 3.10, too old for the package); numpy < 2 is needed there too.
ARG TRITON=nvcr.io/nvidia/tritonserver:24.12-py3
FROM ${TRITON}

ENV PIP_BREAK_SYSTEM_PACKAGES=1

COPY constraints/serving.txt /build/constraints/
RUN pip install --no-cache-dir --constraint /build/constraints/serving.txt numba "numpy<2" safetensors torch

# The package without its dependencies: what runs here imports torch, numpy, numba and safetensors alone.
COPY pyproject.toml README.md LICENSE /build/package/
COPY scalr_prod /build/package/scalr_prod
COPY feature_repo /build/package/feature_repo
COPY triton_models /build/package/triton_models
COPY airflow_dags /build/package/airflow_dags
COPY constraints /build/package/constraints
RUN pip install --no-cache-dir --no-deps /build/package \
    && python3 -c "import numpy, scalr_prod.serving.client.wire, scalr_prod.translator.module; assert numpy.__version__ < '2'"

USER triton-server
EXPOSE 8001 8002
# Explicit control: `scalr translator promote` says which versions are loaded. Those named in each project's config.pbtxt are loaded at the start.
# Whoever may load a model may run code here: control asks for the secret. HTTP answers health checks from inside of the container alone.
CMD ["sh", "-c", "exec tritonserver --model-repository=/models --model-control-mode=explicit '--load-model=*' \
     --exit-on-error=false --disable-auto-complete-config --http-address=127.0.0.1 --metrics-address=0.0.0.0 \
     --http-restricted-api=metadata,inference,model-config,model-repository,shared-memory,statistics,trace,logging:scalr=${SCALR_TRITON_SECRET:?} \
     --grpc-restricted-protocol=model-repository,shared-memory,statistics,trace,logging:scalr=${SCALR_TRITON_SECRET:?}"]
