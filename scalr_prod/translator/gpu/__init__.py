# SPDX-License-Identifier: Apache-2.0
"""The translator's draws on a GPU: one pass over blocks of items, in kernels of the OpenAI Triton language.

Only torch, numpy and ``triton``, which torch's CUDA build brings along, are imported. Triton's interpreter runs the same kernels on a CPU.
"""
