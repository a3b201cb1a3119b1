# SPDX-License-Identifier: Apache-2.0
"""Integrations with other systems. They register hooks; nothing in the flow imports them."""
