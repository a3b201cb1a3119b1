# SPDX-License-Identifier: Apache-2.0
"""Applications: the command line, onboarding and diagnostics. Everything that talks to a person."""
