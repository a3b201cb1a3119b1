# SPDX-License-Identifier: Apache-2.0
"""Former place of the offline store, which feature_store.yaml files of earlier versions name. Use `scalr_prod.features`."""
