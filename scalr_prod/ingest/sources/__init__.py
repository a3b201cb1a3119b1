# SPDX-License-Identifier: Apache-2.0
"""Readers of external logs: files, lakehouse tables, SQL queries, and readers of other packages."""
