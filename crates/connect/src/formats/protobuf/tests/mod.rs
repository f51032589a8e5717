//! What a message becomes, case by case. `generated` compares any messages with prost-reflect,
//! `hostile` holds bytes that are wrong, `real` the events of a real ledger.

mod generated;
mod hostile;
mod mapping;
mod real;

use prost_reflect::{DescriptorPool, DynamicMessage, prost::Message as _};
use serde_json::{Value, json};

use super::*;
pub(super) use crate::sources::testing::pool_of as pool;

pub(super) fn config(pool: &DescriptorPool, yaml: &str) -> ProtobufConfig {
    let mut config: ProtobufConfig = serde_yaml_ng::from_str(yaml).expect("yaml");
    config.message.get_or_insert("t.M".to_owned());
    config.pool = Some(pool.clone());
    config
}

/// Messages, each with an offset ten above the one before.
pub(super) fn messages<B: AsRef<[u8]>>(all: &[B]) -> Messages {
    let mut messages = Messages::default();
    let mut bytes = Vec::new();
    for (n, one) in all.iter().enumerate() {
        bytes.extend_from_slice(one.as_ref());
        messages.ends.push(bytes.len() as u32);
        messages.offsets.push(100 + 10 * (n as u64 / 2));
        messages.ordinals.push(n as u32 % 2);
    }
    messages.bytes = bytes.into();
    messages
}

pub(super) fn decode<B: AsRef<[u8]>>(config: &ProtobufConfig, all: &[B]) -> Decoded {
    let schema = config.schema().expect("schema");
    let mut decoder = ProtobufDecoder::new(config, &schema).expect("decoder");
    decoder.decode_messages(&messages(all)).expect("decoded")
}

/// Rows as JSON: bytes as hexadecimal digits, times as text, nulls explicit.
pub(super) fn to_json(rows: &RecordBatch) -> Vec<Value> {
    let mut writer = arrow_json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow_json::writer::JsonArray>(Vec::new());
    writer.write(rows).expect("written");
    writer.finish().expect("finished");
    let text = writer.into_inner();
    if text.is_empty() {
        return Vec::new();
    }
    serde_json::from_slice(&text).expect("JSON")
}

/// The only row of a message that is written as ProtoJSON.
pub(super) fn row(config: &ProtobufConfig, message: &Value) -> Value {
    let bytes = bytes_of(config, message);
    let decoded = decode(config, &[bytes]);
    assert_eq!(decoded.rejects, []);
    to_json(&decoded.rows).remove(0)
}

/// The bytes of a message that is written as ProtoJSON.
pub(super) fn bytes_of(config: &ProtobufConfig, message: &Value) -> Vec<u8> {
    let of = config.descriptor().expect("descriptor");
    let message = DynamicMessage::deserialize(of, message).expect("a message");
    message.encode_to_vec()
}

const KINDS: &str = r#"
    syntax = "proto3";
    package t;
    import "google/protobuf/timestamp.proto";
    import "google/protobuf/duration.proto";
    import "google/protobuf/wrappers.proto";
    import "google/protobuf/struct.proto";
    import "google/protobuf/any.proto";
    import "google/protobuf/empty.proto";
    enum Color { RED = 0; GREEN = 1; }
    message Inner { int32 a = 1; repeated string tags = 2; }
    message M {
        int32 small = 1;
        optional int64 wide = 2;
        string text = 3;
        bytes raw = 4;
        double number = 5;
        bool yes = 6;
        Color color = 7;
        Inner inner = 8;
        repeated sint64 list = 9;
        repeated Inner inners = 10;
        map<string, Inner> named = 11;
        google.protobuf.Timestamp at = 12;
        google.protobuf.Duration took = 13;
        google.protobuf.StringValue maybe = 14;
        google.protobuf.UInt64Value many = 15;
        google.protobuf.Struct free = 16;
        google.protobuf.Any any = 17;
        google.protobuf.Empty nothing = 18;
        oneof choice { string left = 19; Inner right = 20; }
        repeated google.protobuf.Timestamp times = 21;
        uint64 big = 300;
    }
"#;

#[test]
fn an_empty_message_has_defaults_where_there_is_no_presence() {
    let config = config(&pool(KINDS), "{}");
    assert_eq!(
        row(&config, &json!({})),
        json!({
            "small": 0, "wide": null, "text": "", "raw": "", "number": 0.0, "yes": false,
            "color": "RED", "inner": null, "list": [], "inners": [], "named": {}, "at": null,
            "took": null, "maybe": null, "many": null, "free": null, "any": null,
            "nothing": null, "choice": null, "left": null, "right": null, "times": [], "big": 0
        })
    );
}

#[test]
fn each_kind_of_field_has_its_column() {
    let config = config(&pool(KINDS), "{}");
    let message = json!({
        "small": -7, "wide": "0", "text": "täxt", "raw": "/wA=", "number": -0.5, "yes": true,
        "color": "GREEN", "inner": { "tags": ["x", ""] }, "list": ["-1", "9007199254740993"],
        "inners": [{ "a": 1 }, {}, { "tags": ["y"] }],
        "named": { "k": { "a": 2 } },
        "at": "2024-09-02T10:50:19.123456789Z", "took": "-1.5s", "maybe": "", "many": "0",
        "free": { "a": [1, null, "x"], "b": { "c": true } },
        "any": { "@type": "type.googleapis.com/t.Inner", "a": 3 },
        "nothing": {}, "right": { "a": 4 }, "times": ["1970-01-01T00:00:00Z"],
        "big": "18446744073709551615"
    });
    let mut row = row(&config, &message);
    // Text of JSON, whose fields have no order.
    let text = |value: &mut Value| -> Value {
        serde_json::from_str(value.take().as_str().expect("text")).expect("JSON")
    };
    assert_eq!(
        text(&mut row["free"]),
        json!({ "a": [1.0, null, "x"], "b": { "c": true } })
    );
    let any = json!({ "@type": "type.googleapis.com/t.Inner", "a": 3 });
    assert_eq!(text(&mut row["any"]), any);
    assert_eq!(
        row,
        json!({
            "small": -7, "wide": 0, "text": "täxt", "raw": "ff00", "number": -0.5, "yes": true,
            "color": "GREEN", "inner": { "a": 0, "tags": ["x", ""] },
            "list": [-1, 9_007_199_254_740_993_i64],
            "inners": [{ "a": 1, "tags": [] }, { "a": 0, "tags": [] }, { "a": 0, "tags": ["y"] }],
            "named": { "k": { "a": 2, "tags": [] } },
            "at": "2024-09-02T10:50:19.123456Z", "took": -1_500_000, "maybe": "", "many": 0,
            "free": null, "any": null, "nothing": true, "choice": "right", "left": null,
            "right": { "a": 4, "tags": [] }, "times": ["1970-01-01T00:00:00Z"],
            "big": u64::MAX
        })
    );
}

#[test]
fn flattened_messages_are_columns_of_their_own() {
    let source = r#"
        syntax = "proto3";
        package t;
        message Deep { string leaf = 1; }
        message Meta { int64 at = 1; Deep deep = 2; oneof kind { int32 x = 3; Deep y = 4; } }
        message M { Meta meta = 1; repeated Deep many = 2; }
    "#;
    let config = config(&pool(source), "flatten: true");
    let message =
        json!({ "meta": { "deep": {}, "y": { "leaf": "b" } }, "many": [{ "leaf": "c" }] });
    assert_eq!(
        row(&config, &message),
        json!({
            "meta_at": 0, "meta_deep_leaf": "", "meta_kind": "y", "meta_x": null,
            "meta_y_leaf": "b", "many": [{ "leaf": "c" }]
        })
    );
    let absent = row(&config, &json!({}));
    assert_eq!(
        absent["meta_at"],
        Value::Null,
        "a field of a message that is not there"
    );
    assert_eq!(absent["meta_deep_leaf"], Value::Null);
}

#[test]
fn enums_without_a_name_are_digits_and_may_be_numbers() {
    let pool = pool(KINDS);
    let named = config(
        &pool,
        "columns: { color: color, text: { path: color, type: varchar } }",
    );
    let numbers = config(&pool, "{ enums: number, columns: { color: color } }");
    // Field 7 as 1, 99, -1.
    let all: [&[u8]; 3] = [
        &[0x38, 1],
        &[0x38, 99],
        &[0x38, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
    ];
    let of = |config, key: &str| {
        let rows = to_json(&decode(config, &all).rows);
        rows.iter().map(|row| row[key].clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        of(&named, "color"),
        [json!("GREEN"), json!("99"), json!("-1")]
    );
    assert_eq!(of(&named, "text"), of(&named, "color"));
    assert_eq!(of(&numbers, "color"), [json!(1), json!(99), json!(-1)]);
}

#[test]
fn declared_defaults_and_groups_of_proto2() {
    let source = r#"
        syntax = "proto2";
        package t;
        message M {
            optional string name = 1 [default = "nobody"];
            optional int64 n = 2 [default = -5];
            optional int32 none = 3;
            required string must = 4;
            optional group Part = 5 { optional int32 x = 1; }
            repeated group Parts = 6 { optional int32 x = 1 [default = 7]; }
            optional bool b = 7 [default = true];
        }
    "#;
    let config = config(&pool(source), "{}");
    assert_eq!(
        row(&config, &json!({})),
        json!({ "name": "nobody", "n": -5, "none": null, "must": null, "part": null, "parts": [], "b": true })
    );
    let message = json!({
        "name": "", "n": 0, "must": "x", "part": { "x": 1 }, "parts": [{}, { "x": 2 }], "b": false
    });
    assert_eq!(
        row(&config, &message),
        json!({
            "name": "", "n": 0, "none": null, "must": "x", "part": { "x": 1 },
            "parts": [{ "x": 7 }, { "x": 2 }], "b": false
        })
    );
}

#[test]
fn a_message_inside_itself_is_kept_as_its_bytes() {
    let source = r#"
        syntax = "proto3";
        package t;
        message M { int32 n = 1; M next = 2; repeated M all = 3; }
    "#;
    let config = config(&pool(source), "{}");
    let message = json!({ "n": 1, "next": { "n": 2, "next": { "n": 3 } }, "all": [{ "n": 4 }] });
    assert_eq!(
        row(&config, &message),
        json!({ "n": 1, "next": "080212020803", "all": ["0804"] })
    );
    // What comes twice is merged, which for bytes is one behind the other.
    let twice = [0x12, 2, 0x08, 1, 0x12, 2, 0x08, 2, 0x12, 2, 0x08, 3];
    let rows = to_json(&decode(&config, &[twice]).rows);
    assert_eq!(rows[0]["next"], json!("080108020803"));
}

#[test]
fn rows_of_many_blocks_stand_in_their_order() {
    let config = config(&pool(KINDS), "{}");
    let all: Vec<Vec<u8>> = (0..2 * BLOCK + 3)
        .map(|n| {
            let list: Vec<String> = (0..n % 4).map(|k| (n * 10 + k).to_string()).collect();
            let inners: Vec<Value> = (0..n % 3)
                .map(|k| json!({ "a": k, "tags": [n.to_string()] }))
                .collect();
            let message = json!({ "small": n, "list": list, "inners": inners });
            if n == 100 {
                return vec![0xff];
            }
            bytes_of(&config, &message)
        })
        .collect();
    let decoded = decode(&config, &all);
    assert_eq!(decoded.rejects.len(), 1);
    let rows = to_json(&decoded.rows);
    assert_eq!(rows.len(), all.len() - 1);
    for row in &rows {
        let n = row["small"].as_u64().expect("number");
        let list: Vec<u64> = (0..n % 4).map(|k| n * 10 + k).collect();
        assert_eq!(row["list"], json!(list));
        let inners: Vec<Value> = (0..n % 3)
            .map(|k| json!({ "a": k, "tags": [n.to_string()] }))
            .collect();
        assert_eq!(row["inners"], json!(inners));
    }
}

#[test]
fn a_row_is_found_behind_rejects_by_any_decoder() {
    let config = config(&pool(KINDS), "columns: { text: text }");
    let schema = config.schema().expect("schema");
    let all: Vec<&[u8]> = vec![&[0x1a, 1, b'a'], &[0x1a, 9], &[0x1a, 1, b'b']];
    let raw = RawBatch {
        partition: SourcePartition::new("p"),
        range: OffsetRange { from: 100, to: 200 },
        payload: Payload::Messages(messages(&all)),
        last: false,
        tag: None,
        arrival: None,
    };
    let mut decoder = ProtobufDecoder::new(&config, &schema).expect("decoder");
    let decoded = decoder.decode(&raw).expect("decoded");
    assert_eq!(decoded.rejects[0].offset, 100);
    assert_eq!(decoded.rejects[0].raw, all[1]);
    let other = ProtobufDecoder::new(&config, &schema).expect("decoder");
    for decoder in [&decoder, &other] {
        let found = decoder.locate(&raw, &decoded, 1);
        assert_eq!((found.offset, &found.raw[..]), (110, all[2]));
        assert!(decoder.locate(&raw, &decoded, 2).error.contains("row=2"));
    }
}
