//! MongoDB's documents: extended JSON inside of a string.
//!
//! Values with a type of their own become plain ones: `{"$oid": "…"}` a string, `{"$date": …}` text in
//! ISO 8601, `{"$numberLong": "1"}` and `{"$numberDecimal": "1.50"}` numbers with all their digits,
//! `{"$binary": …}` its base64.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use crate::formats::json::text::Failure;

/// The field that identifies a document. The keys of messages call it `id`.
pub(super) const ID: &str = "_id";

/// How deep a document may nest; MongoDB allows 100.
const MAX_DEPTH: usize = 128;

/// What of a change tells that it is about a document: the connector's name, or in a row without envelope
/// the field of the id.
#[derive(Deserialize)]
struct Change<'a> {
    #[serde(borrow)]
    source: Option<Source<'a>>,
    #[serde(borrow)]
    payload: Option<Box<Change<'a>>>,
    #[serde(rename = "_id")]
    own_id: Option<IgnoredAny>,
    id: Option<IgnoredAny>,
    op: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Source<'a> {
    #[serde(borrow)]
    connector: Option<Cow<'a, str>>,
}

/// Whether MongoDB's connector wrote the change that `text` begins with, as far as it tells.
pub(super) fn is_source_of(text: &str) -> bool {
    let mut json = serde_json::Deserializer::from_str(text);
    let Ok(Some(mut change)) = Option::<Change>::deserialize(&mut json) else {
        return false;
    };
    if let Some(inside) = change.payload.take() {
        change = *inside;
    }
    let connector = change.source.and_then(|source| source.connector);
    let bare = change.op.is_none() && change.own_id.is_some() && change.id.is_none();
    connector.map_or(bare, |name| name == "mongodb")
}

/// The field [`ID`] of a document whose id a key writes as `id`: extended JSON inside of a string, read as
/// the documents are. None where it nests too deep.
pub(super) fn id_field(id: &RawValue) -> Option<String> {
    let inside = serde_json::from_str::<String>(id.get());
    let is_json = |text: &String| serde_json::from_str::<&RawValue>(text).is_ok();
    // What is no JSON within a string is a text of its own.
    let value = inside.ok().filter(is_json);
    let value = value.as_deref().unwrap_or(id.get());
    let mut field = format!("\"{ID}\":");
    plain(value.trim(), &mut field, 0)?;
    Some(field)
}

/// Writes the document with plain values, on one line.
pub(super) fn simplify(document: &str, into: &mut String) -> Result<(), Failure> {
    let wrong = || Failure::new("a document is not an object of JSON");
    let raw: &RawValue = serde_json::from_str(document).map_err(|_| wrong())?;
    let text = raw.get();
    if !text.starts_with('{') {
        return Err(wrong());
    }
    if !text.contains("\"$") && !text.contains('\n') {
        into.push_str(text);
        return Ok(());
    }
    plain(text, into, 0).ok_or_else(wrong)
}

/// Writes a value; none where it nests too deep.
fn plain(text: &str, into: &mut String, depth: usize) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
    let mut comma = "";
    match text.as_bytes().first()? {
        b'{' => {
            let fields: Pairs = serde_json::from_str(text).ok()?;
            if let Some(simple) = typed(&fields) {
                into.push_str(&simple);
                return Some(());
            }
            into.push('{');
            for (name, value) in &fields.0 {
                into.push_str(comma);
                into.push_str(&Value::from(name.as_ref()).to_string());
                into.push(':');
                plain(value.get(), into, depth + 1)?;
                comma = ",";
            }
            into.push('}');
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            into.push('[');
            for item in items {
                into.push_str(comma);
                plain(item.get(), into, depth + 1)?;
                comma = ",";
            }
            into.push(']');
        }
        _ => into.push_str(text),
    }
    Some(())
}

/// The plain value of one with a type, in JSON; none where it is an object like any other.
fn typed(fields: &Pairs) -> Option<String> {
    let value: Value = match fields.0.as_slice() {
        [(name, value)] if name.starts_with('$') => serde_json::from_str(value.get()).ok()?,
        // The old form of binary has two fields.
        [(name, value), (other, _)] if name == "$binary" && other == "$type" => {
            return Some(value.get().to_owned());
        }
        _ => return None,
    };
    let simple = match fields.0[0].0.as_ref() {
        "$oid" | "$symbol" | "$uuid" => Some(value),
        "$numberLong" | "$numberInt" | "$numberDouble" | "$numberDecimal" => {
            let text = value.as_str()?;
            let digits = text.starts_with(|c: char| c == '-' || c.is_ascii_digit());
            // What is no number of JSON (NaN, Infinity) stays text, and fits no number.
            if digits && serde_json::from_str::<&RawValue>(text).is_ok() {
                return Some(text.to_owned());
            }
            Some(value)
        }
        "$date" => match &value {
            Value::String(_) => Some(value),
            Value::Object(inner) => date(inner.get("$numberLong")?.as_str()?.parse().ok()?),
            other => date(other.as_i64()?),
        },
        "$binary" => value.get("base64").cloned(),
        _ => None,
    };
    simple.map(|value| value.to_string())
}

fn date(millis: i64) -> Option<Value> {
    let at = chrono::DateTime::from_timestamp_millis(millis)?;
    let text = at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    Some(Value::from(text))
}

/// The fields of an object, in their order.
struct Pairs<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}
