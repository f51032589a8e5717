//! A message with its key: `{"key": …, "value": …}` on one line, as tools write topics to files. The
//! value is the change; the key says which columns identify a row, and of a delete their values where
//! the change has none (`deleted`).
//!
//! Key and value may each stand behind a schema. Only lines whose first name is `key` are looked at.

use calve_engine::{Error, Payload, RawBatch, Result};
use serde::Deserialize;

use super::{
    Failure,
    infer::{Object, lines},
    mongo,
};
use crate::formats::{
    infer::{Kind, SAMPLE_EVENTS},
    json::text::{byte, colon, skip_space, skip_value},
};

/// What the names of a value may be.
const VALUES: [&[u8]; 2] = [b"\"value\"", b"\"payload\""];

/// Where key and value of a pair begin, and where the pair ends.
pub(super) struct Pair {
    pub(super) key: usize,
    pub(super) value: usize,
    pub(super) end: usize,
}

/// The pair at `at`. None: the line is something else.
#[inline]
pub(super) fn pair(bytes: &[u8], at: usize) -> Option<Pair> {
    let first = skip_space(bytes, at + 1);
    if byte(bytes, at) != b'{' || !bytes[first.min(bytes.len())..].starts_with(b"\"key\"") {
        return None;
    }
    parts(bytes, first).ok().flatten()
}

#[cold]
fn parts(bytes: &[u8], first: usize) -> Result<Option<Pair>, Failure> {
    let key = colon(bytes, first + b"\"key\"".len())?;
    // A table may have a column of this name, of numbers or texts.
    if !matches!(byte(bytes, key), b'{' | b'n') {
        return Ok(None);
    }
    let mut at = skip_space(bytes, skip_value(bytes, key)?);
    let mut found = None;
    while byte(bytes, at) == b',' {
        let name = skip_space(bytes, at + 1);
        let end = skip_value(bytes, name)?;
        let value = colon(bytes, end)?;
        if VALUES.contains(&&bytes[name..end]) {
            found = Some(value);
        }
        at = skip_space(bytes, skip_value(bytes, value)?);
    }
    let end = at + 1;
    let pair = found.map(|value| Pair { key, value, end });
    Ok(pair.filter(|_| byte(bytes, at) == b'}'))
}

/// The value of a pair, where an event is one.
pub(super) fn value_of<'a>(event: &Object<'a>, line: &str) -> Option<&'a str> {
    let is_pair = pair(line.as_bytes(), line.len() - line.trim_start().len()).is_some();
    let value = event.get("value").or_else(|| event.get("payload"));
    value.filter(|_| is_pair).map(|value| value.get())
}

/// Schema of a key, as far as it matters.
#[derive(Deserialize)]
struct KeySchema {
    #[serde(default)]
    fields: Vec<KeyField>,
}

#[derive(Deserialize)]
struct KeyField {
    field: String,
}

/// The columns of the keys of the first messages, in their order; none: there are no keys. MongoDB's
/// keys call `id` what is `_id` in the documents.
///
/// # Errors
/// `Config` when the keys have different columns.
pub(in crate::formats) fn key_columns(first: &[RawBatch]) -> Result<Option<Vec<String>>> {
    let mut known: Option<Vec<String>> = None;
    let mut of_mongodb = false;
    let mut events = 0;
    'batches: for raw in first {
        let Payload::Bytes(text) = &raw.payload else {
            continue;
        };
        for line in lines(text, raw.range.from) {
            let Some((columns, value)) = columns_of(line) else {
                continue;
            };
            // A tombstone does not say whose it is.
            of_mongodb |= mongo::is_source_of(value);
            match &known {
                Some(known) if *known != columns => {
                    return Err(Error::config(format!(
                        "the keys of the messages have different columns: columns={} others={}",
                        known.join(","),
                        columns.join(",")
                    ))
                    .hint("name the columns that identify a row, for example `key: [id]`"));
                }
                _ => known = Some(columns),
            }
            events += 1;
            if events == SAMPLE_EVENTS {
                break 'batches;
            }
        }
    }
    if of_mongodb && known.as_ref().is_some_and(|columns| *columns == ["id"]) {
        known = Some(vec![mongo::ID.to_owned()]);
    }
    Ok(known)
}

/// The columns of a message's key, and its value.
fn columns_of(line: &str) -> Option<(Vec<String>, &str)> {
    let event: Object = serde_json::from_str(line).ok()?;
    let value = value_of(&event, line)?;
    let key = event.get("key")?.get();
    let inner: Object = serde_json::from_str(key).ok()?;
    let mut columns = match (inner.get("schema"), inner.get("payload")) {
        (Some(schema), Some(payload)) => match serde_json::from_str::<KeySchema>(schema.get()) {
            Ok(schema) => schema.fields.into_iter().map(|field| field.field).collect(),
            // A schema of null: the values say it.
            Err(_) => names(payload.get())?,
        },
        _ => names(key)?,
    };
    // What Debezium adds when it routes several tables into one topic.
    columns.retain(|name| !name.starts_with("__dbz__"));
    (!columns.is_empty()).then_some((columns, value))
}

fn names(object: &str) -> Option<Vec<String>> {
    match Kind::of(object)? {
        Kind::Struct(fields) => Some(fields.into_iter().map(|(name, _)| name).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::testing::raw;

    fn key(lines: &[&str]) -> Result<Option<Vec<String>>> {
        key_columns(&[raw(&lines.join("\n"), 0)])
    }

    #[test]
    fn keys_are_found_with_and_without_schema() {
        let plain = r#"{"key":{"tenant":1,"id":2},"value":{"op":"d","before":{"id":2}}}"#;
        let schema =
            r#"{ "key": {"schema":{"type":"struct","fields":[{"type":"int32","field":"tenant"},
            {"type":"int64","field":"id"}]},"payload":{"id":2,"tenant":1}}, "value": null }"#
                .replace('\n', " ");
        let none = r#"{"key":{"schema":null,"payload":{"tenant":1,"id":2,"__dbz__physicalTableIdentifier":"a"}},"payload":null}"#;
        let columns = Some(vec!["tenant".to_owned(), "id".to_owned()]);
        for lines in [&[plain][..], &[&schema], &[none], &["null", plain, &schema]] {
            assert_eq!(key(lines).expect("keys"), columns, "{lines:?}");
        }
    }

    #[test]
    fn the_key_of_a_document_is_its_id() {
        let id = r#"{"id":"{\"$oid\":\"63979f0c1f44e0b0a5b1f7d1\"}"}"#;
        let of = |value: &str| format!(r#"{{"key":{id},"value":{value}}}"#);
        let source = r#""source":{"version":"3.0.0.Final","connector":"mongodb"}"#;
        let delete = of(&format!(
            r#"{{"before":null,"after":null,{source},"op":"d"}}"#
        ));
        let schema = of(&format!(
            r#"{{"schema":{{}},"payload":{{"op":"d",{source}}}}}"#
        ));
        let bare = of(r#"{"_id":"63979f0c1f44e0b0a5b1f7d1","__deleted":"true"}"#);
        let tombstone = of("null");
        for lines in [[&tombstone, &delete], [&schema, &tombstone], [&bare, &bare]] {
            let found = key(&lines.map(String::as_str)).expect("keys");
            assert_eq!(found, Some(vec!["_id".to_owned()]), "{lines:?}");
        }
        let row = of(r#"{"op":"c","after":{"id":1},"source":{"connector":"mysql"}}"#);
        let found = key(&[&tombstone, &row]).expect("keys");
        assert_eq!(found, Some(vec!["id".to_owned()]));
    }

    #[test]
    fn without_keys_there_are_none_and_different_ones_are_refused() {
        let lines = [
            r#"{"before":null,"after":{"id":1},"op":"c"}"#,
            r#"{"key":null,"value":{"op":"c","after":{"id":1}}}"#,
            r#"{"key":7,"value":"a row with such columns"}"#,
            "not JSON",
        ];
        assert_eq!(key(&lines).expect("no keys"), None);
        let two = [
            r#"{"key":{"id":1},"value":null}"#,
            r#"{"key":{"code":"a"},"value":null}"#,
        ];
        let error = key(&two).expect_err("two keys").to_string();
        assert!(error.contains("columns=id others=code"), "{error}");
    }
}
