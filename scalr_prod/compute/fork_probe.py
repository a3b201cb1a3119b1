# SPDX-License-Identifier: Apache-2.0
"""Signal set-up for the process from which local workers are forked: Ctrl-C goes to the driver, which stops them.

A terminal sends SIGINT to the whole process group. A signal ignored here is ignored in every forked process.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
