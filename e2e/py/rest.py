"""Reads and writes tables of a REST catalog with PyIceberg and DuckDB.

usage: rest.py '{"key": …, "secret": …, "s3": endpoint, "rest": port}' '{"do": …}'
do: summary {"names", "locations"} | write {"name", "stop"} | changes {"name", "columns", "queries", "location"}
`locations` are metadata files in the place of a catalog's tables. A summary of `<name>.orders` has: rows, ids (distinct), fingerprint, snapshots, doubled (files that are referenced
twice), unreferenced (data files that no snapshot refers to), missing, duckdb_rows, rejects, reject_ids. Rows with a
negative id are another writer's, and do not count.
write: appends, overwrites, expires and adds a column until the file `stop` is there; prints how often it did what.
"""
import collections, datetime, glob, json, os, sys, time

import duckdb
import pyarrow as pa
import pyarrow.fs as fs
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.table import StaticTable
from pyiceberg.exceptions import CommitFailedException, NoSuchNamespaceError, NoSuchTableError, ValidationException
from pyiceberg.types import LongType

place, what = json.loads(sys.argv[1]), json.loads(sys.argv[2])
host = place["s3"].removeprefix("http://")
s3 = fs.S3FileSystem(access_key=place["key"], secret_key=place["secret"], endpoint_override=host, scheme="http", region="us-east-1")


STORE = {"s3.endpoint": place["s3"], "s3.access-key-id": place["key"], "s3.secret-access-key": place["secret"], "s3.region": "us-east-1"}


def catalog():
    credential = f"{place['key']}:{place['secret']}"
    return RestCatalog("ice", uri=f"http://127.0.0.1:{place['rest']}", warehouse="s3://ice", credential=credential, **STORE)


def connect():
    con = duckdb.connect()
    root = os.path.dirname(os.path.dirname(duckdb.__file__))
    for name in ("httpfs", "avro", "iceberg"):
        con.execute(f"LOAD '{glob.glob(f'{root}/duckdb_extension_{name}/extensions/*/{name}.duckdb_extension')[0]}'")
    con.execute(
        f"CREATE SECRET (TYPE s3, KEY_ID '{place['key']}', SECRET '{place['secret']}', ENDPOINT '{host}', "
        "USE_SSL false, URL_STYLE 'path', REGION 'us-east-1')"
    )
    return con


def paths(prefix):
    selector = fs.FileSelector(prefix, recursive=True, allow_not_found=True)
    return {i.path for i in s3.get_file_info(selector) if i.type == fs.FileType.File}


def summary(con, name, location=None):
    table = StaticTable.from_metadata(location, STORE) if location else catalog().load_table(f"{name}.orders")
    con.register("orders", table.scan().to_arrow())
    rows, ids, fingerprint = con.execute(
        "SELECT count(*), count(DISTINCT id), sum(hash(id, region, amount)::HUGEINT)::VARCHAR FROM orders WHERE id >= 0"
    ).fetchone()
    theirs = con.execute(f"SELECT count(*) FROM iceberg_scan('{table.metadata_location}') WHERE id >= 0").fetchone()[0]
    files = collections.Counter(task.file.file_path.removeprefix("s3://") for task in table.scan().plan_files())
    known = set()
    for snapshot in table.snapshots():
        for manifest in snapshot.manifests(table.io):
            known.add(manifest.manifest_path.removeprefix("s3://"))
            known.update(e.data_file.file_path.removeprefix("s3://") for e in manifest.fetch_manifest_entry(table.io, discard_deleted=True))
    there = {p for p in paths(table.location().removeprefix("s3://") + "/data")}
    rejects = []
    for path in paths(f"data/{name}/rejects"):
        if path.endswith(".ndjson"):
            with s3.open_input_stream(path) as f:
                rejects += [json.loads(line) for line in f.read().decode().splitlines()]
    return {
        "rows": rows, "ids": ids, "fingerprint": fingerprint, "duckdb_rows": theirs, "snapshots": len(table.snapshots()),
        "doubled": sum(1 for n in files.values() if n > 1), "missing": len(set(files) - there),
        "unreferenced": len(there - known), "files": len(files), "columns": table.schema().column_names,
        "rejects": len(rejects), "reject_ids": len({(r["source_partition"], r["offset"]) for r in rejects}),
    }


def write(name, stop):
    done, turn, ice = collections.Counter(), 0, catalog()
    while not os.path.exists(stop):
        turn += 1
        try:
            table = ice.load_table(f"{name}.orders")
            rows = pa.table({"id": pa.array([-turn], pa.int64()), "region": ["eu"], "amount": [0.0]})
            if turn % 7 == 4 and "more" not in table.schema().column_names:
                with table.update_schema() as update:
                    update.add_column("more", LongType())
                done["evolved"] += 1
            elif turn % 5 == 0:
                now = datetime.datetime.now(datetime.timezone.utc)
                table.maintenance.expire_snapshots().older_than(now - datetime.timedelta(milliseconds=300)).commit()
                done["expired"] += 1
            elif turn % 3 == 0:
                table.overwrite(rows, overwrite_filter="id < 0")
                done["overwritten"] += 1
            else:
                table.append(rows)
                done["appended"] += 1
        except (CommitFailedException, NoSuchNamespaceError, NoSuchTableError, ValidationException) as error:
            done[type(error).__name__] += 1
        time.sleep(0.02)
    return dict(done)


def changes(con, name, columns, queries, location=None):
    table = StaticTable.from_metadata(location, STORE) if location else catalog().load_table(f"{name}.orders")
    con.register("t", table.scan().to_arrow())
    names = ", ".join(f'"{column}"' for column in columns)
    own, theirs = f"SELECT {names} FROM t", f"SELECT {names} FROM iceberg_scan('{table.metadata_location}')"
    for left, right in [(own, theirs), (theirs, own)]:
        differ = con.execute(f"SELECT * FROM (({left}) EXCEPT ALL ({right})) LIMIT 3").fetchall()
        assert not differ, f"PyIceberg and DuckDB differ: {differ}"
    rows, keys, digest = con.execute(
        f"SELECT count(*), count(DISTINCT {names.split(',')[0]}), sum(hash({names})::HUGEINT)::VARCHAR FROM t"
    ).fetchone()
    kept = sorted(table.snapshots(), key=lambda snapshot: snapshot.sequence_number)
    types = {field.name: str(field.field_type) for field in table.schema().fields}
    return {"types": types, "schemas": [s.schema_id for s in kept], "version": table.format_version, "rows": rows, "keys": keys, "digest": digest, "queries": [[list(r) for r in con.execute(q).fetchall()] for q in queries]}


def main():
    if what["do"] == "write":
        return write(what["name"], what["stop"])
    con = connect()
    if what["do"] == "changes":
        return changes(con, what["name"], what["columns"], what["queries"], what.get("location"))
    locations = what.get("locations") or [None] * len(what["names"])
    return [summary(con, name, location) for name, location in zip(what["names"], locations)]


print(json.dumps(main()))
