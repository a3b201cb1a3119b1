# SPDX-License-Identifier: Apache-2.0
"""Utilities without knowledge of the project: atomic files, timestamps, hashing, memory, logging, progress."""
