# SPDX-License-Identifier: Apache-2.0
"""Compiled CPU kernels of the translator: sampling in one pass over blocks of items, and training, compiled by numba.

Sampling gives the same draws as the plain torch code (`race`, `mixture`). That code is the reference, and the fallback without numba, on
other devices, and for estimators that are no dot product. See docs/adr/0010-sampling.md.
"""
