//! Choices in the pipeline file: `file: {path: …}`, `json: {}`, or the bare name `json`.
//!
//! A derived enum would need YAML tags (`!json`); here a map with one key chooses, as design.md
//! writes it. The variants are the optional fields of a table, so that serde checks the keys.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, value::MapAccessDeserializer},
};

/// A choice of one variant.
pub(crate) trait OneOf: Sized {
    /// One optional field for each variant.
    type Table: for<'de> Deserialize<'de>;
    /// The names of the variants.
    const NAMES: &'static [&'static str];

    /// The variant `name` with its defaults; none when it has none or is not known.
    fn named(name: &str) -> Option<Self>;

    /// The variants that were given.
    fn given(table: Self::Table) -> Vec<Self>;
}

/// Reads a choice, from a name or a map with one key.
pub(crate) fn deserialize<'de, T: OneOf, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
    struct Visitor<T>(PhantomData<T>);

    impl<'de, T: OneOf> de::Visitor<'de> for Visitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "one of {}", T::NAMES.join(", "))
        }

        fn visit_str<E: de::Error>(self, name: &str) -> Result<T, E> {
            if let Some(found) = T::named(name) {
                return Ok(found);
            }
            if T::NAMES.contains(&name) {
                return Err(E::custom(format!(
                    "`{name}` needs settings: `{name}: {{…}}`"
                )));
            }
            Err(E::unknown_variant(name, T::NAMES))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            let table = T::Table::deserialize(MapAccessDeserializer::new(map))?;
            let mut given = T::given(table);
            match (given.pop(), given.is_empty()) {
                (Some(one), true) => Ok(one),
                _ => Err(de::Error::custom(format!(
                    "exactly one is needed of {}",
                    T::NAMES.join(", ")
                ))),
            }
        }
    }

    d.deserialize_any(Visitor(PhantomData))
}

/// A key without a value (`json:`) means its defaults.
pub(crate) fn or_default<'de, T, D>(d: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de> + Default,
    D: Deserializer<'de>,
{
    Ok(Some(Option::<T>::deserialize(d)?.unwrap_or_default()))
}

/// Adds the bare names to a derived JSON Schema.
pub(crate) fn allow_names(schema: &mut schemars::Schema, names: &[&str]) {
    if let Some(serde_json::Value::Array(choices)) = schema.get_mut("oneOf") {
        choices.push(serde_json::json!({ "type": "string", "enum": names }));
    }
}
