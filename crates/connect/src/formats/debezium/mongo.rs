//! MongoDB's documents: extended JSON inside of a string.
//!
//! Values with a type of their own become plain ones: `{"$oid": "…"}` a string, `{"$date": …}` text in
//! ISO 8601, `{"$numberLong": "1"}` a number, `{"$numberDecimal": "1.5"}` a string, `{"$binary": …}` its
//! base64.

use serde_json::Value;

use crate::formats::json::text::Failure;

/// Writes the document with plain values, on one line.
pub(super) fn simplify(document: &str, into: &mut String) -> Result<(), Failure> {
    let wrong = || Failure::new("a document is not JSON");
    let trimmed = document.trim_ascii();
    // Without types, and on one line, it can stay as it is; whether it is JSON is found out later.
    let value: Value = serde_json::from_str(trimmed).map_err(|_| wrong())?;
    if !value.is_object() {
        return Err(Failure::new("a document is not an object"));
    }
    if !trimmed.contains("\"$") && !trimmed.contains('\n') {
        into.push_str(trimmed);
        return Ok(());
    }
    into.push_str(&plain(value).to_string());
    Ok(())
}

fn plain(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(plain).collect(),
        Value::Object(fields) => {
            if let Some(simple) = typed(&fields) {
                return simple;
            }
            Value::Object(fields.into_iter().map(|(k, v)| (k, plain(v))).collect())
        }
        simple => simple,
    }
}

/// The plain value of one with a type; none where it is an object like any other.
fn typed(fields: &serde_json::Map<String, Value>) -> Option<Value> {
    let (name, value) = fields.iter().next()?;
    if fields.len() > 1 || !name.starts_with('$') {
        // The old form of binary has two fields.
        return fields.get("$binary").filter(|v| v.is_string()).cloned();
    }
    match name.as_str() {
        "$oid" | "$numberDecimal" | "$symbol" | "$uuid" => Some(value.clone()),
        "$numberLong" | "$numberInt" | "$numberDouble" => {
            let text = value.as_str()?;
            let number = text.parse::<i64>().ok().map(Value::from);
            number.or_else(|| text.parse::<f64>().ok().map(Value::from))
        }
        "$date" => match value {
            Value::String(_) => Some(value.clone()),
            Value::Object(inner) => date(typed(inner)?.as_i64()?),
            other => date(other.as_i64()?),
        },
        "$binary" => value.get("base64").cloned(),
        _ => None,
    }
}

fn date(millis: i64) -> Option<Value> {
    let at = chrono::DateTime::from_timestamp_millis(millis)?;
    let text = at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    Some(Value::from(text))
}
