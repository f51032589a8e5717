//! The row of a delete by the key of its message. Not every source has an image of what it deleted:
//! MongoDB keeps none by itself, nor does a table of Postgres with REPLICA IDENTITY NOTHING. The key is in
//! the message all the same.
//!
//! Invariant: a value of the key is read as that of the same column in `before` or `after` would be, so
//! that the delete finds the row.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{infer::Object as Fields, mongo};
use crate::formats::json::object::Object;

/// Adds to `row`, which is an object, what it lacks of the columns that the key at `key` names; false: it
/// lacks nothing, or the key does not say. The change, without its schema, is at `change`.
#[cold]
pub(super) fn complete(
    row: &mut String,
    rows: &Object,
    text: &str,
    key: usize,
    change: usize,
) -> bool {
    let Some(known) = fields(row) else {
        return false;
    };
    let lacks = |name: &str| {
        let value = known.get(name);
        rows.has(name) && value.is_none_or(|value| value.get() == "null")
    };
    let of_document = || !rows.has("id") || mongo::is_source_of(&text[change..]);
    let mut added = Vec::new();
    for (name, value) in key_fields(&text[key..]).into_iter().flatten() {
        if value.get() == "null" {
            continue;
        }
        if name == "id" && rows.has(mongo::ID) && of_document() {
            added.extend(mongo::id_field(value).filter(|_| lacks(mongo::ID)));
        } else if lacks(&name) {
            added.push(format!("{}:{value}", serde_json::Value::from(name)));
        }
    }
    if added.is_empty() {
        return false;
    }
    // The last value of a name counts, so a null before it does not.
    let comma = if known.is_empty() { "" } else { "," };
    let end = row.rfind('}').unwrap_or_default();
    row.truncate(end);
    row.push_str(comma);
    row.push_str(&added.join(","));
    row.push('}');
    true
}

/// The fields of the object that `text` begins with.
fn fields(text: &str) -> Option<Fields<'_>> {
    Fields::deserialize(&mut serde_json::Deserializer::from_str(text)).ok()
}

/// The fields of a key, behind its schema or without.
fn key_fields(text: &str) -> Option<Fields<'_>> {
    let key = fields(text)?;
    let inside = key.get("payload").filter(|_| key.contains_key("schema"));
    match inside.map(|inside: &&RawValue| inside.get()) {
        Some(inside) => fields(inside),
        None => Some(key),
    }
}
