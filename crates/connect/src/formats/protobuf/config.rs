//! The settings of the format: descriptors, the message, and what becomes of it.

use std::{collections::BTreeMap, fmt, path::Path, path::PathBuf};

use arrow::datatypes::SchemaRef;
use calve_engine::{Error, Result};
use prost_reflect::{DescriptorPool, MessageDescriptor};
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, SeqAccess, value::MapAccessDeserializer},
    ser::SerializeMap,
};

use super::{frames::Framing, plan::Plan};
use crate::descriptors::{self, DescriptorConfig, OneOrMany, one_or_many};

/// Protobuf messages of one type, which a descriptor set or `.proto` files describe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProtobufConfig {
    /// The full name of the message, such as `shop.OrderEvent`. A source of services knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// A file that `protoc --include_imports --descriptor_set_out` or `buf build` made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub descriptor_set: Option<PathBuf>,
    /// `.proto` files, one or many: paths, or names as an `import` would write them.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "one_or_many"
    )]
    #[schemars(with = "OneOrMany<PathBuf>")]
    pub proto: Vec<PathBuf>,
    /// Folders in which imports are looked for, one or many. Default: the folder of each `.proto`
    /// file.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "one_or_many"
    )]
    #[schemars(with = "OneOrMany<PathBuf>")]
    pub include: Vec<PathBuf>,
    /// The columns, and which fields they are filled from. Default: a column for each field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Mapping>,
    /// Without `columns`: fields of messages inside the message become columns of their own, named
    /// by their path (`meta_closed_at`), and not one column of a struct.
    #[serde(skip_serializing_if = "is_false")]
    pub flatten: bool,
    /// What the values of enums become.
    #[serde(skip_serializing_if = "is_default")]
    pub enums: Enums,
    /// In files and on standard input: how the length before each message is written.
    #[serde(skip_serializing_if = "is_default")]
    pub framing: Framing,
    /// Descriptors that a source has found out; they go before those that are named.
    #[serde(skip)]
    pub pool: Option<DescriptorPool>,
}

/// What the values of enums become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Enums {
    /// Their names; the digits of a number that has none.
    #[default]
    Name,
    /// Their numbers.
    Number,
}

/// Columns in their order, with what each is filled from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping(pub Vec<(String, ColumnConfig)>);

/// What a column is filled from: the path of a field (`meta.closed_at`), several paths of which the
/// first counts that is there, or a map. Exactly one of `path`, `case`, `offset` and `ordinal`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, default, transform = bare_paths)]
pub struct ColumnConfig {
    /// Paths of fields, one or many.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "OneOrMany<String>")]
    pub path: Vec<String>,
    /// Paths of oneofs, one or many: the column holds the name of the field that is set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "OneOrMany<String>")]
    pub case: Vec<String>,
    /// With `case`: words that stand for the names of fields.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub names: BTreeMap<String, String>,
    /// With `case`: the word where no field is set; else null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absent: Option<String>,
    /// With `path`, for text: where no field is there, the word of a case that `names` has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<Otherwise>,
    /// The offset of the message in its source partition.
    #[serde(skip_serializing_if = "is_false")]
    pub offset: bool,
    /// The place of the message among those of its offset, from 0.
    #[serde(skip_serializing_if = "is_false")]
    pub ordinal: bool,
    /// The type of the column, when it is not that of the field.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// The text of the message is hexadecimal and the column holds bytes, or the other way round.
    #[serde(rename = "as", skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// A message without it is rejected, and the column is `not null`.
    #[serde(skip_serializing_if = "is_false")]
    pub required: bool,
}

/// Words for cases of oneofs, where a field is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Otherwise {
    /// Paths of oneofs, one or many.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(with = "OneOrMany<String>")]
    pub case: Vec<String>,
    /// The words, by the names of fields; null for those that are left out.
    #[serde(default)]
    pub names: BTreeMap<String, String>,
    /// The word where no field is set; else null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent: Option<String>,
}

/// How bytes are written as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// Hexadecimal digits.
    Hex,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_false(value: &bool) -> bool {
    !value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn bare_paths(schema: &mut schemars::Schema) {
    let table = std::mem::take(schema);
    *schema = schemars::json_schema!({
        "anyOf": [
            { "type": "string", "description": "The path of a field." },
            { "type": "array", "items": { "type": "string" }, "description": "Paths of fields: the first that is there." },
            table
        ]
    });
}

impl PartialEq for ProtobufConfig {
    fn eq(&self, other: &Self) -> bool {
        let all = |c: &Self| {
            (
                c.message.clone(),
                c.descriptors(),
                c.columns.clone(),
                c.flatten,
                c.enums,
                c.framing,
            )
        };
        let known = |c: &Self| c.pool.as_ref().map(DescriptorPool::encode_to_vec);
        all(self) == all(other) && known(self) == known(other)
    }
}

impl Eq for ProtobufConfig {}

impl ProtobufConfig {
    /// Where the descriptors are.
    pub fn descriptors(&self) -> DescriptorConfig {
        DescriptorConfig {
            descriptor_set: self.descriptor_set.clone(),
            proto: self.proto.clone(),
            include: self.include.clone(),
        }
    }

    /// Whether it can be known what the columns are, without asking a server.
    pub fn is_described(&self) -> bool {
        self.message.is_some() && (self.pool.is_some() || !self.descriptors().is_empty())
    }

    /// The message's type.
    ///
    /// # Errors
    /// `Config` when it is not named or not described, and what [`DescriptorConfig::load`] answers.
    pub fn descriptor(&self) -> Result<MessageDescriptor> {
        let Some(name) = &self.message else {
            return Err(Error::config("the format does not name the message")
                .hint("name it: `protobuf: { message: shop.OrderEvent, proto: shop.proto }`"));
        };
        let pool = match &self.pool {
            Some(pool) => pool.clone(),
            None => self.descriptors().load(Path::new(""))?,
        };
        descriptors::message(&pool, name)
    }

    /// The schema of the rows.
    ///
    /// # Errors
    /// `Config` for descriptors that cannot be read, paths that are not there, types that do not fit.
    pub fn schema(&self) -> Result<SchemaRef> {
        Ok(Plan::new(&self.descriptor()?, self)?.schema)
    }

    /// Checks what can be checked without descriptors.
    ///
    /// # Errors
    /// `Config`.
    pub(crate) fn validate(&self) -> Result<()> {
        self.descriptors().validate()?;
        let Some(columns) = &self.columns else {
            return Ok(());
        };
        if columns.0.is_empty() {
            return Err(Error::config("columns is empty")
                .hint("name at least one column, or leave `columns` out to have all fields"));
        }
        if self.flatten {
            return Err(Error::config("both `columns` and `flatten` are given")
                .hint("`flatten` is for the columns that there are without `columns`"));
        }
        for (name, column) in &columns.0 {
            column
                .validate()
                .map_err(|error| error.context(format!("column {name}")))?;
        }
        Ok(())
    }

    /// What must not change while a pipeline has checkpoints, apart from the schema.
    pub(crate) fn fingerprint(&self) -> String {
        let message = self.message.as_deref().unwrap_or_default();
        format!("protobuf message={message} framing={:?}", self.framing).to_lowercase()
    }
}

impl ColumnConfig {
    /// Filled from the fields at some paths.
    pub fn path(paths: &[&str]) -> Self {
        Self {
            path: paths.iter().map(|path| (*path).to_owned()).collect(),
            ..Self::default()
        }
    }

    fn validate(&self) -> Result<()> {
        let given = [
            !self.path.is_empty(),
            !self.case.is_empty(),
            self.offset,
            self.ordinal,
        ];
        if given.iter().filter(|given| **given).count() != 1 {
            return Err(
                Error::config("exactly one is needed of path, case, offset, ordinal")
                    .hint("a path alone may stand without braces: `closed_at: meta.closed_at`"),
            );
        }
        let stray = |key: &str, of: &str| {
            Err(Error::config(format!("`{key}` is given without `{of}`"))
                .hint(format!("leave `{key}` out")))
        };
        if self.case.is_empty() && !self.names.is_empty() {
            return stray("names", "case");
        }
        if self.case.is_empty() && self.absent.is_some() {
            return stray("absent", "case");
        }
        if self.path.is_empty() && self.otherwise.is_some() {
            return stray("otherwise", "path");
        }
        if self.path.is_empty() && self.encoding.is_some() {
            return stray("as", "path");
        }
        Ok(())
    }
}

impl Serialize for Mapping {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, column) in &self.0 {
            map.serialize_entry(name, column)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Mapping {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Mapping;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("columns with the paths of their fields, such as {at: meta.closed_at}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Mapping, A::Error> {
                let mut columns: Vec<(String, ColumnConfig)> = Vec::new();
                while let Some((name, column)) = map.next_entry::<String, ColumnConfig>()? {
                    if columns.iter().any(|(known, _)| *known == name) {
                        return Err(de::Error::custom(format!("column {name} is there twice")));
                    }
                    columns.push((name, column));
                }
                Ok(Mapping(columns))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

impl JsonSchema for Mapping {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Mapping".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let column = generator.subschema_for::<ColumnConfig>();
        schemars::json_schema!({
            "description": "Columns in their order, with what each is filled from.",
            "type": "object",
            "additionalProperties": column
        })
    }
}

/// The keys of a column in braces.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ColumnTable {
    #[serde(deserialize_with = "one_or_many")]
    path: Vec<String>,
    #[serde(deserialize_with = "one_or_many")]
    case: Vec<String>,
    names: BTreeMap<String, String>,
    absent: Option<String>,
    otherwise: Option<Otherwise>,
    offset: bool,
    ordinal: bool,
    #[serde(rename = "type")]
    of: Option<String>,
    #[serde(rename = "as")]
    encoding: Option<Encoding>,
    required: bool,
}

impl<'de> Deserialize<'de> for ColumnConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = ColumnConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the path of a field, several of them, or a map such as {case: event}")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<ColumnConfig, E> {
                Ok(ColumnConfig::path(&[path]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<ColumnConfig, A::Error> {
                let mut column = ColumnConfig::default();
                while let Some(path) = seq.next_element()? {
                    column.path.push(path);
                }
                Ok(column)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ColumnConfig, A::Error> {
                let table = ColumnTable::deserialize(MapAccessDeserializer::new(map))?;
                Ok(ColumnConfig {
                    path: table.path,
                    case: table.case,
                    names: table.names,
                    absent: table.absent,
                    otherwise: table.otherwise,
                    offset: table.offset,
                    ordinal: table.ordinal,
                    of: table.of,
                    encoding: table.encoding,
                    required: table.required,
                })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
