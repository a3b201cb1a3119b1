"""Whatever is thrown at the edges, the answer is a result or a clear error, and a refused log leaves the lake as it was."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from support.examples import examples

from scalr_prod.config.settings import Settings, load_settings
from scalr_prod.errors import ScalrError
from scalr_prod.ingest import ingest
from scalr_prod.schemas import Table
from scalr_prod.serving.client.wire import INPUTS, ModelIdentity, answer_requests
from scalr_prod.translator.data.contexts import Contexts, Samples
from scalr_prod.translator.requests import RequestBounds

pytestmark = pytest.mark.slow

CATALOGUE = 50
DOMAINS = '[domains.source]\nname = "a"\nevents = "s.csv"\n[domains.target]\nname = "b"\nevents = "{}"\n'
HEAD = "user_id,item_id,timestamp\n"
FEW, FEWER = (
    settings(max_examples=examples(few), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    for few in (20, 10)
)


def clear(error: ScalrError) -> None:
    """It says where, and what to do, in a few lines."""
    assert error.where
    assert error.next_step
    assert len(str(error)) < 5_000


# Settings -----------------------------------------------------------------------------------------------------------

SECTIONS = sorted(name for name in Settings.model_fields if name != "base")
KEYS = sorted({key for name in SECTIONS for key in getattr(Settings.model_fields[name].annotation, "model_fields", {})})
SCALARS = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.text(max_size=20),
    st.none(),
    st.sampled_from(["local", "triton", "1", "../x"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@FEW
@given(st.dictionaries(st.sampled_from(SECTIONS), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3), max_size=3))
def test_sections(tmp_path, overrides):
    path = tmp_path / "scalr.toml"
    path.write_text(DOMAINS.format("t.csv"))
    try:
        found = load_settings(path, **overrides)
    except ScalrError as error:
        clear(error)
    else:
        assert found.generation.partitions >= 1


@FEW
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_files_of_settings(tmp_path, content):
    path = tmp_path / "scalr.toml"
    path.write_bytes(content)
    with pytest.raises(ScalrError) as caught:  # no domains, whatever else it says
        load_settings(path)
    assert caught.value.next_step


# Logs ---------------------------------------------------------------------------------------------------------------

TIMES = st.sampled_from(
    ["2024-05-01T12:00:00Z", "2024-05-01T12:00:00+02:00", "2024-05-01", "1714564800", "", "soon", "-1", "9" * 30]
)
IDS = st.one_of(st.sampled_from(["u1", "1", "007", "", " ", "9223372036854775808", "x" * 2000]), st.text(max_size=8))
CELLS = st.one_of(SCALARS, st.lists(st.integers(), max_size=2), TIMES, IDS)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A project with one good event in each log; a log that is taken may add to it, a refused one may not."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("s.csv", "t.csv"):
        (folder / name).write_text(HEAD + "u1,i1,2024-05-01T12:00:00Z\n")
    (folder / "scalr.toml").write_text(DOMAINS.format("t.csv"))
    ingest(load_settings(folder / "scalr.toml"))
    return folder


def commits(found: Settings) -> set[str]:
    """Of all tables, as files: to open a dozen tables takes longer than to refuse a log."""
    return {str(path) for path in (found.home / "lake").glob("**/_delta_log/*.json")}


def offered(folder, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    (folder / "bad.toml").write_text(DOMAINS.format(name))
    found = load_settings(folder / "bad.toml")
    before = commits(found)
    assert len(before) >= len(Table)
    try:
        report = ingest(found, domain="target")
    except ScalrError as error:
        clear(error)
        assert commits(found) == before
    else:
        assert report.to_json()
    assert not list((found.home / "staging").iterdir())


@FEW
@given(st.lists(st.tuples(IDS, IDS, TIMES), max_size=4), st.binary(max_size=20))
def test_csv(home, rows, noise):
    lines = [f"{user},{item},{when}" for user, item, when in rows]
    offered(home, "t1.csv", (HEAD + "\n".join(lines) + "\n").encode("utf-8", "surrogatepass") + noise)


@FEW
@given(st.lists(st.fixed_dictionaries({}, optional={"user_id": CELLS, "item_id": CELLS, "timestamp": CELLS}), max_size=4))
def test_json_lines(home, rows):
    offered(home, "t2.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


@FEWER  # each is read as six formats
@given(st.binary(max_size=300))
def test_noise(home, content):
    for name in ("t3.csv", "t3.jsonl", "t3.parquet", "t3.csv.gz", "t3.csv.xz", "t3.csv.zst"):
        offered(home, name, content)


@FEW
@given(st.data())
def test_parquet_columns_of_any_type(home, data):
    kinds = [pa.int8(), pa.uint64(), pa.float32(), pa.string(), pa.binary(), pa.bool_(), pa.date32(), pa.timestamp("ns", "UTC")]
    kinds += [pa.timestamp("s"), pa.decimal128(30, 3), pa.list_(pa.int64()), pa.dictionary(pa.int32(), pa.string()), pa.null()]
    columns = {}
    for name in ("user_id", "item_id", "timestamp"):
        kind = data.draw(st.sampled_from(kinds))
        values = data.draw(st.lists(st.none() | st.integers(0, 100), min_size=1, max_size=1))
        try:
            columns[name] = pa.array(values).cast(kind)
        except pa.ArrowException:
            columns[name] = pa.nulls(len(values), kind)
    pq.write_table(pa.table(columns), home / "t4.parquet")
    offered(home, "t4.parquet", (home / "t4.parquet").read_bytes())


# Requests to the translator -----------------------------------------------------------------------------------------


class Module:
    """Has no row for what is out of bounds, as torch."""

    bounds = RequestBounds(n_source=CATALOGUE - 1, n_target=CATALOGUE, folds=2)

    def sample(self, contexts, k, **_):
        np.zeros(CATALOGUE)[contexts.history_items]
        share = np.full((len(contexts), k), 0.5, np.float32)
        return Samples(np.zeros((len(contexts), k), np.int32), share, share)

    def score(self, _, candidates):
        np.zeros(CATALOGUE)[candidates]
        share = np.full(candidates.shape, 0.5, np.float32)
        return share, share


def good(rows: int = 2) -> dict[str, np.ndarray]:
    from scalr_prod.serving.client.wire import encode_request

    return encode_request(
        Contexts(
            history_items=np.ones((rows, 3), np.int32),
            history_ages=np.zeros((rows, 3), np.float32),
            history_end=np.zeros(rows, np.int64),
            event_time=np.zeros(rows, np.int64),
            fold=np.full(rows, -1, np.int32),
            noise_key=np.arange(rows),
            exclude=np.full((rows, 1), -1, np.int32),
        ),
        k=2,
    )


TENSORS = nps.arrays(
    dtype=st.sampled_from([np.int32, np.int64, np.float32, np.float64, np.uint8]),
    shape=nps.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)


@example({"noise_key": np.zeros((1, 2), np.int64)}, set())  # as many values as rows, in one row
@example({"shortlist": np.full((2, 1), np.inf, np.float32)}, set())
@FEW
@given(
    st.dictionaries(st.sampled_from([*INPUTS, "unknown"]), TENSORS, max_size=4),
    st.sets(st.sampled_from(sorted(INPUTS)), max_size=2),
)
def test_requests(changes, absent):
    """A spoilt request between two good ones: it is answered or refused, and they are answered as if it were not there."""
    spoilt = {name: array for name, array in (good() | changes).items() if name not in absent or name in changes}
    first, middle, last = answer_requests(Module(), ModelIdentity(1, 2, CATALOGUE), [good(), spoilt, good(3)])
    assert isinstance(first, dict)
    assert isinstance(last, dict)
    assert (len(first["items"]), len(last["items"])) == (2, 3)
    if isinstance(middle, ValueError):
        assert str(middle)
    else:
        rows = {len(array) for array in middle.values()}
        assert len(rows) == 1
