"""Reads tables of token transfers with independent readers; prints one JSON object a table.

usage: transfers.py '[{"kind": "iceberg" | "parquet", "dir": "…", "jsonl": "…" (optional)}, …]'
Keys: rows, ledgers (events of each), fingerprint (sum of the rows' hashes), duckdb (the same, by DuckDB's own
reader of Iceberg), torn (ledgers of which a snapshot or commit held a part only), snapshots, rejects,
wrong (with `jsonl`: fields that differ from it, by any reader, the first ten; [] when all are equal), readers.
"""
import collections, glob, json, os, sys

import duckdb
import pyarrow, pyarrow.parquet
from pyiceberg.catalog.sql import SqlCatalog

COLUMNS = (
    "timestamp, ledger_sequence, transaction_hash, event_type, source_account, dest_account, asset_type, asset_code, "
    "asset_issuer, amount, memo, muxed_id, muxed_hash, transaction_index, operation_index, contract_address, event_index"
).split(", ")


def load_extensions(con):
    root = os.path.dirname(os.path.dirname(duckdb.__file__))
    for name in ("avro", "iceberg"):
        path = glob.glob(f"{root}/duckdb_extension_{name}/extensions/*/{name}.duckdb_extension")[0]
        con.execute(f"LOAD '{path}'")


def counts(con, relation):
    rows = con.execute(f"SELECT ledger_sequence, count(*) FROM {relation} GROUP BY 1 ORDER BY 1").fetchall()
    return {str(ledger): n for ledger, n in rows}


def fingerprint(con, relation):
    columns = ", ".join(f"{c}::VARCHAR" for c in COLUMNS)
    return con.execute(f"SELECT coalesce(sum(hash({columns})::HUGEINT), 0)::VARCHAR FROM {relation}").fetchone()[0]


def torn(before, whole):
    """Ledgers of which one state of the table holds a part only."""
    return [ledger for ledger, n in before.items() if n != whole[ledger]]


def expected(path):
    """What each event of the JSONL must be in the table."""
    indexes = collections.Counter()
    for line in open(path):
        event = json.loads(line)
        meta = event.pop("meta")
        index = indexes[meta["ledger_sequence"]]
        indexes[meta["ledger_sequence"]] += 1
        ((kind, body),) = event.items()
        asset = body.get("asset")
        if asset is None:
            kind_of_asset, code, issuer = "custom", None, None
        elif "native" in asset:
            kind_of_asset, code, issuer = "native", "XLM", None
        else:
            issued = asset["issued_asset"]
            kind_of_asset, code, issuer = "issued", issued["asset_code"], issued["issuer"]
        muxed = meta.get("to_muxed_info", {})
        yield {
            "timestamp": meta["closed_at"].replace("T", " ").replace("Z", ""),
            "ledger_sequence": meta["ledger_sequence"],
            "transaction_hash": meta["tx_hash"],
            "event_type": kind,
            "source_account": body.get("from"),
            "dest_account": body.get("to"),
            "asset_type": kind_of_asset,
            "asset_code": code,
            "asset_issuer": issuer,
            "amount": body["amount"],
            "memo": next(iter(muxed.values()), None),
            "muxed_id": muxed.get("id"),
            "muxed_hash": muxed.get("hash"),
            "transaction_index": meta["transaction_index"],
            "operation_index": meta.get("operation_index"),
            "contract_address": meta["contract_address"],
            "event_index": index,
        }


def differences(con, relation, path):
    found = con.execute(
        f"""SELECT * REPLACE (strftime(timestamp::TIMESTAMP, '%Y-%m-%d %H:%M:%S') AS timestamp, lower(hex(transaction_hash)) AS transaction_hash,
            lower(hex(muxed_hash)) AS muxed_hash)
        FROM (SELECT * REPLACE (timestamp AT TIME ZONE 'UTC' AS timestamp) FROM {relation}) ORDER BY ledger_sequence, event_index"""
    ).fetch_arrow_table().to_pylist()
    wrong = []
    events = list(expected(path))
    if len(events) != len(found):
        wrong.append(f"rows: {len(found)}, not {len(events)}")
    for row, event in zip(found, events):
        for column, value in event.items():
            # Null is null, and not an empty text or the word.
            if (row[column] is None) != (value is None) or str(row[column]) != str(value):
                wrong.append(f"{relation}, event {event['event_index']}: {column} is {row[column]!r}, not {value!r}")
    return wrong[:10]


def iceberg(con, spec):
    root = spec["dir"]
    catalog = SqlCatalog("default", uri=f"sqlite:///{root}/lake/catalog.db", warehouse=f"file://{root}/lake")
    table = catalog.load_table(spec.get("table", "stellar.token_transfers"))
    con.register("rows_now", table.scan().to_arrow())
    con.execute(f"CREATE OR REPLACE TEMP VIEW by_duckdb AS SELECT * FROM iceberg_scan('{table.metadata_location}')")
    whole = counts(con, "rows_now")
    parts = []
    for snapshot in table.snapshots():
        con.register("rows_then", table.scan(snapshot_id=snapshot.snapshot_id, selected_fields=("ledger_sequence",)).to_arrow())
        parts += torn(counts(con, "rows_then"), whole)
    found = {"readers": ["rows_now", "by_duckdb"], "snapshots": len(table.snapshots()), "torn": parts, "duckdb": fingerprint(con, "by_duckdb")}
    found["summary"] = dict(table.current_snapshot().summary.additional_properties) if table.current_snapshot() else {}
    return "rows_now", whole, found


def parquet(con, spec):
    out = os.path.join(spec["dir"], spec.get("out", "out"))
    files, parts, states = [], [], []
    for name in sorted(glob.glob(f"{out}/_calve/commits/**/*.json", recursive=True)):
        with open(name) as f:
            files += [os.path.join(out, file["path"]) for file in json.load(f)["files"]]
        states.append(list(files))
    con.execute(f"CREATE OR REPLACE TEMP VIEW rows_now AS SELECT * FROM read_parquet({files}, hive_partitioning = true)")
    whole = counts(con, "rows_now")
    for state in states:
        parts += torn(counts(con, f"read_parquet({state}, hive_partitioning = true)"), whole)
    on_disk = [name for name in glob.glob(f"{out}/**/*.parquet", recursive=True) if "/_calve/" not in name]
    # Arrow's own reader, of the files alone.
    tables = [pyarrow.parquet.ParquetFile(name).read() for name in files]
    con.register("by_arrow", pyarrow.concat_tables(tables) if tables else None)
    found = {"readers": ["rows_now", "by_arrow"], "snapshots": len(states), "torn": parts, "unlisted": len(set(on_disk) - set(files)), "files": sorted(os.path.relpath(f, out) for f in files)}
    return "rows_now", whole, found | {"duckdb": fingerprint(con, "rows_now")}


def rejects(root):
    lines = []
    for name in sorted(glob.glob(f"{root}/**/*.ndjson", recursive=True)):
        with open(name) as f:
            lines += [json.loads(line) for line in f]
    return lines


def main():
    con = duckdb.connect()
    load_extensions(con)
    con.execute("SET TimeZone = 'UTC'")
    answers = []
    for spec in json.loads(sys.argv[1]):
        relation, whole, found = (iceberg if spec["kind"] == "iceberg" else parquet)(con, spec)
        found["ledgers"] = whole
        found["rows"] = sum(whole.values())
        found["fingerprint"] = fingerprint(con, relation)
        indexes = con.execute(
            f"SELECT count(*) FROM (SELECT ledger_sequence FROM {relation} GROUP BY 1 HAVING min(event_index) != 0 "
            "OR max(event_index) + 1 != count(*) OR count(DISTINCT event_index) != count(*))"
        ).fetchone()[0]
        found["bad_indexes"] = indexes
        found["kinds"] = dict(con.execute(f"SELECT event_type, count(*) FROM {relation} GROUP BY 1").fetchall())
        if "jsonl" in spec:
            found["wrong"] = [wrong for reader in found["readers"] for wrong in differences(con, reader, spec["jsonl"])]
        answers.append(found | {"rejects": rejects(spec.get("rejects", spec["dir"]))})
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
