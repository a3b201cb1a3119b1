# SPDX-License-Identifier: Apache-2.0
"""GPU kernels of the translator: sampling in one pass over blocks of items, written in the OpenAI Triton language.

Only torch, numpy and ``triton``, which comes with torch's CUDA build, are imported. Triton's interpreter runs the same kernels on a CPU.
"""
