# SPDX-License-Identifier: Apache-2.0
"""Installation of the serving environment, which has numpy < 2 and Triton."""
