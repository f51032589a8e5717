"""PyIceberg deletes rows, by rewriting the files that hold them.

usage: delete_rows.py '[{"dir": "…"}, …]'. Prints how many rows went.
"""
import json, sys

from pyiceberg.catalog.sql import SqlCatalog

answers = []
for spec in json.loads(sys.argv[1]):
    root = spec["dir"]
    catalog = SqlCatalog("default", uri=f"sqlite:///{root}/lake/catalog.db", warehouse=f"file://{root}/lake")
    table = catalog.load_table("shop.orders")
    before = len(table.scan().to_arrow())
    table.delete("id >= 100 and id < 1100")
    answers.append({"deleted": before - len(catalog.load_table("shop.orders").scan().to_arrow())})
print(json.dumps(answers))
