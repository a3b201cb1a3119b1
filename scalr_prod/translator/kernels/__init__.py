# SPDX-License-Identifier: Apache-2.0
"""CPU kernels compiled by numba, for sampling and for training.

Sampling makes one pass over blocks of items, and gives the same draws as the plain torch code (`sampling`, `mixture`). That code is the
reference. It also runs without numba, on other devices, and for estimators whose score is not a dot product. See docs/adr/0010-sampling.md.
"""
