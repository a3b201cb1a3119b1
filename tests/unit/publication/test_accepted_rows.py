"""Accepted rows on their way to the feature view."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scalr_prod.publication.accepted_rows import stream_accepted_rows


def test_accepted_rows_come_in_order_and_are_not_all_held_at_once(tmp_path):
    rng, groups, rows = np.random.default_rng(0), 120, 20_000
    schema = pa.schema([("event_id", pa.string()), ("user_id", pa.int64())])
    path = tmp_path / "part-00000.parquet"
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in range(groups):
            text = rng.bytes(16 * rows).hex()
            ids = [text[32 * row : 32 * row + 32] for row in range(rows)]
            writer.write_table(pa.table([ids, np.full(rows, group)], schema=schema))
    whole = pq.read_table(path)
    size, digests = whole.nbytes, whole.column("event_id").to_pylist()
    del whole
    held, before, met = 0, pa.total_allocated_bytes(), []
    for batch in stream_accepted_rows([path], schema, None):
        held = max(held, pa.total_allocated_bytes() - before)
        met += batch.column("event_id").to_pylist()
    assert met == digests
    assert held < size / 8
