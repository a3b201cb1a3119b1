# SPDX-License-Identifier: Apache-2.0
"""A project's home: its identity, ownership of folders, DuckDB sessions that spill there, held-out users, suppressed ids."""
