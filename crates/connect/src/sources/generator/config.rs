//! The settings of the generator.

use std::{borrow::Cow, fmt, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use calve_engine::{Error, Result};
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess},
    ser::SerializeMap,
};

use super::changes::{Envelope, GeneratedChanges};
use crate::{
    one_of::{self, OneOf, or_default},
    units::{ByteSize, Span},
};

/// 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600;

/// Made-up events: the same for the same settings, from any offset, on any machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GeneratorConfig {
    /// What the events look like.
    pub kind: GeneratorKind,
    /// Fields of the events, for kind `template`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fields: Option<TemplateFields>,
    /// What the changes are, for kind `changes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<GeneratedChanges>,
    /// Other seeds make other events.
    pub seed: u64,
    /// Events per second of processing time; without it as fast as it goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Events in all; without it endless.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Event time of the first event, in seconds after 1970-01-01T00:00:00Z.
    pub start_ts: i64,
    /// Events per second of event time, in each source partition.
    pub density: f64,
    /// Events come up to this much before or behind their turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_of_order: Option<Span>,
    /// Some events come much later than their event time says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<Late>,
    /// Fraction of events that are sent twice.
    pub duplicates: f64,
    /// Fraction of events that are damaged, and no JSON.
    pub malformed: f64,
    /// Source partitions.
    pub partitions: u32,
    /// Bytes of text that make a batch.
    pub batch_bytes: ByteSize,
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        Self {
            kind: GeneratorKind::Sales,
            fields: None,
            changes: None,
            seed: 0,
            rate: None,
            count: None,
            start_ts: START,
            density: 1000.0,
            out_of_order: None,
            late: None,
            duplicates: 0.0,
            malformed: 0.0,
            partitions: 1,
            batch_bytes: ByteSize(1 << 20),
        }
    }
}

/// What the events look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GeneratorKind {
    /// Sales: ts (seconds), user_id, region, amount, sku.
    #[default]
    Sales,
    /// Counts by size: name, size, count. Without event time.
    Sizes,
    /// The fields of `fields`.
    Template,
    /// Changes of a table: see `changes`.
    Changes,
}

/// Late events.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Late {
    /// Fraction of events that are late.
    pub fraction: f64,
    /// How late they are.
    pub by: Span,
}

/// Fields of a template, in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TemplateFields(pub Vec<(String, TemplateField)>);

/// How a field of a template is made.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = bare_names)]
pub enum TemplateField {
    /// Rising by one with each event, from this number on.
    Sequence(i64),
    /// One of these values, each as often as the others; all of one type.
    Choice(Vec<serde_json::Value>),
    /// A number with four decimals, from the first (inclusive) to the second (exclusive).
    Uniform([f64; 2]),
    /// A whole number from the first to the second, both inclusive.
    Integer([i64; 2]),
    /// Event time: in `s`, `ms` or `us` after 1970, or as text in `iso` format.
    Timestamp(TimestampForm),
    /// True with this probability.
    Bool(f64),
    /// A random UUID.
    Uuid(NoSettings),
    /// Always this value.
    Constant(serde_json::Value),
}

/// Nothing to set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// How event time is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TimestampForm {
    /// Seconds.
    #[default]
    S,
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
    /// Text such as `2026-01-01T00:00:00.000Z`.
    Iso,
}

impl GeneratorConfig {
    pub(crate) fn validate(&self) -> Result<()> {
        let fraction = |name: &str, value: f64| {
            if (0.0..=1.0).contains(&value) {
                return Ok(());
            }
            Err(Error::config(format!(
                "generator {name} is not a fraction from 0 to 1: {name}={value}"
            )))
        };
        fraction("duplicates", self.duplicates)?;
        fraction("malformed", self.malformed)?;
        if let Some(late) = &self.late {
            fraction("late.fraction", late.fraction)?;
        }
        if self
            .rate
            .is_some_and(|rate| !(rate > 0.0 && rate.is_finite()))
        {
            return Err(
                Error::config("generator rate is not above 0").hint("leave it out for full speed")
            );
        }
        if !(self.density > 0.0 && self.density.is_finite()) {
            return Err(Error::config("generator density is not above 0"));
        }
        if !(1..=4096).contains(&self.partitions) {
            return Err(Error::config(
                "generator partitions is not between 1 and 4096",
            ));
        }
        if self.start_ts.unsigned_abs() > 1 << 40 {
            return Err(
                Error::config("generator start_ts is out of range").hint("it is in seconds")
            );
        }
        match (self.kind, &self.changes) {
            (GeneratorKind::Changes, Some(changes)) => changes.validate()?,
            (_, Some(_)) => {
                return Err(Error::config("generator changes without kind changes")
                    .hint("set `kind: changes`"));
            }
            (_, None) => {}
        }
        match (self.kind, &self.fields) {
            (GeneratorKind::Template, Some(fields)) => {
                fields.0.iter().try_for_each(|(name, field)| {
                    field
                        .validate()
                        .map_err(|e| e.context(format!("generator field {name}")))
                })?;
            }
            (GeneratorKind::Template, None) => {
                return Err(
                    Error::config("generator of kind template without fields").hint(
                        "for example `fields: {id: {sequence: 1}, amount: {uniform: [0, 100]}}`",
                    ),
                );
            }
            (_, Some(_)) => {
                return Err(Error::config("generator fields without kind template")
                    .hint("set `kind: template`"));
            }
            (_, None) => {}
        }
        self.schema().map(|_| ())
    }

    /// Everything that decides which events there are; not how fast they come, nor how many.
    pub(crate) fn fingerprint(&self) -> String {
        let mut same = self.clone();
        (same.rate, same.count, same.batch_bytes) = (None, None, Self::default().batch_bytes);
        format!(
            "generator {}",
            serde_json::to_string(&same).unwrap_or_default()
        )
    }

    /// Whether it makes Debezium's envelopes.
    pub(crate) fn is_debezium(&self) -> bool {
        let changes = self.changes.as_ref();
        changes.is_some_and(|changes| changes.envelope == Envelope::Debezium)
    }

    /// The schema of the events, when they are not in an envelope.
    ///
    /// # Errors
    /// `Config` for a template without fields, or a choice of several types.
    pub fn schema(&self) -> Result<SchemaRef> {
        let simple = |fields: &[(&str, DataType)]| {
            fields
                .iter()
                .map(|(name, kind)| Field::new(*name, kind.clone(), true))
                .collect::<Vec<_>>()
        };
        let fields = match self.kind {
            GeneratorKind::Sales => simple(&[
                ("ts", DataType::Int64),
                ("user_id", DataType::Int64),
                ("region", DataType::Utf8),
                ("amount", DataType::Float64),
                ("sku", DataType::Utf8),
            ]),
            GeneratorKind::Sizes => simple(&[
                ("name", DataType::Utf8),
                ("size", DataType::Utf8),
                ("count", DataType::Int64),
            ]),
            GeneratorKind::Changes => simple(&[
                ("op", DataType::Utf8),
                ("id", DataType::Int64),
                ("seq", DataType::Int64),
                ("ts", DataType::Int64),
                ("name", DataType::Utf8),
                ("amount", DataType::Float64),
                ("region", DataType::Utf8),
            ]),
            GeneratorKind::Template => {
                let fields = self.fields.iter().flat_map(|fields| &fields.0);
                let field = |(name, field): &(String, TemplateField)| {
                    let kind = field
                        .data_type()
                        .map_err(|e| e.context(format!("generator field {name}")))?;
                    Ok(Field::new(name, kind, true))
                };
                fields.map(field).collect::<Result<Vec<_>>>()?
            }
        };
        Ok(Arc::new(Schema::new(fields)))
    }
}

impl TemplateField {
    fn validate(&self) -> Result<()> {
        match self {
            Self::Choice(values) if values.is_empty() => Err(Error::config("choice of nothing")),
            Self::Uniform([low, high]) if !(low < high && high.abs().max(low.abs()) < 1e12) => Err(
                Error::config("uniform needs a low and a higher number, below 10^12"),
            ),
            Self::Integer([low, high]) if low > high => {
                Err(Error::config("integer needs a low and a high number"))
            }
            Self::Bool(p) if !(0.0..=1.0).contains(p) => {
                Err(Error::config("bool needs a probability"))
            }
            _ => Ok(()),
        }
    }

    fn data_type(&self) -> Result<DataType> {
        use serde_json::Value;
        let of = |value: &Value| match value {
            Value::Bool(_) => Some(DataType::Boolean),
            Value::Number(n) if n.is_i64() => Some(DataType::Int64),
            Value::Number(_) => Some(DataType::Float64),
            Value::String(_) => Some(DataType::Utf8),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        };
        Ok(match self {
            Self::Timestamp(TimestampForm::Iso) | Self::Uuid(_) => DataType::Utf8,
            Self::Sequence(_) | Self::Integer(_) | Self::Timestamp(_) => DataType::Int64,
            Self::Uniform(_) => DataType::Float64,
            Self::Bool(_) => DataType::Boolean,
            Self::Constant(value) => of(value).unwrap_or(DataType::Utf8),
            Self::Choice(values) => {
                let mut kinds: Vec<DataType> = values.iter().filter_map(of).collect();
                kinds.dedup();
                match kinds.as_slice() {
                    [] => DataType::Utf8,
                    [one] => one.clone(),
                    _ if kinds
                        .iter()
                        .all(|k| matches!(k, DataType::Int64 | DataType::Float64)) =>
                    {
                        DataType::Float64
                    }
                    _ => return Err(Error::config("choice of values of several types")),
                }
            }
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FieldTable {
    sequence: Option<i64>,
    choice: Option<Vec<serde_json::Value>>,
    uniform: Option<[f64; 2]>,
    integer: Option<[i64; 2]>,
    #[serde(default, deserialize_with = "or_default")]
    timestamp: Option<TimestampForm>,
    #[serde(rename = "bool")]
    boolean: Option<f64>,
    #[serde(default, deserialize_with = "or_default")]
    uuid: Option<NoSettings>,
    constant: Option<serde_json::Value>,
}

impl OneOf for TemplateField {
    type Table = FieldTable;
    const NAMES: &'static [&'static str] = &[
        "sequence",
        "choice",
        "uniform",
        "integer",
        "timestamp",
        "bool",
        "uuid",
        "constant",
    ];

    fn named(name: &str) -> Option<Self> {
        match name {
            "sequence" => Some(Self::Sequence(1)),
            "timestamp" => Some(Self::Timestamp(TimestampForm::S)),
            "bool" => Some(Self::Bool(0.5)),
            "uuid" => Some(Self::Uuid(NoSettings {})),
            _ => None,
        }
    }

    fn given(table: FieldTable) -> Vec<Self> {
        let all = [
            table.sequence.map(Self::Sequence),
            table.choice.map(Self::Choice),
            table.uniform.map(Self::Uniform),
            table.integer.map(Self::Integer),
            table.timestamp.map(Self::Timestamp),
            table.boolean.map(Self::Bool),
            table.uuid.map(Self::Uuid),
            table.constant.map(Self::Constant),
        ];
        all.into_iter().flatten().collect()
    }
}

impl<'de> Deserialize<'de> for TemplateField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        one_of::deserialize(deserializer)
    }
}

fn bare_names(schema: &mut schemars::Schema) {
    one_of::allow_names(schema, &["sequence", "timestamp", "bool", "uuid"]);
}

impl Serialize for TemplateFields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, field) in &self.0 {
            map.serialize_entry(name, field)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for TemplateFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = TemplateFields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("fields and how they are made, such as {id: {sequence: 1}}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TemplateFields, A::Error> {
                let mut fields = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    fields.push(entry);
                }
                Ok(TemplateFields(fields))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

impl JsonSchema for TemplateFields {
    fn schema_name() -> Cow<'static, str> {
        "TemplateFields".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let field = generator.subschema_for::<TemplateField>();
        schemars::json_schema!({ "type": "object", "additionalProperties": field })
    }
}
