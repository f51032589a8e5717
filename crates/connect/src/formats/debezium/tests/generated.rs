//! Any envelopes, against a plain reading of them: serde_json for what is around the images, the JSON
//! decoder for the images and the metadata themselves.

use std::fmt::Write as _;

use arrow::compute::concat_batches;
use proptest::prelude::*;
use serde_json::{Value, value::RawValue};

use super::*;
use crate::formats::{json::JsonDecoder, types};

const COLUMNS: [(&str, &str); 3] = [("id", "bigint"), ("name", "varchar"), ("n", "double")];

/// The row of JSON, by the decoder for rows; none where it is a reject.
fn plain(columns: &[(&str, &str)], text: &str) -> Option<RecordBatch> {
    let fields = columns
        .iter()
        .map(|(name, of)| types::parse(name, of).expect("type"));
    let schema = Arc::new(arrow::datatypes::Schema::new(fields.collect::<Vec<_>>()));
    let mut decoder = JsonDecoder::new(schema).expect("decoder");
    let decoded = decoder.decode_lines(text.as_bytes(), 0).expect("rows");
    (decoded.rows.num_rows() == 1).then_some(decoded.rows)
}

enum Expected {
    Row(RecordBatch),
    Nothing,
    Reject,
}

type Parts<'a> = std::collections::HashMap<String, &'a RawValue>;

fn expected(line: &str) -> Expected {
    if line.trim().is_empty() || line.trim() == "null" {
        return Expected::Nothing;
    }
    let Ok(outer) = serde_json::from_str::<Parts>(line) else {
        return Expected::Reject;
    };
    if let (Some(payload), None) = (outer.get("payload"), outer.get("op")) {
        return match payload.get() {
            "null" => Expected::Nothing,
            text => match serde_json::from_str::<Parts>(text) {
                Ok(parts) => change(text, &parts).unwrap_or(Expected::Reject),
                Err(_) => Expected::Reject,
            },
        };
    }
    change(line, &outer).unwrap_or(Expected::Reject)
}

/// The row of an image, which may be a document in a string.
fn image_row(text: &str) -> Option<RecordBatch> {
    if !text.starts_with('"') {
        return plain(&COLUMNS, text);
    }
    let document: String = serde_json::from_str(text).expect("a string");
    let is_json = serde_json::from_str::<Value>(&document).is_ok();
    is_json.then(|| plain(&COLUMNS, &document))?
}

/// What a change should be; none where it is a reject.
fn change(text: &str, parts: &Parts) -> Option<Expected> {
    let present = |name: &str| parts.get(name).map(|v| v.get()).filter(|v| *v != "null");
    let metadata = plain(
        &[("ts_ms", "bigint"), ("source", "struct<lsn: bigint>")],
        text,
    )?;
    let op: String = serde_json::from_str(parts.get("op")?.get()).ok()?;
    // Whatever the operation, an image that is there must be one.
    let after = match present("after") {
        Some(after) => Some(image_row(after)?),
        None => None,
    };
    let empty = || plain(&COLUMNS, "{}");
    let image = match op.as_str() {
        "c" | "u" | "r" => after?,
        "d" => match present("before") {
            Some(before) => image_row(before)?,
            None => empty()?,
        },
        "t" => empty()?,
        "m" => return Some(Expected::Nothing),
        _ => return None,
    };
    let op: arrow::array::DictionaryArray<arrow::datatypes::Int32Type> =
        std::iter::once(op.as_str()).collect();
    let mut columns = image.columns().to_vec();
    columns.push(Arc::new(op));
    columns.push(Arc::clone(metadata.column(1).as_struct().column(0)));
    columns.push(Arc::clone(metadata.column(0)));
    Some(Expected::Row(
        RecordBatch::try_new(schema(), columns).expect("a row"),
    ))
}

fn schema() -> arrow::datatypes::SchemaRef {
    settings()
        .declared_schema()
        .expect("declared")
        .expect("schema")
}

fn settings() -> DebeziumConfig {
    config("{columns: {id: bigint, name: varchar, n: double}, metadata: [source.lsn, ts_ms]}")
}

fn scalar() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (-3_i64..100).prop_map(|n| n.to_string()),
        2 => "[a-zé\"\\\\/ {}:,]{0,24}".prop_map(|s| Value::from(s).to_string()),
        1 => Just("null".to_owned()),
        1 => Just("1.5".to_owned()),
        1 => Just("[1,{\"a\":\"}\"}]".to_owned()),
    ]
}

fn image() -> impl Strategy<Value = String> {
    let number = (0_i64..9).prop_map(|n| n.to_string());
    let text = "[a-z\\\\\"]{0,20}".prop_map(|s| Value::from(s).to_string());
    let fit = (number, text, any::<bool>()).prop_map(|(id, name, turned)| {
        if turned {
            format!(r#"{{"n":0.25,"name":{name},"id":{id}}}"#)
        } else {
            format!(r#"{{"id":{id},"name":{name},"n":2}}"#)
        }
    });
    let any = proptest::collection::vec(
        (
            prop_oneof![Just("id"), Just("name"), Just("n"), Just("x")],
            scalar(),
        ),
        0..5,
    );
    let any = any.prop_map(|mut pairs| {
        pairs.sort();
        pairs.dedup_by(|a, b| a.0 == b.0);
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
        format!("{{{}}}", pairs.join(","))
    });
    prop_oneof![6 => fit, 2 => any, 3 => Just("null".to_owned()), 1 => scalar()]
}

fn line() -> impl Strategy<Value = String> {
    let op = prop_oneof![
        8 => "[cudrtm]".prop_map(|op| format!("\"{op}\"")),
        1 => scalar(),
    ];
    let source = prop_oneof![
        4 => (0_i64..9).prop_map(|n| format!(r#"{{"version":"1","lsn":{n},"x":[]}}"#)),
        1 => scalar(),
        1 => Just("{}".to_owned()),
    ];
    let parts = (image(), image(), op, source, scalar(), scalar());
    let parts = parts.prop_flat_map(|(before, after, op, source, ts, extra)| {
        let pairs = vec![
            ("before", before),
            ("after", after),
            ("op", op),
            ("source", source),
            ("ts_ms", ts),
            ("transaction", extra),
        ];
        let kept = proptest::collection::vec(0..12_u8, pairs.len());
        (Just(pairs).prop_shuffle(), kept, 0..4_u8)
    });
    let parts = parts.prop_map(|(pairs, kept, spaces)| {
        let space = if spaces == 0 { " " } else { "" };
        let mut text = String::new();
        for ((key, value), kept) in pairs.iter().zip(kept) {
            if kept > 0 {
                let comma = if text.is_empty() { "{" } else { "," };
                let _ = write!(text, "{comma}{space}\"{key}\":{space}{value}{space}");
            }
        }
        if text.is_empty() {
            "{}".to_owned()
        } else {
            text + "}"
        }
    });
    let schema = r#"{"type":"struct","fields":[]}"#;
    (parts, 0..12_u8, any::<proptest::sample::Index>()).prop_map(
        move |(line, how, cut)| match how {
            0 => format!("{{\"schema\":{schema},\"payload\":{line}}}"),
            1 => format!("{{ \"payload\" : {line} , \"schema\" : null }}"),
            2 => "null".to_owned(),
            3 => String::new(),
            4 => {
                let at = cut.index(line.len());
                line.get(..at).unwrap_or_default().to_owned()
            }
            _ => line,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_envelopes(lines in proptest::collection::vec(line(), 1..40)) {
        let mut decoder = decoder(&settings());
        let text = lines.join("\n");
        // The second time it has learned the keys.
        for _ in 0..2 {
            let decoded = decoder.decode_lines(text.as_bytes(), 0).expect("rows");
            let (mut rows, mut rejects, mut offset) = (Vec::new(), Vec::new(), 0);
            for line in &lines {
                match expected(line) {
                    Expected::Row(row) => rows.push(row),
                    Expected::Nothing => {}
                    Expected::Reject => rejects.push(offset as u64),
                }
                offset += line.len() + 1;
            }
            let offsets: Vec<u64> = decoded.rejects.iter().map(|reject| reject.offset).collect();
            prop_assert_eq!(offsets, rejects);
            let rows = concat_batches(&schema(), &rows).expect("rows");
            for (ours, theirs) in decoded.rows.columns().iter().zip(rows.columns()) {
                // Dictionaries may differ where their values do not.
                let plain = |array: &arrow::array::ArrayRef| match array.data_type() {
                    arrow::datatypes::DataType::Dictionary(_, of) => arrow::compute::cast(array, of),
                    _ => Ok(Arc::clone(array)),
                };
                prop_assert_eq!(&plain(ours).expect("cast"), &plain(theirs).expect("cast"));
            }
        }
    }
}
