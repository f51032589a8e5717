"""Looks at Azure Blob Storage, with pyarrow, PyIceberg and DuckDB.

usage: azure.py '{"port": …, "account": …, "key": …}' '{"do": …}'
do: create {"container"} | parquet {"path"} | iceberg {"location", "metadata", "to"}
Of a Parquet folder, and of an Iceberg table whose metadata file is `metadata`: rows, ids (distinct), fingerprint.
The table's objects are copied from `location` (a URL) to the folder `to` first, and read there.
"""
import json, sys

import duckdb
import pyarrow.dataset
from pyarrow import fs
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import StaticTable

from readers import load_extensions

place, what = json.loads(sys.argv[1]), json.loads(sys.argv[2])
host = f"127.0.0.1:{place['port']}"
azure = fs.AzureFileSystem(
    place["account"], account_key=place["key"], blob_storage_authority=host, dfs_storage_authority=host,
    blob_storage_scheme="http", dfs_storage_scheme="http",
)
FOUND = "SELECT count(*), count(DISTINCT id), sum(hash(id, amount)::HUGEINT)::VARCHAR FROM {t}"


def found(con, relation):
    return dict(zip(["rows", "ids", "fingerprint"], con.execute(FOUND.format(t=relation)).fetchone()))


def parquet(con, path):
    files = [i.path for i in azure.get_file_info(fs.FileSelector(path, recursive=True)) if i.path.endswith(".parquet")]
    con.register("t", pyarrow.dataset.dataset(files, filesystem=azure, format="parquet").to_table())
    return found(con, "t")


def iceberg(con, location, metadata, to):
    # abfss://container@account.host/path, or az://container/path
    authority, _, path = location.split("://")[1].partition("/")
    container = authority.split("@")[0]
    fs.copy_files(f"{container}/{path}", to, source_filesystem=azure, destination_filesystem=fs.LocalFileSystem())

    def moved(url, *_):
        assert url.startswith(location + "/") or url.startswith(to), url
        return "file", "", url.replace(location, to)

    PyArrowFileIO.parse_location = staticmethod(moved)
    table = StaticTable.from_metadata(metadata, {"py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO"})
    con.register("t", table.scan().to_arrow())
    answer = found(con, "t")
    load_extensions(con)
    version = metadata.rsplit("/", 1)[1].removesuffix(".metadata.json")
    theirs = found(con, f"iceberg_scan('{to}', version = '{version}', allow_moved_paths = true)")
    assert answer == theirs, f"PyIceberg and DuckDB differ: {answer} {theirs}"
    return answer | {"snapshots": len(table.snapshots())}


def main():
    kind = what.pop("do")
    if kind == "create":
        return azure.create_dir(what["container"])
    return {"parquet": parquet, "iceberg": iceberg}[kind](duckdb.connect(), **what)


print(json.dumps(main()))
