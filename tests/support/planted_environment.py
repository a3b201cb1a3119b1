"""What is planted into the environment that the server of `attacked` (tests/integration/conftest.py) is started in."""

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "PLANTED-lake",
    "SCALR_LEDGER__URL": "sqlite:///PLANTED-ledger.db?password=PLANTED",
    "PGPASSWORD": "PLANTED-database",
    "GOOGLE_APPLICATION_CREDENTIALS": "/PLANTED/key.json",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://airflow:PLANTED@127.0.0.1/airflow",
    "A_NAME_NOBODY_THOUGHT_OF": "PLANTED-other",
}
