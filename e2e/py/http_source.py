"""What an independent client and reader see of the HTTP source.

usage: http_source.py '[{"do": "read", "kind": "iceberg" | "parquet", "dir": "…"} |
                        {"do": "talk", "port": 8090, "ca": "cert.pem", "token": "…"} |
                        {"do": "arrow", "port": 8090}]'
read: the ids of the table by DuckDB, in order. talk: name and status (with the lines of bad events) of each of a list
of requests over TLS. arrow: the same for streams of Arrow IPC.
"""
import glob, gzip, http.client, json, os, ssl, sys

import duckdb
import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog


def read(spec):
    root = spec["dir"]
    con = duckdb.connect()
    if spec["kind"] == "iceberg":
        for name in ("avro", "iceberg"):
            base = os.path.dirname(os.path.dirname(duckdb.__file__))
            con.execute(f"LOAD '{glob.glob(f'{base}/duckdb_extension_{name}/extensions/*/{name}.duckdb_extension')[0]}'")
        catalog = SqlCatalog("default", uri=f"sqlite:///{root}/lake/catalog.db", warehouse=f"file://{root}/lake")
        relation = f"iceberg_scan('{catalog.load_table('shop.orders').metadata_location}')"
    else:
        relation = f"read_parquet('{root}/out/region=*/*.parquet', hive_partitioning = true)"
    return [row[0] for row in con.execute(f"SELECT id FROM {relation} ORDER BY id").fetchall()]


def post(connection, body, headers):
    connection.request("POST", "/events", body, headers)
    response = connection.getresponse()
    answer = json.loads(response.read() or b"{}")
    return [response.status, answer.get("accepted"), [bad["line"] for bad in answer.get("bad", [])]]


def event(n, region='"eu"'):
    return f'{{"id":{n},"region":{region},"amount":1.5}}'.encode()


def talk(spec):
    def one(body, auth=True, **headers):
        context = ssl.create_default_context(cafile=spec["ca"])
        connection = http.client.HTTPSConnection("localhost", spec["port"], context=context, timeout=20)
        if auth:
            headers["Authorization"] = f"Bearer {spec['token']}"
        headers = {"Content-Type": "application/x-ndjson"} | {k.replace("_", "-"): v for k, v in headers.items()}
        try:
            return post(connection, body, headers)
        finally:
            connection.close()

    zstd = lambda body: pa.Codec("zstd").compress(body, asbytes=True)
    bomb = b" " * (40 << 20) + event(99)
    pretty = json.dumps([json.loads(event(3)), json.loads(event(4))], indent=2).encode()
    json_type = {"Content_Type": "application/json"}
    plain = http.client.HTTPConnection("localhost", spec["port"], timeout=20)
    try:
        plain.request("POST", "/events", event(98), {"Content-Type": "application/x-ndjson"})
        without_tls = plain.getresponse().status
    except (http.client.HTTPException, OSError):
        without_tls = "closed"
    return {
        "lines": one(event(1) + b"\n" + event(2)),
        "array": one(pretty, **json_type),
        "object": one(event(5), **json_type),
        "gzip": one(gzip.compress(event(6)), Content_Encoding="gzip"),
        "zstd": one(zstd(event(7)), Content_Encoding="zstd"),
        "bad": one(b"\n".join([event(90), event(91, "[]"), event(92), b'{"id":1.5}'])),
        "no token": one(event(93), auth=False),
        "bad token": one(event(93), auth=False, Authorization="Bearer nonsense"),
        "type": one(event(94), Content_Type="text/plain"),
        "encoding": one(event(94), Content_Encoding="br"),
        "gzip bomb": one(gzip.compress(bomb), Content_Encoding="gzip"),
        "zstd bomb": one(zstd(bomb), Content_Encoding="zstd"),
        "too large": one(event(95) * 40000),
        "too deep": one(b'{"id":1,"x":' + b"[" * 100 + b"]" * 100 + b"}"),
        "no gzip": one(event(96), Content_Encoding="gzip"),
        "without tls": without_tls,
    }


def arrow(spec):
    def one(body, **headers):
        connection = http.client.HTTPConnection("localhost", spec["port"], timeout=20)
        try:
            return post(connection, body, {"Content-Type": "application/vnd.apache.arrow.stream"} | headers)
        finally:
            connection.close()

    def stream(ids, regions, options=None):
        batch = pa.record_batch({"id": ids, "region": regions, "amount": pa.array([1.5] * len(ids))})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
            for from_ in range(0, len(ids), 2):
                writer.write_batch(batch.slice(from_, 2))
        return sink.getvalue().to_pybytes()

    good = stream(pa.array([1, 2, 3], pa.int64()), pa.array(["eu", "us", "eu"]))
    return {
        "good": one(good),
        "narrow": one(stream(pa.array([4, 5], pa.int16()), pa.array(["eu", "us"]).dictionary_encode())),
        "some bad": one(stream(pa.array(["6", "x", "8"]), pa.array(["eu", "us", "eu"]))),
        "packed": one(stream(pa.array([9]), pa.array(["eu"]), pa.ipc.IpcWriteOptions(compression="lz4"))),
        "cut": one(good[: len(good) // 2]),
        "nothing": one(b"nonsense"),
    }


print(json.dumps([{"read": read, "talk": talk, "arrow": arrow}[spec["do"]](spec) for spec in json.loads(sys.argv[1])]))
