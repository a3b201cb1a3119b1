# SPDX-License-Identifier: Apache-2.0
"""Configuration: settings, their sections, environment variables, and the policy that an evaluation wrote."""
