"""Asks DuckDB about what a pipeline with windows wrote; prints one list of results a folder.

usage: windows.py '[{"dir": "…", "table": "shop.orders", "queries": ["SELECT …", …]}, …]'
Tables: orders and late as PyIceberg reads them; orders_by_file: snapshot, file and minute (w) of each row.
"""
import json, sys

import duckdb
import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import NoSuchTableError


def by_file(table):
    parts = []
    entries = table.inspect.entries().to_pylist()
    for entry in entries:
        path = entry["data_file"]["file_path"]
        rows = duckdb.sql(f"SELECT date_trunc('minute', ts) AS w FROM read_parquet('{path.removeprefix('file://')}')").to_arrow_table()
        rows = rows.append_column("file", pa.array([path] * len(rows)))
        parts.append(rows.append_column("snapshot", pa.array([entry["snapshot_id"]] * len(rows))))
    return pa.concat_tables(parts)


answers = []
for spec in json.loads(sys.argv[1]):
    root = spec["dir"]
    catalog = SqlCatalog("default", uri=f"sqlite:///{root}/lake/catalog.db", warehouse=f"file://{root}/lake")
    con = duckdb.connect()
    name = spec.get("table", "shop.orders")
    orders = catalog.load_table(name)
    con.register("orders", orders.scan().to_arrow())
    try:
        con.register("late", catalog.load_table(f"{name}_late").scan().to_arrow())
    except NoSuchTableError:
        pass
    if any("orders_by_file" in query for query in spec["queries"]):
        con.register("orders_by_file", by_file(orders))
    answers.append([[list(row) for row in con.execute(query).fetchall()] for query in spec["queries"]])
print(json.dumps(answers))
