# The package, for the scheduler and for Dask workers: commands, DAGs, and the dask programs.
# Build from the checkout:  docker build -f deploy/scalr.Dockerfile -t scalr .
FROM python:3.12-slim

COPY pyproject.toml README.md LICENSE /build/package/
COPY scalr_prod /build/package/scalr_prod
COPY packages/feast-delta /build/feast-delta
COPY feature_repo /build/package/feature_repo
COPY triton_models /build/package/triton_models
COPY airflow_dags /build/package/airflow_dags
COPY constraints /build/package/constraints
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir --constraint /build/package/constraints/package.txt /build/feast-delta \
       "/build/package[airflow,downstream,postgres,redis,report,s3]" \
    && mkdir -p /srv/scalr/metrics /srv/scalr/home /opt/airflow && cp -r /build/package/airflow_dags /opt/dags \
    && useradd --create-home scalr && chown -R scalr /srv/scalr /opt/airflow

USER scalr
WORKDIR /srv/scalr
ENV AIRFLOW_HOME=/opt/airflow AIRFLOW__CORE__DAGS_FOLDER=/opt/dags AIRFLOW__CORE__LOAD_EXAMPLES=False
EXPOSE 8080 8786
CMD ["scalr", "doctor", "--config", "/srv/scalr/scalr.toml"]
