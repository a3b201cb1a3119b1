# SPDX-License-Identifier: Apache-2.0
"""Training data of the translator: the event log, histories, contexts and labels as arrays."""
