# SPDX-License-Identifier: Apache-2.0
"""Local Triton server: launch, watch, stop."""
