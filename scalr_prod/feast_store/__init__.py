# SPDX-License-Identifier: Apache-2.0
"""Earlier place of the offline store, which feature_store.yaml files of earlier versions name. Use `scalr_prod.features`."""
