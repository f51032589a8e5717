"""Another writer on calve's table: appends, overwrites and expires until the file `stop` appears.

usage: second_writer.py FOLDER. Its rows have negative ids. Prints how often it did what.
"""
import collections, datetime, os, sys, time

import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError
from sqlalchemy.exc import OperationalError


def main(root):
    done = collections.Counter()
    catalog = SqlCatalog("default", uri=f"sqlite:///{root}/lake/catalog.db", warehouse=f"file://{root}/lake")
    turn = 0
    while not os.path.exists(f"{root}/stop"):
        turn += 1
        rows = pa.table({"id": pa.array([-turn], pa.int64()), "region": ["eu"], "amount": [0.0]})
        try:
            table = catalog.load_table("shop.orders")
            if turn % 5 == 0:
                now = datetime.datetime.now(datetime.timezone.utc)
                table.maintenance.expire_snapshots().older_than(now - datetime.timedelta(milliseconds=300)).commit()
                done["expired"] += 1
            elif turn % 3 == 0:
                table.overwrite(rows, overwrite_filter="id < 0")
                done["overwritten"] += 1
            else:
                table.append(rows)
                done["appended"] += 1
        except (CommitFailedException, NoSuchTableError, OperationalError) as error:
            done[type(error).__name__] += 1
        time.sleep(0.02)
    print(dict(done))


main(sys.argv[1])
