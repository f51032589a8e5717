"""Reads what calve wrote in the order in which it became visible; prints one JSON object a table.

usage: order.py '[{"kind": "iceberg" | "parquet", "dir": "…"}, …]'
Keys: partitions (table partition to rows, digest of the ids in order, whether they rise), files,
rejects (source partition and offset of each, in order).
"""
import glob, hashlib, json, os, sys

import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import ManifestEntryStatus


def iceberg(root):
    catalog = SqlCatalog("default", uri=f"sqlite:///{root}/lake/catalog.db", warehouse=f"file://{root}/lake")
    table = catalog.load_table("shop.orders")
    for snapshot in sorted(table.snapshots(), key=lambda s: s.sequence_number):
        added = []
        for manifest in snapshot.manifests(table.io):
            if manifest.added_snapshot_id == snapshot.snapshot_id:
                entries = manifest.fetch_manifest_entry(table.io)
                added += [e.data_file for e in entries if e.status == ManifestEntryStatus.ADDED]
        for file in sorted(added, key=lambda f: os.path.basename(f.file_path)):
            yield str(file.partition[0]), file.file_path.removeprefix("file://")


def parquet(root):
    for name in sorted(glob.glob(f"{root}/out/_calve/commits/**/*.json", recursive=True)):
        with open(name) as f:
            paths = [file["path"] for file in json.load(f)["files"]]
        for path in sorted(paths, key=os.path.basename):
            yield os.path.dirname(path).removeprefix("region="), f"{root}/out/{path}"


def rejects(root):
    found = []
    for name in sorted(glob.glob(f"{root}/rejects/**/*.ndjson", recursive=True)):
        with open(name) as f:
            lines = [json.loads(line) for line in f]
        found += [[line["source_partition"], line["offset"]] for line in lines]
    return found


def main():
    answers = []
    for spec in json.loads(sys.argv[1]):
        ids, files = {}, 0
        for partition, path in (iceberg if spec["kind"] == "iceberg" else parquet)(spec["dir"]):
            ids.setdefault(partition, []).extend(pq.ParquetFile(path).read(["id"]).column(0).to_pylist())
            files += 1
        partitions = {
            name: [len(all), hashlib.sha256(str(all).encode()).hexdigest(), all == sorted(all)]
            for name, all in sorted(ids.items())
        }
        answers.append({"partitions": partitions, "files": files, "rejects": rejects(spec["dir"])})
    print(json.dumps(answers))


main()
