"""Tables whose schema evolves, as PyIceberg and DuckDB see them; prints one answer for each spec.

usage: evolution.py '[{"dir": "…", "table": "shop.orders", "queries": ["SELECT … FROM {t}"]}, …]'
Each query is asked of both readers, which must agree; the answer has the rows, the columns with their
types as PyIceberg shows them, and for each snapshot its columns and whether a schema ever changed without one.
With "add": {"column": "type", …} columns are added to the table by PyIceberg first; with "parquet": "folder"
the folder is read as a whole by DuckDB and PyArrow instead.
"""
import glob, json, os, sys

import duckdb
import pyarrow.dataset
import pyarrow.parquet
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.types import DoubleType, LongType, StringType

TYPES = {"string": StringType(), "long": LongType(), "double": DoubleType()}


def connect():
    con = duckdb.connect()
    root = os.path.dirname(os.path.dirname(duckdb.__file__))
    for name in ("avro", "iceberg"):
        path = glob.glob(f"{root}/duckdb_extension_{name}/extensions/*/{name}.duckdb_extension")[0]
        con.execute(f"LOAD '{path}'")
    con.execute("SET TimeZone = 'UTC'")
    return con


def rows(con, query):
    return json.loads(json.dumps([list(row) for row in con.execute(query).fetchall()], default=str))


def agreed(con, queries, one, other):
    answers = []
    for query in queries:
        a, b = rows(con, query.format(t=one)), rows(con, query.format(t=other))
        assert a == b, f"{query}: {one} says {a[:5]}, {other} says {b[:5]}"
        answers.append(a)
    return answers


def iceberg(spec):
    root, name = spec["dir"], spec.get("table", "shop.orders")
    catalog = SqlCatalog("default", uri=f"sqlite:///{root}/lake/catalog.db", warehouse=f"file://{root}/lake")
    table = catalog.load_table(name)
    if "add" in spec:
        with table.update_schema() as update:
            for column, kind in spec["add"].items():
                update.add_column(column, TYPES[kind])
        table = catalog.load_table(name)
    con = connect()
    con.register("py", table.scan().to_arrow())
    con.execute(f"CREATE VIEW duck AS SELECT * FROM iceberg_scan('{table.metadata_location}')")
    schemas = {schema.schema_id: schema for schema in table.metadata.schemas}
    # A metadata file whose schema is another than that of the one before, and whose snapshot is the same.
    files = [log.metadata_file for log in table.metadata.metadata_log] + [table.metadata_location]
    states = []
    for file in files:
        with open(file.removeprefix("file://")) as f:
            state = json.load(f)
        states.append((state["current-schema-id"], state.get("current-snapshot-id")))
    alone = sum(a[0] != b[0] and a[1] == b[1] for a, b in zip(states, states[1:]))
    return {
        "rows": agreed(con, spec.get("queries", []), "py", "duck"),
        "columns": [[field.name, str(field.field_type)] for field in table.schema().fields],
        "snapshots": [[f.name for f in schemas[s.schema_id].fields] for s in sorted(table.snapshots(), key=lambda s: s.sequence_number)],
        "alone": alone,
    }


def folder(spec):
    files = sorted(glob.glob(f"{spec['parquet']}/**/*.parquet", recursive=True))
    con = connect()
    con.execute(f"CREATE VIEW duck AS SELECT * FROM read_parquet({files}, union_by_name = true)")
    # The newest file has every column, in its widest type.
    newest = max((pyarrow.parquet.read_schema(file) for file in files), key=len)
    con.register("py", pyarrow.dataset.dataset(files, schema=newest).to_table())
    versions = {pyarrow.parquet.read_metadata(file).metadata[b"calve.schema_version"].decode() for file in files}
    return {"rows": agreed(con, spec["queries"], "py", "duck"), "versions": sorted(versions), "columns": newest.names}


print(json.dumps([folder(spec) if "parquet" in spec else iceberg(spec) for spec in json.loads(sys.argv[1])]))
