"""Imported early by the process that `support.warm.forking` forks from: what it imports afterwards takes half of the time.

Garbage is not looked for there, since nothing that is imported is any; each fork looks for its own.
"""

from __future__ import annotations

import gc
import os

gc.disable()
os.register_at_fork(before=gc.freeze, after_in_child=gc.enable)
