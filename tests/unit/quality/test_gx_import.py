"""Great Expectations is imported without scipy's statistics and altair, and nothing else notices."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Imports the library in a process of its own; that it works with what replaces its imports, every audit shows.
pytestmark = pytest.mark.long

PROGRAM = """
import sys
import scalr_prod.quality
assert "great_expectations" not in sys.modules, "nothing is imported before it is needed"
import great_expectations
from great_expectations.expectations.core import expect_column_kl_divergence_to_be_less_than as divergence
print(sorted({"scipy.stats._stats_py", "altair.vegalite"} & set(sys.modules)))
print(divergence.stats.entropy([0.5, 0.5], [0.5, 0.5]), divergence.alt.Chart.__name__)
from scipy import stats
import scipy.stats.qmc
print(stats.norm.cdf(0), stats is sys.modules["scipy.stats"])
"""


def test_what_distributions_need_is_imported_when_it_is_used():
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == ["[]", "0.0 Chart", "0.5 True"]
