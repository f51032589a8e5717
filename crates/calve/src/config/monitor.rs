//! The `monitor` section: names and queries, in the order in which they were written.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess},
};

/// Monitor queries: name and SQL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MonitorConfig(pub(crate) Vec<(String, String)>);

impl Serialize for MonitorConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, sql)| (name, sql)))
    }
}

impl<'de> Deserialize<'de> for MonitorConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = MonitorConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("names with queries, such as {total: SELECT count(*) FROM events}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<MonitorConfig, A::Error> {
                let mut queries: Vec<(String, String)> = Vec::new();
                while let Some(query) = map.next_entry()? {
                    queries.push(query);
                }
                Ok(MonitorConfig(queries))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

impl JsonSchema for MonitorConfig {
    fn schema_name() -> Cow<'static, str> {
        "MonitorConfig".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Names and queries that aggregate the table `events`: the rows after the transform.",
            "type": "object",
            "additionalProperties": { "type": "string" }
        })
    }
}
