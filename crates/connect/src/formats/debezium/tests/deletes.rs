//! Deletes by the key of their message, where no image of the row came with them.

use serde_json::{Value, json};

use super::{DebeziumConfig, config, decode, errors, raw, values};
use crate::formats::debezium::{DebeziumDecoder, infer, key_columns};

/// What the connector's converter makes of a key or value with its schema.
fn with_schema(payload: &Value, fields: &Value) -> Value {
    json!({ "schema": { "type": "struct", "fields": fields, "optional": false }, "payload": payload })
}

/// A message of MongoDB: `id` as the key has it, the document as strings of extended JSON.
fn message(id: &str, op: &str, before: Option<&Value>, after: Option<&Value>) -> Value {
    let text = |document: Option<&Value>| document.map(ToString::to_string);
    json!({
        "key": { "id": id },
        "value": {
            "before": text(before), "after": text(after), "updateDescription": null,
            "source": {
                "version": "3.0.0.Final", "connector": "mongodb", "name": "fulfillment",
                "ts_ms": 1_558_965_508_000_u64, "snapshot": "false", "db": "inventory", "rs": "rs0",
                "collection": "customers", "ord": 31, "lsid": null, "txnNumber": null
            },
            "op": op, "ts_ms": 1_558_965_515_240_u64, "transaction": null
        }
    })
}

/// Ids as documents have them, and as keys do.
fn ids() -> [(Value, &'static str); 8] {
    [
        (
            json!({ "$oid": "596e275826f08b2730779e1f" }),
            r#"{"$oid": "596e275826f08b2730779e1f"}"#,
        ),
        (json!(1004), "1004"),
        (
            json!({ "$numberLong": "1004" }),
            r#"{"$numberLong": "1004"}"#,
        ),
        (
            json!({ "$numberLong": "9007199254740993" }),
            r#"{"$numberLong":"9007199254740993"}"#,
        ),
        (json!("1004"), r#""1004""#),
        (json!("a \"quoted\" name"), r#""a \"quoted\" name""#),
        (
            json!({ "$date": 1_558_965_508_123_u64 }),
            r#"{ "$date" : 1558965508123 }"#,
        ),
        (
            json!({ "$binary": { "base64": "AQID", "subType": "04" } }),
            r#"{"$binary": {"base64": "AQID", "subType": "04"}}"#,
        ),
    ]
}

#[test]
fn documents_of_mongodb_are_deleted_by_their_keys() {
    for (of_document, of_key) in ids() {
        let document =
            |name: &str| json!({ "_id": of_document, "name": name, "n": { "$numberLong": "1" } });
        let (first, second) = (document("Anne"), document("Anne Marie"));
        let lines = [
            message(of_key, "c", None, Some(&first)),
            message(of_key, "u", None, Some(&second)),
            message(of_key, "d", None, None),
            // With an image of what was there, which says it all.
            message(of_key, "d", Some(&second), None),
            json!({ "key": { "id": of_key }, "value": null }),
        ];
        let bare = lines.clone().map(|line| line.to_string()).join("\n");
        let id_field = json!([{ "type": "string", "optional": false, "field": "id" }]);
        let images = json!([
            { "type": "string", "optional": true, "name": "io.debezium.data.Json", "field": "before" },
            { "type": "string", "optional": true, "name": "io.debezium.data.Json", "field": "after" },
            { "type": "string", "optional": false, "field": "op" }
        ]);
        let wrapped = lines.map(|line| {
            let value = with_schema(&line["value"], &images);
            json!({ "key": with_schema(&line["key"], &id_field), "value": value }).to_string()
        });
        for text in [bare, wrapped.join("\n")] {
            let batch = [raw(&text, 0)];
            let config = config("{ metadata: [source.ord] }");
            let schema = infer(&config, &batch).expect("columns");
            assert_eq!(
                key_columns(&batch).expect("keys"),
                Some(vec!["_id".to_owned()])
            );
            let mut decoder = DebeziumDecoder::new(&config, schema).expect("decoder");
            let decoded = decoder.decode_lines(text.as_bytes(), 0).expect("rows");
            assert_eq!(errors(&decoded), [""; 0], "{text}");
            assert_eq!(values(&decoded.rows, "_op"), ["c", "u", "d", "d"]);
            assert_eq!(values(&decoded.rows, "source.ord"), ["31"; 4]);
            let found = values(&decoded.rows, "_id");
            assert_ne!(found[0], "null");
            assert!(found.iter().all(|id| *id == found[0]), "{found:?}");
            let names = ["Anne", "Anne Marie", "null", "Anne Marie"];
            assert_eq!(values(&decoded.rows, "name"), names);
        }
    }
}

#[test]
fn a_document_s_own_field_id_is_not_its_key() {
    let both = json!({ "_id": 7, "id": "seven" });
    let lines = [
        message("7", "c", None, Some(&both)),
        message("7", "d", None, None),
    ];
    let text = lines.map(|line| line.to_string()).join("\n");
    let decoded = decode("{ columns: { _id: int, id: varchar } }", &text);
    assert_eq!(values(&decoded.rows, "_id"), ["7", "7"]);
    assert_eq!(values(&decoded.rows, "id"), ["seven", "null"]);
    // A table of rows may have a column of this name, too.
    let row = r#"{"key":{"id":7},"value":{"before":null,"op":"d","source":{"connector":"mysql"}}}"#;
    let decoded = decode("{ columns: { _id: int, id: int } }", row);
    assert_eq!(values(&decoded.rows, "_id"), ["null"]);
    assert_eq!(values(&decoded.rows, "id"), ["7"]);
    // What a transform left of the key: the id itself, and not as JSON.
    let oid = "596e275826f08b2730779e1f";
    let line = format!(r#"{{"key":{{"id":"{oid}"}},"value":{{"op":"d"}}}}"#);
    let decoded = decode("{ columns: { _id: varchar } }", &line);
    assert_eq!(values(&decoded.rows, "_id"), [oid]);
}

#[test]
fn rows_without_an_image_are_deleted_by_their_keys() {
    let time = r#"{"type":"int64","name":"io.debezium.time.Timestamp","field":"at"}"#;
    let row = format!(
        r#"{{"type":"struct","field":"before","fields":[{{"type":"int32","field":"id"}},{time}]}}"#
    );
    let schema = format!(r#"{{"type":"struct","fields":[{row}]}}"#);
    let key = r#"{"id":4,"at":1000,"__dbz__physicalTableIdentifier":"a.b","other":1}"#;
    let lines = [
        // Postgres with REPLICA IDENTITY NOTHING.
        r#"{"key":{"id":1,"at":1000},"value":{"before":null,"op":"d"}}"#.to_owned(),
        // An image that lacks a column of the key, or has no value of it.
        r#"{"key":{"id":2,"at":1000},"value":{"op":"d","before":{"id":2,"at":null,"v":"a"}}}"#
            .into(),
        r#"{"key":{"id":3,"at":1000},"value":{"op":"d","before":{ }}}"#.into(),
        // The change's schema says how the key's values are written, too.
        format!(r#"{{"key":{key},"value":{{"schema":{schema},"payload":{{"op":"d"}}}}}}"#),
        // The image counts where it has a value.
        r#"{"key":{"id":9},"value":{"op":"d","before":{"id":5,"at":1000,"v":"b"}}}"#.into(),
        // What has no key either.
        r#"{"key":null,"value":{"op":"d","before":null}}"#.into(),
        r#"{"op":"d","before":null}"#.into(),
        // A key counts for its own message alone, and for deletes alone.
        r#"{"key":{"id":7},"value":{"op":"x"}}"#.into(),
        r#"{"op":"d"}"#.into(),
        r#"{"key":{"id":8},"value":{"op":"c","after":{"v":"c"}}}"#.into(),
        r#"{"key":{"id":"x"},"value":{"op":"d"}}"#.into(),
    ];
    let yaml = "{ time: connect, columns: { id: int, at: timestamp(us), v: varchar } }";
    let decoded = decode(yaml, &lines.join("\n"));
    let said = errors(&decoded);
    assert_eq!(said.len(), 2, "{said:?}");
    assert_eq!(said[0], "op is none of c, u, d, r, t, m");
    assert!(said[1].contains("field=key.id"), "{said:?}");
    assert_eq!(
        values(&decoded.rows, "id"),
        ["1", "2", "3", "4", "5", "null", "null", "null", "null"]
    );
    let at = values(&decoded.rows, "at");
    assert!(
        at[..5].iter().all(|at| at == "1970-01-01T00:00:01"),
        "{at:?}"
    );
    assert_eq!(at[5..], ["null"; 4]);
    let v = values(&decoded.rows, "v");
    assert_eq!([&v[1], &v[2], &v[4]], ["a", "null", "b"]);
    // Strict or not, a key with more than the columns is no reason to look for new ones.
    let schema = DebeziumConfig::default();
    let schema = infer(&schema, &[raw(r#"{"op":"c","after":{"id":1}}"#, 0)]).expect("columns");
    let format = crate::formats::FormatConfig::Debezium(DebeziumConfig::default());
    let evolve = Some(crate::formats::Evolve::default());
    let mut decoder = format.decoder_with(schema, evolve, None).expect("decoder");
    let batch = raw(&format!(r#"{{"key":{key},"value":{{"op":"d"}}}}"#), 0);
    let decoded = decoder.decode(&batch).expect("rows");
    assert_eq!(values(&decoded.rows, "id"), ["4"]);
    assert!(decoder.evolved(&batch).expect("looked").is_none());
}
