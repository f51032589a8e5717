"""Another writer on a table of changes, until the file `stop` appears, or for one round with `once`:
appends rows with negative ids, replaces and deletes some of them, rewrites whole regions, calve's rows
included, expires snapshots, and has a column of its own that comes, gets another name, goes, and so on. Prints
how often it did what; `foreign.json` says which of its rows must be there.

usage: rewriter.py FOLDER [once]
"""
import collections, datetime, json, os, sys, time

import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError, ValidationException
from pyiceberg.types import StringType
from sqlalchemy.exc import OperationalError

REGIONS = ["us", "eu", "apac", "latam", "africa"]


def rows_of(ids, schema):
    columns = {"id": ids, "seq": [1] * len(ids), "ts": [0] * len(ids), "name": ["foreign"] * len(ids), "amount": [0.5] * len(ids), "region": ["eu"] * len(ids)}
    columns |= {name: ["own"] * len(ids) for name in schema.names if name not in columns}
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def append(table, turn, own):
    ids = [-turn * 100 - n for n in range(20)]
    table.append(rows_of(ids, table.schema().as_arrow()))
    return own | set(ids)


def replace(table, turn, own):
    ids = [-turn * 100 - n for n in range(3)]
    table.overwrite(rows_of(ids, table.schema().as_arrow()), overwrite_filter="id < 0")
    return set(ids)


def delete(table, turn, own):
    gone = set(sorted(own)[: len(own) // 2])
    table.delete(f"id < 0 and id <= {max(gone, default=-(1 << 62))}")
    return own - gone


def rewrite(table, turn, own):
    only = f"region == '{REGIONS[turn % 5]}'"
    table.overwrite(table.scan(row_filter=only).to_arrow(), overwrite_filter=only)
    return own


def expire(table, turn, own):
    now = datetime.datetime.now(datetime.timezone.utc)
    table.maintenance.expire_snapshots().older_than(now - datetime.timedelta(milliseconds=300)).commit()
    return own


def evolve(table, turn, own):
    names = table.schema().column_names
    with table.update_schema(allow_incompatible_changes=True) as update:
        if "note" in names:
            update.rename_column("note", "remark")
        elif "remark" in names:
            update.delete_column("remark")
        else:
            update.add_column("note", StringType())
    return own


def main(root, once):
    done = collections.Counter()
    catalog = SqlCatalog("default", uri=f"sqlite:///{root}/lake/catalog.db", warehouse=f"file://{root}/lake")
    own = set()
    if os.path.exists(f"{root}/foreign.json"):
        with open(f"{root}/foreign.json") as f:
            own = set(json.load(f))
    for turn in range(int(time.time() * 1000) % 10**9, 1 << 60):
        steps = [evolve, expire, append, rewrite, replace, evolve, append, rewrite, delete]
        step = steps[sum(done.values()) % len(steps)]
        if once and sum(done.values()) == len(steps) or os.path.exists(f"{root}/stop"):
            break
        try:
            own = step(catalog.load_table("shop.orders"), turn, own)
            done[step.__name__] += 1
        except (CommitFailedException, NoSuchTableError, OperationalError, ValidationException) as error:
            done[f"{step.__name__}: {type(error).__name__}"] += 1
        time.sleep(0.02)
    with open(f"{root}/foreign.json", "w") as f:
        json.dump(sorted(own), f)
    print(json.dumps(done))


main(sys.argv[1], sys.argv[2:] == ["once"])
