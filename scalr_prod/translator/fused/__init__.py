# SPDX-License-Identifier: Apache-2.0
"""The translator's fused execution on a CPU: one pass over blocks of items, compiled by numba.

It gives the draws of the plain torch code (`race`, `mixture`), which stays the reference and takes over where numba is missing, on a GPU,
and for estimators that are no product. See docs/adr/0046-one-pass-in-blocks.md.
"""
