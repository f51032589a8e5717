"""Reads a table of changes with PyIceberg and with DuckDB, which must agree row by row; prints one JSON
object a table: rows, keys (distinct), digest (of all rows), and what "queries" over `t` give.

With "by_key", DuckDB alone reads it.

usage: changes.py '[{"dir": "…", "columns": ["id", …], "queries": ["SELECT …", …]}, …]'
"""
import json, sys

import duckdb
from pyiceberg.catalog.sql import SqlCatalog

from readers import load_extensions

answers = []
for spec in json.loads(sys.argv[1]):
    root = spec["dir"]
    catalog = SqlCatalog("default", uri=f"sqlite:///{root}/lake/catalog.db", warehouse=f"file://{root}/lake")
    table = catalog.load_table(spec.get("table", "shop.orders"))
    con = duckdb.connect()
    load_extensions(con)
    columns = ", ".join(f'"{name}"' for name in spec["columns"])
    if spec.get("by_key"):
        # Deletes by key, which PyIceberg refuses.
        try:
            table.scan().to_arrow()
            raise SystemExit("PyIceberg reads equality deletes now: compare it too")
        except ValueError as error:
            assert "equality" in str(error), error
        con.execute(f"CREATE TABLE t AS SELECT * FROM iceberg_scan('{table.metadata_location}')")
    else:
        con.register("t", table.scan().to_arrow())
    own = f"SELECT {columns} FROM t"
    theirs = f"SELECT {columns} FROM iceberg_scan('{table.metadata_location}')"
    for left, right in [(own, theirs), (theirs, own)]:
        differ = con.execute(f"SELECT * FROM (({left}) EXCEPT ALL ({right})) LIMIT 3").fetchall()
        assert not differ, f"PyIceberg and DuckDB differ: {differ}"
    rows, keys, digest = con.execute(
        f"SELECT count(*), count(DISTINCT {columns.split(',')[0]}), sum(hash({columns})::HUGEINT)::VARCHAR FROM t"
    ).fetchone()
    found = {"rows": rows, "keys": keys, "digest": digest}
    found["queries"] = [[list(row) for row in con.execute(query).fetchall()] for query in spec.get("queries", [])]
    # The metadata gives them in no order.
    snapshots = sorted(table.snapshots(), key=lambda snapshot: snapshot.sequence_number)
    found["summaries"] = [dict(snapshot.summary.additional_properties) for snapshot in snapshots]
    answers.append(found)
print(json.dumps(answers))
