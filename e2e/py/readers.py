"""Reads what calve wrote with independent readers; prints one JSON object a table. Rows with a
negative id are another writer's, and do not count.

usage: readers.py '[{"kind": "iceberg" | "parquet", "dir": "…", "leftovers": false}, …]'
Keys: rows, ids (distinct), fingerprint (sum of row hashes), rejects, reject_ids, files, doubled (files
referenced twice), unreferenced (data files that nothing refers to), duckdb_rows (DuckDB's own reader). With
"leftovers" also those: names of all files of the table that no snapshot, log of metadata or commit refers to, and
of rejects that are not published.
"""
import collections, glob, json, os, sys

import duckdb
from pyiceberg.catalog.sql import SqlCatalog


def load_extensions(con):
    root = os.path.dirname(os.path.dirname(duckdb.__file__))
    for name in ("avro", "iceberg"):
        path = glob.glob(f"{root}/duckdb_extension_{name}/extensions/*/{name}.duckdb_extension")[0]
        con.execute(f"LOAD '{path}'")


def summary(con, relation):
    rows, ids, fingerprint = con.execute(
        f"SELECT count(*), count(DISTINCT id), sum(hash(id, region, amount)::HUGEINT)::VARCHAR FROM {relation} WHERE id >= 0"
    ).fetchone()
    return {"rows": rows, "ids": ids, "fingerprint": fingerprint}


def rejects(root):
    lines = []
    for name in sorted(glob.glob(f"{root}/rejects/**/*.ndjson", recursive=True)):
        with open(name) as f:
            lines += [json.loads(line) for line in f]
    offsets = [(line["source_partition"], line["offset"]) for line in lines]
    return {"rejects": len(lines), "reject_ids": len(set(offsets))}


def local(location):
    return os.path.realpath(location.removeprefix("file://"))


def files_below(folder):
    return {os.path.realpath(name) for name in glob.glob(f"{folder}/**", recursive=True, include_hidden=True) if os.path.isfile(name)}


def referred(table):
    metadata = table.metadata
    found = {table.metadata_location} | {log.metadata_file for log in metadata.metadata_log}
    found |= {of.statistics_path for of in metadata.statistics + metadata.partition_statistics}
    manifests = {}
    for snapshot in table.snapshots():
        found.add(snapshot.manifest_list)
        manifests |= {manifest.manifest_path: manifest for manifest in snapshot.manifests(table.io)}
    for path, manifest in manifests.items():
        found.add(path)
        found.update(entry.data_file.file_path for entry in manifest.fetch_manifest_entry(table.io))
    return {local(location) for location in found}


def iceberg(con, root, leftovers):
    catalog = SqlCatalog("default", uri=f"sqlite:///{root}/lake/catalog.db", warehouse=f"file://{root}/lake")
    table = catalog.load_table("shop.orders")
    con.register("orders", table.scan().to_arrow())
    found = summary(con, "orders")
    files = [task.file.file_path.removeprefix("file://") for task in table.scan().plan_files()]
    found["duckdb_rows"] = con.execute(f"SELECT count(*) FROM iceberg_scan('{table.metadata_location}') WHERE id >= 0").fetchone()[0]
    on_disk = glob.glob(f"{table.location().removeprefix('file://')}/data/**/*.parquet", recursive=True)
    found["snapshots"] = len(table.snapshots())
    if leftovers:
        found["leftovers"] = sorted(files_below(local(table.location())) - referred(table))
    return found, files, on_disk


def parquet(con, root, leftovers):
    on_disk = glob.glob(f"{root}/out/region=*/*.parquet")
    found = summary(con, f"read_parquet('{root}/out/region=*/*.parquet', hive_partitioning = true)")
    files = []
    for name in glob.glob(f"{root}/out/_calve/commits/**/*.json", recursive=True):
        with open(name) as f:
            files += [os.path.join(root, "out", file["path"]) for file in json.load(f)["files"]]
    found["duckdb_rows"] = found["rows"]
    if leftovers:
        own = {name for name in files_below(f"{root}/out/_calve/commits") if name.endswith(".json")}
        own |= {os.path.realpath(name) for name in files + [f"{root}/out/_calve/id"]}
        found["leftovers"] = sorted(files_below(f"{root}/out") - own)
    return found, files, on_disk + glob.glob(f"{root}/out/_calve/staged/*")


def main():
    con = duckdb.connect()
    load_extensions(con)
    answers = []
    for spec in json.loads(sys.argv[1]):
        found, files, on_disk = (iceberg if spec["kind"] == "iceberg" else parquet)(con, spec["dir"], spec.get("leftovers"))
        counts = collections.Counter(os.path.realpath(name) for name in files)
        found["files"] = len(counts)
        found["doubled"] = sum(1 for n in counts.values() if n > 1)
        if "leftovers" in found:
            found["leftovers"] += sorted(name for name in files_below(f"{spec['dir']}/rejects") if not name.endswith(".ndjson"))
        found["unreferenced"] = len({os.path.realpath(n) for n in on_disk} - set(counts))
        answers.append(found | rejects(spec["dir"]))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
