-- Beside the ledger's own database, at the first start.
CREATE DATABASE feast;
CREATE DATABASE airflow;
