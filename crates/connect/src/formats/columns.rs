//! Declared columns, and schemas as text: for the pipeline file, for people, for the checkpoint.

use std::{borrow::Cow, fmt, sync::Arc};

use arrow::datatypes::{Field, Schema, SchemaRef};
use calve_engine::{Error, Result};
use schemars::{JsonSchema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess},
    ser::SerializeMap,
};

use super::types;

/// Columns with their types, in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns(pub Vec<(String, String)>);

impl Columns {
    /// The schema that they declare.
    ///
    /// # Errors
    /// `Config` for an unknown type.
    pub fn schema(&self) -> Result<SchemaRef> {
        if self.0.is_empty() {
            return Err(Error::config("columns is empty").hint(
                "declare at least one column, or leave `columns` out to have them inferred",
            ));
        }
        let fields = self.0.iter().map(|(name, text)| types::parse(name, text));
        Ok(Arc::new(Schema::new(
            fields.collect::<Result<Vec<Field>>>()?,
        )))
    }

    /// The declaration of a schema.
    ///
    /// # Errors
    /// `Schema` for a column of a type that calve does not take.
    pub fn of(schema: &Schema) -> Result<Self> {
        let columns = schema
            .fields()
            .iter()
            .map(|field| match types::declaration(field) {
                Some(text) => Ok((field.name().clone(), text)),
                None => Err(Error::schema(format!(
                    "column {}: type {} is not supported",
                    field.name(),
                    field.data_type()
                ))),
            });
        columns.collect::<Result<_>>().map(Self)
    }
}

/// A schema as lines for the pipeline file, each indented by `indent` blanks: `columns:` and below
/// it a line for each column. Columns of types that calve does not take are comments.
pub fn schema_to_yaml(schema: &Schema, indent: usize) -> String {
    let pad = " ".repeat(indent);
    let mut text = format!("{pad}columns:\n");
    for field in schema.fields() {
        // JSON strings are YAML strings; only what could be read as something else is quoted.
        let quote = |text: &str| {
            let word = |c: char| c.is_ascii_alphanumeric() || "_ ()".contains(c);
            let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
                && !text.ends_with(' ')
                && text.chars().all(word)
                && !["null", "true", "false", "yes", "no", "on", "off", "y", "n"]
                    .contains(&text.to_ascii_lowercase().as_str());
            if plain {
                text.to_owned()
            } else {
                serde_json::Value::from(text).to_string()
            }
        };
        let name = quote(field.name());
        match types::declaration(field) {
            Some(declared) => text.push_str(&format!("{pad}  {name}: {}\n", quote(&declared))),
            None => text.push_str(&format!("{pad}  # {name}: {}\n", field.data_type())),
        }
    }
    text
}

/// A schema as JSON, to be stored: `[["ts", "bigint not null"], …]`.
///
/// # Errors
/// `Schema` for a column of a type that calve does not take.
pub fn schema_to_json(schema: &Schema) -> Result<serde_json::Value> {
    Ok(serde_json::json!(Columns::of(schema)?.0))
}

/// The schema that [`schema_to_json`] made JSON of.
///
/// # Errors
/// `Corrupt` when it is not that.
pub fn schema_from_json(value: &serde_json::Value) -> Result<SchemaRef> {
    let columns = Vec::<(String, String)>::deserialize(value)
        .map_err(|e| Error::corrupt("stored schema cannot be read").because(e))?;
    let schema = Columns(columns).schema();
    schema.map_err(|e| Error::corrupt("stored schema cannot be read").because(e))
}

impl Serialize for Columns {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, text) in &self.0 {
            map.serialize_entry(name, text)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Columns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("columns with their types, such as {ts: bigint, name: varchar}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Columns, A::Error> {
                let mut columns: Vec<(String, String)> = Vec::new();
                while let Some((name, text)) = map.next_entry::<String, String>()? {
                    if columns.iter().any(|(known, _)| *known == name) {
                        return Err(de::Error::custom(format!("column {name} is there twice")));
                    }
                    columns.push((name, text));
                }
                Ok(Columns(columns))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

impl JsonSchema for Columns {
    fn schema_name() -> Cow<'static, str> {
        "Columns".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> schemars::Schema {
        json_schema!({
            "description": "Columns with their types: bigint, double, varchar, boolean, timestamp(ms), \
                timestamptz, decimal(10, 2), dictionary(string), list<T>, map<K, V>, struct<a: T>, \
                each optionally followed by `not null`.",
            "type": "object",
            "additionalProperties": { "type": "string" }
        })
    }
}
