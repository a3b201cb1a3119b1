# SPDX-License-Identifier: Apache-2.0
"""Imported first in the process that local workers are forked from: Ctrl-C is the driver's, which ends them in order.

A terminal sends SIGINT to the whole process group. What is ignored here is ignored in every process that is forked from it.
"""

from __future__ import annotations

import signal

__all__: list[str] = []

signal.signal(signal.SIGINT, signal.SIG_IGN)
