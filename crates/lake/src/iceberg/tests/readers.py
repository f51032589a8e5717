"""Ids that PyIceberg and DuckDB read in a table: {"pyiceberg": […], "duckdb": […]}.

usage: readers.py CATALOG.db TABLE
"""
import glob, json, os, sys

import duckdb
from pyiceberg.catalog.sql import SqlCatalog

catalog, name = sys.argv[1:]
table = SqlCatalog("default", uri=f"sqlite:///{catalog}").load_table(name)
con = duckdb.connect()
root = os.path.dirname(os.path.dirname(duckdb.__file__))
for extension in ("avro", "iceberg"):
    path = glob.glob(f"{root}/duckdb_extension_{extension}/extensions/*/{extension}.duckdb_extension")[0]
    con.execute(f"LOAD '{path}'")
rows = con.execute(f"SELECT id FROM iceberg_scan('{table.metadata_location}') ORDER BY id").fetchall()
print(json.dumps({
    "pyiceberg": sorted(table.scan().to_arrow()["id"].to_pylist()),
    "duckdb": [row[0] for row in rows],
}))
