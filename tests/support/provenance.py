# SPDX-License-Identifier: Apache-2.0
"""Published events beside their source events, as an operator reads them."""

import pandas as pd

from scalr_prod.lake import Lake
from scalr_prod.schemas import SOURCE_COLUMNS, Table


def published_with_sources(lake: Lake) -> pd.DataFrame:
    """The feature view's rows with the source columns that the provenance table holds for them."""
    events = lake.read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas()
    provenance = lake.read(Table.SYNTHETIC_EVENT_PROVENANCE).to_pandas()
    keys = ["run_id", "event_id"]
    return events.merge(provenance[[*keys, *SOURCE_COLUMNS]], on=keys, validate="one_to_one")
