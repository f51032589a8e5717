"""Reads folders of Parquet files with DuckDB and with PyArrow, both of which take the folders' names for columns,
as Hive does; prints for each folder what the queries over `t` give, in which the two must agree.

usage: hive.py '[{"folder": "…", "queries": ["SELECT …", …]}, …]'
"""
import json, sys

import duckdb
import pyarrow.dataset


def answers(relation, queries):
    con = duckdb.connect()
    if isinstance(relation, str):
        con.execute(f"CREATE VIEW t AS SELECT * FROM {relation}")
    else:
        con.register("t", relation)
    return [[list(row) for row in con.execute(query).fetchall()] for query in queries]


found = []
for spec in json.loads(sys.argv[1]):
    folder, queries = spec["folder"], spec["queries"]
    duck = answers(f"read_parquet('{folder}/**/*.parquet', hive_partitioning = true)", queries)
    arrow = answers(pyarrow.dataset.dataset(folder, partitioning="hive", format="parquet").to_table(), queries)
    assert duck == arrow, f"DuckDB says {duck}, PyArrow says {arrow}"
    found.append(duck)
print(json.dumps(found))
