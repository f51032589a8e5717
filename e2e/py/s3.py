"""Puts events into an S3 server, and reads what calve wrote there with DuckDB and pyarrow.

usage: s3.py '{"key": …, "secret": …, "s3": port, "filer": port, "rest": port}' '{"do": …}'
do: ready | put {"path", "from", "count", "pad"} | summary {"names"}
A summary has: rows, ids (distinct), fingerprint, rejects, reject_ids, doubled (files that two commits name),
unreferenced (objects of the table or staged rejects that nothing names), uploads (neither completed nor aborted),
largest (bytes of the largest data file).
"""
import collections, glob, json, os, random, sys, urllib.request

import duckdb
import pyarrow.fs as fs

server, what = json.loads(sys.argv[1]), json.loads(sys.argv[2])
endpoint = f"127.0.0.1:{server['s3']}"
s3 = fs.S3FileSystem(access_key=server["key"], secret_key=server["secret"], endpoint_override=endpoint, scheme="http", region="us-east-1")


def lines(first, count, pad):
    for n in range(first, first + count):
        if n % 1000 == 999:
            yield '{"id": %d, broken\n' % n
        else:
            at = random.Random(n)
            region = at.choice(["eu", "us", "apac"])
            padding = ', "pad": "%s"' % at.randbytes(pad // 2).hex() if pad else ""
            yield '{"id": %d, "region": "%s", "amount": %r%s}\n' % (n, region, at.random() * 100, padding)


def put(path, first, count, pad=0):
    with s3.open_output_stream(path) as out:
        out.write("".join(lines(first, count, pad)).encode())


def paths(prefix):
    selector = fs.FileSelector(prefix, recursive=True, allow_not_found=True)
    return {i.path: i.size for i in s3.get_file_info(selector) if i.type == fs.FileType.File}


def read(path):
    with s3.open_input_stream(path) as f:
        return f.read().decode()


def uploads():
    """The filer keeps what is being uploaded in a folder of its own, with the object's name."""
    url = f"http://127.0.0.1:{server['filer']}/buckets/data/.uploads/?limit=10000"
    ask = urllib.request.Request(url, headers={"Accept": "application/json"})
    try:
        with urllib.request.urlopen(ask) as answer:
            entries = json.load(answer)["Entries"] or []
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return []
        raise
    import base64
    return [base64.b64decode((e.get("Extended") or {}).get("key", "")).decode() for e in entries]


def summary(con, name, open_uploads):
    table = paths(f"data/{name}/out")
    data = {p: size for p, size in table.items() if p.endswith(".parquet")}
    source = f"read_parquet('s3://data/{name}/out/**/*.parquet', hive_partitioning = true)"
    rows, ids, fingerprint = 0, 0, "0"
    if data:
        rows, ids, fingerprint = con.execute(
            f"SELECT count(*), count(DISTINCT id), sum(hash(id, region, amount)::HUGEINT)::VARCHAR FROM {source}"
        ).fetchone()
    named = collections.Counter()
    for path in table:
        if "/_calve/commits/" in path:
            named.update(f"data/{name}/out/{f['path']}" for f in json.loads(read(path))["files"])
    rejects = paths(f"data/{name}/rejects")
    lost = [p for p in data if p not in named] + [p for p in rejects if not p.endswith(".ndjson")]
    found = [json.loads(l) for p in rejects if p.endswith(".ndjson") for l in read(p).splitlines()]
    return {
        "rows": rows, "ids": ids, "fingerprint": fingerprint, "rejects": len(found),
        "reject_ids": len({(r["source_partition"], r["offset"]) for r in found}),
        "doubled": sum(1 for n in named.values() if n > 1),
        "missing": len(set(named) - set(data)), "unreferenced": len(lost),
        "uploads": sum(1 for key in open_uploads if key.startswith(f"{name}/")),
        "largest": max(data.values(), default=0),
    }


def main():
    if what["do"] == "ready":
        s3.get_file_info("data/x")
        with s3.open_output_stream("data/.ready") as out:
            out.write(b"x")
        # The warehouse of tables is made last.
        catalog = f"http://127.0.0.1:{server['rest']}/v1"
        form = f"grant_type=client_credentials&client_id={server['key']}&client_secret={server['secret']}"
        with urllib.request.urlopen(f"{catalog}/oauth/tokens", form.encode()) as answer:
            token = json.load(answer)["access_token"]
        ask = urllib.request.Request(f"{catalog}/ice/namespaces", headers={"Authorization": f"Bearer {token}"})
        urllib.request.urlopen(ask).close()
        return "ready"
    if what["do"] == "put":
        return put(what["path"], what["from"], what["count"], what.get("pad", 0))
    con = duckdb.connect()
    root = os.path.dirname(os.path.dirname(duckdb.__file__))
    con.execute("LOAD '%s'" % glob.glob(f"{root}/duckdb_extension_httpfs/extensions/*/httpfs.duckdb_extension")[0])
    con.execute(
        f"CREATE SECRET (TYPE s3, KEY_ID '{server['key']}', SECRET '{server['secret']}', ENDPOINT '{endpoint}', "
        "USE_SSL false, URL_STYLE 'path', REGION 'us-east-1')"
    )
    begun = uploads()
    return [summary(con, name, begun) for name in what["names"]]


print(json.dumps(main()))
