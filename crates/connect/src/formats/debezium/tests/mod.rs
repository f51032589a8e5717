//! Changes as rows.

mod deletes;
mod encodings;
mod fixture;
mod generated;
mod hostile;

use std::sync::Arc;

use arrow::{
    array::{Array, AsArray, RecordBatch},
    util::display::{ArrayFormatter, FormatOptions},
};
use calve_engine::{Decoded, Decoder};

use super::{DebeziumConfig, DebeziumDecoder};
use crate::{formats::columns::Columns, sources::testing::raw};

/// Settings as they are written in a pipeline file.
fn config(yaml: &str) -> DebeziumConfig {
    serde_yaml_ng::from_str(yaml).expect(yaml)
}

fn decoder(config: &DebeziumConfig) -> DebeziumDecoder {
    let schema = config.declared_schema().expect("declared").expect("schema");
    DebeziumDecoder::new(config, schema).expect("decoder")
}

fn decode(yaml: &str, text: &str) -> Decoded {
    decoder(&config(yaml)).decode(&raw(text, 0)).expect("rows")
}

/// The values of a column, as text.
fn values(rows: &RecordBatch, name: &str) -> Vec<String> {
    let column = rows.column_by_name(name).expect(name);
    let options = FormatOptions::default().with_null("null");
    let format = ArrayFormatter::try_new(column.as_ref(), &options).expect("shown");
    (0..rows.num_rows())
        .map(|row| format.value(row).to_string())
        .collect()
}

fn errors(decoded: &Decoded) -> Vec<&str> {
    decoded.rejects.iter().map(|r| r.error.as_str()).collect()
}

#[test]
fn operations_choose_the_image() {
    let lines = [
        r#"{"before":null,"after":{"id":1,"v":"a"},"op":"c","ts_ms":10}"#,
        r#"{"before":{"id":1,"v":"a"},"after":{"id":1,"v":"b"},"op":"u"}"#,
        r#"{"op":"r","after":{"v":"s","id":2},"ts_ms":11}"#,
        r#"{"before":{"id":1,"v":"b"},"after":null,"source":{"lsn":7},"op":"d"}"#,
        r#"{"before":null,"after":null,"op":"d"}"#,
        r#"{"op":"d","before":{"id":2}}"#,
        "null",
        r#"{"source":{"lsn":8},"op":"t","ts_ms":12}"#,
        r#"{"op":"m","ts_ms":13,"message":{"prefix":"p","content":"AAEC"}}"#,
        r#"{"schema":null,"payload":null}"#,
        "",
        r#"{"before":null,"after":{"id":9},"op":"c","transaction":{"id":"5:1","total_order":3}}"#,
    ];
    let yaml = "{columns: {id: int, v: varchar}, \
                metadata: [source.lsn, ts_ms, transaction.total_order, source.txId]}";
    let decoded = decode(yaml, &lines.join("\n"));
    assert_eq!(errors(&decoded), [""; 0]);
    let rows = &decoded.rows;
    assert_eq!(
        values(rows, "id"),
        ["1", "1", "2", "1", "null", "2", "null", "9"]
    );
    let v = ["a", "b", "s", "b", "null", "null", "null", "null"];
    assert_eq!(values(rows, "v"), v);
    assert_eq!(
        values(rows, "_op"),
        ["c", "u", "r", "d", "d", "d", "t", "c"]
    );
    let lsn = ["null", "null", "null", "7", "null", "null", "8", "null"];
    assert_eq!(values(rows, "source.lsn"), lsn);
    let ts = ["10", "null", "11", "null", "null", "null", "12", "null"];
    assert_eq!(values(rows, "ts_ms"), ts);
    assert_eq!(values(rows, "transaction.total_order")[7], "3");
    let letters = rows.column_by_name("_op").expect("op");
    assert_eq!(letters.as_any_dictionary().values().len(), 5);
}

#[test]
fn a_row_is_found_among_what_is_none() {
    let lines = [
        "null",
        r#"{"op":"c","after":{"id":1}}"#,
        r#"{"op":"m"}"#,
        r#"{"op":"x"}"#,
        "",
        r#" {"op":"c","after":{"id":2}}"#,
    ];
    let text = lines.join("\n");
    let mut decoder = decoder(&config("{columns: {id: int}}"));
    let raw = raw(&text, 500);
    let decoded = decoder.decode(&raw).expect("rows");
    assert_eq!(errors(&decoded), ["op is none of c, u, d, r, t, m"]);
    for again in [false, true] {
        if again {
            // It has seen another batch since.
            decoder.decode(&self::raw("null", 0)).expect("rows");
        }
        for (row, line) in [(0, 1), (1, 5)] {
            let found = decoder.locate(&raw, &decoded, row);
            let before: usize = lines[..line].iter().map(|line| line.len() + 1).sum();
            assert_eq!(found.offset, 500 + before as u64);
            assert_eq!(found.raw, lines[line].as_bytes());
        }
        assert!(decoder.locate(&raw, &decoded, 2).error.contains("row=2"));
    }
}

#[test]
fn rows_without_envelope() {
    let lines = [
        r#"{"id":1,"v":"a","__op":"c","__lsn":5,"__source_ts_ms":7,"__deleted":"false"}"#,
        r#"{"schema":{"type":"struct","fields":[{"type":"int32","field":"id"}]},"payload":{"id":1,"v":"a","__deleted":"true"}}"#,
        r#"{"id":2,"v":"b","__deleted":false}"#,
        r#"{"id":2,"v":"b","__deleted":true,"__op":"u"}"#,
        r#"{"id":2,"v":"b","__op":"x"}"#,
        "null",
    ];
    let yaml =
        "{unwrapped: true, columns: {id: int, v: varchar}, metadata: [source.lsn, source.ts_ms]}";
    let decoded = decode(yaml, &lines.join("\n"));
    assert_eq!(values(&decoded.rows, "_op"), ["c", "d", "u", "d"]);
    assert_eq!(values(&decoded.rows, "id"), ["1", "1", "2", "2"]);
    assert_eq!(values(&decoded.rows, "source.lsn")[0], "5");
    assert_eq!(values(&decoded.rows, "source.ts_ms")[0], "7");
    assert_eq!(
        errors(&decoded),
        ["field=__op: the operation is none of c, u, d, r, t"]
    );
    let inferred = config("{unwrapped: true, metadata: [source.lsn]}");
    let schema = super::infer(&inferred, &[raw(&lines[..1].join("\n"), 0)]).expect("infer");
    let names: Vec<_> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(names, ["id", "v", "__source_ts_ms", "_op", "source.lsn"]);
}

#[test]
fn documents_of_mongodb() {
    let after = |document: &str| serde_json::Value::from(document).to_string();
    let lines = [
        format!(
            r#"{{"before":null,"after":{},"op":"c","source":{{"ord":1}}}}"#,
            after(
                r#"{"_id":{"$oid":"63979f0c1f44e0b0a5b1f7d1"},"n":{"$numberLong":"7"},"at":{"$date":1700000000123},"d":{"$numberDecimal":"1.50"},"s":"a\"b","in":{"x":{"$numberInt":"3"}}}"#
            )
        ),
        format!(
            r#"{{"after":{},"op":"u","updateDescription":{{"updatedFields":"{{}}"}}}}"#,
            after(r#"{ "_id": 5, "n": 8,  "at": {"$date": {"$numberLong": "-1"}}, "s": "plain" }"#)
        ),
        r#"{"after":null,"op":"u","updateDescription":{"updatedFields":"{\"n\":1}"}}"#.into(),
        r#"{"after":"[1]","op":"c"}"#.into(),
        r#"{"after":"{\"n\":1","op":"c"}"#.into(),
    ];
    let text = lines.join("\n");
    let yaml = "{columns: {_id: varchar, n: bigint, at: timestamptz(ms), d: 'decimal(10, 2)', \
                s: varchar, in: 'struct<x: int>'}, metadata: [source.ord]}";
    let decoded = decode(yaml, &lines[..1].join("\n"));
    assert_eq!(errors(&decoded), [""; 0]);
    let row: Vec<String> = ["_id", "n", "at", "d", "s", "in", "source.ord"]
        .iter()
        .map(|name| values(&decoded.rows, name).remove(0))
        .collect();
    assert_eq!(
        row,
        [
            "63979f0c1f44e0b0a5b1f7d1",
            "7",
            "2023-11-14T22:13:20.123Z",
            "1.50",
            "a\"b",
            "{x: 3}",
            "1"
        ]
    );
    let decoded = decode(&yaml.replace("_id: varchar", "_id: int"), &text);
    assert_eq!(values(&decoded.rows, "n"), ["8"]);
    assert_eq!(values(&decoded.rows, "at"), ["1969-12-31T23:59:59.999Z"]);
    let said = errors(&decoded);
    assert!(said[1].contains("capture.mode"), "{said:?}");
    assert_eq!(said.len(), 4);
    let schema = super::infer(&DebeziumConfig::default(), &[raw(&lines[0], 0)]).expect("infer");
    let named = Columns::of(&schema).expect("names").0;
    assert_eq!(
        named[..3],
        [("_id", "varchar"), ("n", "bigint"), ("at", "varchar")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
}

#[test]
fn what_was_not_sent_is_never_written() {
    let gone = "__debezium_unavailable_value";
    let line = |id: i32, v: &str, w: &str| {
        format!(r#"{{"op":"u","after":{{"id":{id},"v":"{v}","w":"{w}","l":["x"]}}}}"#)
    };
    let lines = [
        line(1, "a", "b"),
        line(2, gone, "b"),
        line(3, "a", gone),
        line(4, &format!("not {gone}"), "b"),
        r#"{"op":"u","after":{"id":5,"l":["x","__debezium_unavailable_value"]}}"#.into(),
        r#"{"op":"u","after":{"id":6,"b":"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="}}"#.into(),
        line(7, "a", "b"),
    ];
    // Nobody asks for `w`.
    let yaml = "{columns: {id: int, v: varchar, l: 'list<varchar>', b: binary}}";
    let mut decoder = decoder(&config(yaml));
    for _ in 0..2 {
        let batch = raw(&lines.join("\n"), 0);
        let decoded = decoder.decode(&batch).expect("rows");
        assert_eq!(values(&decoded.rows, "id"), ["1", "3", "4", "7"]);
        let said = errors(&decoded);
        assert!(
            said.iter()
                .all(|error| error.contains("REPLICA IDENTITY FULL"))
        );
        let columns: Vec<_> = said.iter().map(|error| &error[..8]).collect();
        assert_eq!(columns, ["column=v", "column=l", "column=b"]);
        assert_eq!(decoder.locate(&batch, &decoded, 3).raw, lines[6].as_bytes());
    }
}

#[test]
fn settings_that_cannot_be() {
    for (yaml, message) in [
        ("{columns: {id: int not null}}", "not null"),
        (
            "{columns: {id: int}, metadata: [source]}",
            "cannot be a column",
        ),
        ("{columns: {id: int}, metadata: [op]}", "cannot be a column"),
        (
            "{columns: {id: int}, metadata: [before.id]}",
            "cannot be a column",
        ),
        ("{columns: {id: int}, metadata: [a..b]}", "empty name"),
        ("{columns: {id: int}, metadata: [ts_ms, ts_ms]}", "twice"),
        ("{columns: {id: int}, metadata: [a.b, a.b.c]}", "in part"),
    ] {
        let error = config(yaml).declared_schema().expect("declared");
        assert!(
            error.expect_err(yaml).to_string().contains(message),
            "{yaml}"
        );
    }
    let mut asks = config("{columns: {ts_ms: int, id: int}}");
    let paths = [
        "id",
        "ts_ms",
        "source.lsn",
        "source.lsn",
        "_op",
        "ts_ns",
        "updated_at",
    ];
    asks.with_metadata(&paths.map(str::to_owned));
    assert_eq!(asks.metadata, ["source.lsn", "ts_ns"]);
    // A stored schema of another time lacks what is asked for now.
    let stored = config("{columns: {id: int}}")
        .declared_schema()
        .expect("declared");
    let refused = DebeziumDecoder::new(&asks, stored.expect("schema"));
    assert!(refused.err().expect("refused").hint_text().is_some());
    // What inference printed can be pasted, metadata with its types included.
    let pasted = config(
        "{columns: {id: int, _op: dictionary(varchar), source.txId: varchar}, metadata: [source.txId]}",
    );
    let schema = pasted.declared_schema().expect("declared").expect("schema");
    assert_eq!(
        Columns::of(&schema).expect("names").0,
        [
            ("id", "int"),
            ("_op", "dictionary(varchar)"),
            ("source.txId", "varchar")
        ]
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
    let bare = DebeziumConfig {
        metadata: Vec::new(),
        ..pasted.clone()
    };
    let same = bare.declared_schema().expect("declared").expect("schema");
    assert_eq!(same, schema, "what stands behind `_op` is asked for");
    let mut both = config("{columns: {ts_ms: int, _op: dictionary(varchar), ts_us: bigint}}");
    both.with_metadata(&["ts_ms".to_owned(), "source.lsn".to_owned()]);
    assert_eq!(both.metadata, ["ts_us", "source.lsn"]);
    let mut decoder = DebeziumDecoder::new(&bare, Arc::clone(&schema)).expect("decoder");
    let text = r#"{"op":"c","after":{"id":1},"source":{"txId":12}}"#;
    let decoded = decoder.decode(&raw(text, 0)).expect("rows");
    assert_eq!(values(&decoded.rows, "source.txId"), ["12"]);
}

#[test]
fn numbers_of_logs_are_numbers_however_they_are_written() {
    let line = |scn: &str| format!(r#"{{"op":"c","after":{{"id":1}},"source":{{"scn":{scn}}}}}"#);
    let big = format!("\"{}\"", "9".repeat(38));
    let lines = [r#""999""#, r#""1000""#, "1001", "null", &big, r#""1:2""#].map(line);
    let text = lines.join("\n");
    let numbers = ["999", "1000", "1001", "null", big.trim_matches('"')];
    for yaml in [
        "{ metadata: [source.scn], columns: { id: int } }",
        "{ columns: { id: int, _op: dictionary(varchar), source.scn: 'decimal(38, 0)' } }",
        "{ metadata: [source.scn], columns: { id: int }, decimal: string }",
    ] {
        let decoded = decode(yaml, &text);
        assert_eq!(values(&decoded.rows, "source.scn"), numbers, "{yaml}");
        assert!(errors(&decoded)[0].contains("source.scn"), "{decoded:?}");
    }
    let inferred = config("{ metadata: [source.scn, source.commit_scn] }");
    let schema = super::infer(&inferred, &[raw(&text, 0)]).expect("columns");
    for name in ["source.scn", "source.commit_scn"] {
        let of = schema.field_with_name(name).expect(name).data_type();
        assert_eq!(*of, arrow::datatypes::DataType::Decimal128(38, 0));
    }
    let unwrapped = decode(
        "{ unwrapped: true, metadata: [source.scn], columns: { id: int } }",
        r#"{"id":1,"__source_scn":"1000","__op":"c"}"#,
    );
    assert_eq!(values(&unwrapped.rows, "source.scn"), ["1000"]);
}

#[test]
fn text_without_an_order_orders_nothing() {
    let order = |paths: &[&str]| {
        paths
            .iter()
            .map(|path| (*path).to_owned())
            .collect::<Vec<_>>()
    };
    let asked = |yaml: &str, paths: &[&str]| {
        let mut config = config(yaml);
        config.with_metadata(&order(paths));
        config
    };
    let refused = |config: &DebeziumConfig, paths: &[&str]| {
        let declared = config
            .declared_schema()
            .map(|schema| schema.expect("types"));
        let error = config
            .check_order(&order(paths), declared.as_deref())
            .err()?;
        Some(format!(
            "{} ({})",
            error,
            error.hint_text().expect("a hint")
        ))
    };
    for paths in [
        &["source.lsn"][..],
        &["source.scn"],
        &[
            "source.commit_lsn",
            "source.change_lsn",
            "source.event_serial_no",
        ],
        &["source.file", "source.pos", "source.row"],
        &["updated_at", "ts_ms"],
    ] {
        for yaml in ["{}", "{ columns: { id: int, updated_at: varchar } }"] {
            assert_eq!(refused(&asked(yaml, paths), paths), None, "{paths:?}");
        }
    }
    for (path, hint) in [
        ("source.sequence", "source.lsn"),
        ("source.gtid", "source.pos"),
        ("transaction.id", "a number"),
    ] {
        for yaml in ["{}", "{ columns: { id: int } }"] {
            let said = refused(&asked(yaml, &[path]), &[path]).expect(path);
            assert!(said.contains(path) && said.contains(hint), "{said}");
        }
    }
    // By its type, whoever has said it; and what nobody knows counts as text only where it is.
    let stored = "{ columns: { id: int, _op: dictionary(varchar), source.scn: varchar } }";
    let said = refused(&config(stored), &["source.scn"]).expect("text");
    assert!(said.contains("decimal(38, 0)"), "{said}");
    let unknown = "{ columns: { id: int, _op: dictionary(varchar), source.vgtid: varchar } }";
    assert!(refused(&config(unknown), &["source.vgtid"]).is_some());
    let number = unknown.replace("vgtid: varchar", "vgtid: bigint");
    assert_eq!(refused(&config(&number), &["source.vgtid"]), None);
    assert_eq!(
        refused(&asked("{}", &["source.vgtid"]), &["source.vgtid"]),
        None
    );
}

#[test]
fn messages_with_their_keys_are_changes() {
    let value =
        r#"{"before":null,"after":{"id":1,"v":"a"},"source":{"lsn":5},"op":"c","ts_ms":10}"#;
    let schema = r#"{"type":"struct","fields":[{"type":"int32","field":"id"}]}"#;
    let lines = [
        format!(r#"{{"key":{{"id":1}},"value":{value}}}"#),
        format!(
            r#"{{ "key" : {{"schema":{schema},"payload":{{"id":1}}}}, "offset": 7, "payload" : {{"schema":null,"payload":{value}}} }} "#
        ),
        r#"{"key":{"id":1},"value":null}"#.to_owned(),
        format!(r#"{{"key":null,"value":{value}}}"#),
        value.to_owned(),
        r#"{"key":{"id":1},"value":{"op":"x"}}"#.to_owned(),
        r#"{"key":{"id":1},"value":{"op":"d","before":{"id":4}}} 5"#.to_owned(),
        r#"{"key":{"id":1}}"#.to_owned(),
    ];
    let text = lines.join("\n");
    let yaml = "{ columns: { id: int, v: varchar }, metadata: [source.lsn] }";
    let decoded = decode(yaml, &text);
    assert_eq!(values(&decoded.rows, "id"), ["1"; 4]);
    assert_eq!(values(&decoded.rows, "source.lsn"), ["5"; 4]);
    assert_eq!(
        errors(&decoded),
        [
            "op is none of c, u, d, r, t, m",
            "something follows the object",
            "not a change: it has no `op` (rows without envelope need `unwrapped: true`)",
        ]
    );
    // Rows without envelope may have a column of this name.
    let rows = decode(
        "{ columns: { key: int, value: varchar }, unwrapped: true }",
        "{\"key\":7,\"value\":\"a\"}\n{\"key\":{\"key\":8},\"value\":{\"key\":8,\"value\":\"b\"}}",
    );
    assert_eq!(values(&rows.rows, "key"), ["7", "8"]);
    assert_eq!(values(&rows.rows, "value"), ["a", "b"]);
    let inferred = super::infer(&config("{}"), &[raw(&text, 0)]).expect("columns");
    let names: Vec<&str> = inferred
        .fields()
        .iter()
        .map(|f| f.name().as_str())
        .collect();
    assert_eq!(names, ["id", "v", "_op"]);
}
