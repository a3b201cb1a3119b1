"""Each stage measured beside its limit: `python -m benchmarks [NAME …]`."""
