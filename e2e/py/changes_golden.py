"""Compares a table of changes with the golden map, which DuckDB makes of the changes themselves: of each
key the change with the highest `seq`, unless it deletes. Both PyIceberg and DuckDB read the table; prints
one JSON object a table: golden (rows that must be there), what the changes were like, and for each reader
how many rows are missing, too many, or another writer's that do not belong there (`foreign.json`).

usage: changes_golden.py '[{"dir": "…"}, …]'. Rows with a negative id are another writer's.
"""
import json, os, sys

import duckdb
from pyiceberg.catalog.sql import SqlCatalog

from readers import load_extensions

TYPES = {"op": "VARCHAR", "id": "BIGINT", "seq": "BIGINT", "ts": "BIGINT", "name": "VARCHAR", "amount": "DOUBLE", "region": "VARCHAR"}
COLUMNS = "id, seq, ts, name, amount, region"


def differ(con, expected, found):
    """Rows of `expected` that are not in `found`, counting repeats, and one of them."""
    rows = con.execute(f"SELECT * FROM (({expected}) EXCEPT ALL ({found})) ORDER BY id").fetchall()
    return [len(rows), rows[:1]]


def compare(root):
    con = duckdb.connect()
    load_extensions(con)
    con.execute(
        f"CREATE TABLE changes AS SELECT *, row_number() OVER () AS arrival FROM "
        f"read_json('{root}/golden.ndjson', format = 'newline_delimited', columns = {TYPES})"
    )
    con.execute(
        f"CREATE TABLE golden AS SELECT {COLUMNS} FROM changes WHERE true "
        "QUALIFY row_number() OVER (PARTITION BY id ORDER BY seq DESC, arrival DESC) = 1 AND op <> 'delete'"
    )
    answer = {"golden": con.execute("SELECT count(*) FROM golden").fetchone()[0]}
    # Of a sample: what kinds of changes there are.
    names = ["sampled", "keys", "deletes", "repeated", "late", "inserted_again", "moved"]
    answer |= dict(zip(names, con.execute("""
        SELECT count(*), count(DISTINCT id), count(*) FILTER (op = 'delete'), count(*) - count(DISTINCT seq),
               count(*) FILTER (seq < highest), count(*) FILTER (op = 'insert' AND lag_op = 'delete'),
               count(*) FILTER (region <> lag_region)
        FROM (SELECT *, max(seq) OVER (PARTITION BY id ORDER BY arrival) AS highest,
                     lag(op) OVER (PARTITION BY id ORDER BY seq, arrival) AS lag_op,
                     lag(region) OVER (PARTITION BY id ORDER BY seq, arrival) AS lag_region
              FROM changes WHERE id % 16 = 0)
    """).fetchone()))
    foreign = []
    if os.path.exists(f"{root}/foreign.json"):
        with open(f"{root}/foreign.json") as f:
            foreign = json.load(f)
    catalog = SqlCatalog("default", uri=f"sqlite:///{root}/lake/catalog.db", warehouse=f"file://{root}/lake")
    table = catalog.load_table("shop.orders")
    con.register("arrow", table.scan().to_arrow())
    readers = {"pyiceberg": "arrow", "duckdb": f"iceberg_scan('{table.metadata_location}')"}
    for name, relation in readers.items():
        golden = f"SELECT {COLUMNS} FROM golden"
        found = f"SELECT {COLUMNS} FROM {relation} WHERE id >= 0"
        theirs = con.execute(f"SELECT id FROM {relation} WHERE id < 0 ORDER BY id").fetchall()
        answer[name] = {
            "missing": differ(con, golden, found),
            "extra": differ(con, found, golden),
            "foreign": theirs == sorted((id,) for id in foreign),
        }
    answer["foreign"] = len(foreign)
    answer["snapshots"] = len(table.snapshots())
    return answer


print(json.dumps([compare(spec["dir"]) for spec in json.loads(sys.argv[1])]))
