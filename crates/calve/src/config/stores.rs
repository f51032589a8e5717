//! The section `stores`: options of object stores by the beginning of their URLs.

use std::{collections::BTreeMap, fmt};

use calve_engine::{
    Error, Result, Secret,
    stores::{Named, options::Kind, shown},
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::suggest::nearest;

/// Options of object stores, by the beginning of the URLs that they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct StoresConfig(BTreeMap<String, BTreeMap<String, OptionValue>>);

/// A value as text; never shown, as it may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
struct OptionValue(Secret);

impl JsonSchema for OptionValue {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StoreOption".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["string", "boolean", "integer"] })
    }
}

impl<'de> Deserialize<'de> for OptionValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Scalar)
    }
}

struct Scalar;

impl de::Visitor<'_> for Scalar {
    type Value = OptionValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number or a boolean")
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<OptionValue, E> {
        Ok(OptionValue(Secret::new(value)))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<OptionValue, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<OptionValue, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<OptionValue, E> {
        self.visit_str(&value.to_string())
    }
}

impl StoresConfig {
    /// Checks prefixes and the names of options.
    ///
    /// # Errors
    /// `Config`, with the nearest name.
    pub(super) fn validate(&self) -> Result<()> {
        for (prefix, options) in &self.0 {
            let Some(kind) = Kind::of_prefix(prefix) else {
                return Err(Error::config(format!(
                    "not the beginning of a URL of an object store: path=stores prefix={}",
                    shown(prefix)
                ))
                .hint("for example `s3://bucket`: s3://, gs://, az:// and https:// are known"));
            };
            let names = kind.names();
            let unknown = options.keys().find(|name| !kind.knows(name));
            if let Some(name) = unknown {
                let error = Error::config(format!(
                    "unknown option of a store: path=stores prefix={} option={name}",
                    shown(prefix)
                ));
                let known = names.join(", ");
                return Err(match nearest(name, &names) {
                    Some(near) => error.hint(format!("did you mean `{near}`? known: {known}")),
                    None => error.hint(format!("known: {known}")),
                });
            }
        }
        Ok(())
    }

    /// What opens the stores.
    pub(crate) fn named(&self) -> Vec<Named> {
        let text = |value: &OptionValue| value.0.expose().to_owned();
        let entries = self.0.iter().map(|(prefix, options)| {
            let options = options
                .iter()
                .map(|(name, value)| (name.clone(), text(value)));
            (prefix.clone(), options.collect())
        });
        entries.collect()
    }
}
