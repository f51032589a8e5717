//! The schema that a change may carry: Kafka Connect's types, with the logical names of Connect and
//! of Debezium. Two questions: which type does a column get, and how are its values written.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::{DataType, Field, TimeUnit};
use serde::Deserialize;

use super::config::DebeziumConfig;
use crate::formats::{
    json::wire::{How, Wire},
    types,
};

/// A schema of Kafka Connect, as its JSON converter writes it.
#[derive(Debug, Deserialize)]
pub(super) struct Connect {
    #[serde(rename = "type")]
    kind: String,
    /// Of a field of a struct: its name.
    pub(super) field: Option<String>,
    /// What its values mean.
    name: Option<String>,
    #[serde(default)]
    pub(super) fields: Vec<Connect>,
    items: Option<Box<Connect>>,
    keys: Option<Box<Connect>>,
    values: Option<Box<Connect>>,
    #[serde(default)]
    parameters: HashMap<String, String>,
}

/// What the logical names mean.
enum Meaning {
    Date,
    IsoDate,
    IsoTimestamp,
    Time(TimeUnit),
    Timestamp(TimeUnit),
    ZonedTimestamp,
    Decimal,
    VariableDecimal,
    /// What the type says, or text.
    None,
}

impl Connect {
    /// The schema of the rows; none where it is not known (MongoDB's documents are strings).
    pub(super) fn row(text: &[u8], unwrapped: bool) -> Option<Self> {
        let mut schema: Self = serde_json::from_slice(text).ok()?;
        if unwrapped {
            return (schema.kind == "struct").then_some(schema);
        }
        let of = |wanted: &str| {
            let mut fields = schema.fields.iter();
            fields.position(|f| f.field.as_deref() == Some(wanted) && f.kind == "struct")
        };
        let place = of("after").or_else(|| of("before"))?;
        Some(schema.fields.swap_remove(place))
    }

    /// The field of this name.
    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        let mut fields = self.fields.iter();
        fields.find(|field| field.field.as_deref() == Some(name))
    }

    /// The columns of a struct, all nullable.
    pub(super) fn columns(&self) -> Vec<Field> {
        let field = |connect: &Self| {
            let name = connect.field.as_deref()?;
            Some(Field::new(name, connect.data_type(), true))
        };
        self.fields.iter().filter_map(field).collect()
    }

    fn meaning(&self) -> Meaning {
        use TimeUnit::{Microsecond, Millisecond, Nanosecond};
        match self.name.as_deref().unwrap_or_default() {
            "io.debezium.time.IsoDate" => Meaning::IsoDate,
            "io.debezium.time.Date" | "org.apache.kafka.connect.data.Date" => Meaning::Date,
            "io.debezium.time.IsoTimestamp" => Meaning::IsoTimestamp,
            "io.debezium.time.Time" | "org.apache.kafka.connect.data.Time" => {
                Meaning::Time(Millisecond)
            }
            "io.debezium.time.MicroTime" => Meaning::Time(Microsecond),
            "io.debezium.time.NanoTime" => Meaning::Time(Nanosecond),
            "io.debezium.time.Timestamp" | "org.apache.kafka.connect.data.Timestamp" => {
                Meaning::Timestamp(Millisecond)
            }
            "io.debezium.time.MicroTimestamp" => Meaning::Timestamp(Microsecond),
            "io.debezium.time.NanoTimestamp" => Meaning::Timestamp(Nanosecond),
            "io.debezium.time.ZonedTimestamp" => Meaning::ZonedTimestamp,
            "org.apache.kafka.connect.data.Decimal" => Meaning::Decimal,
            "io.debezium.data.VariableScaleDecimal" => Meaning::VariableDecimal,
            _ => Meaning::None,
        }
    }

    fn scale(&self) -> i8 {
        let scale = self.parameters.get("scale");
        scale.and_then(|scale| scale.parse().ok()).unwrap_or(0)
    }

    /// The type that a column of these values gets.
    fn data_type(&self) -> DataType {
        match self.meaning() {
            Meaning::Date | Meaning::IsoDate => DataType::Date32,
            Meaning::IsoTimestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Meaning::Time(unit @ (TimeUnit::Second | TimeUnit::Millisecond)) => {
                DataType::Time32(unit)
            }
            Meaning::Time(unit) => DataType::Time64(unit),
            Meaning::Timestamp(unit) => DataType::Timestamp(unit, None),
            Meaning::ZonedTimestamp => {
                DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
            }
            Meaning::Decimal => {
                let precision = self.parameters.get("connect.decimal.precision");
                let precision = precision.map_or(Ok(38), |p| p.parse::<u8>());
                match precision {
                    Ok(p @ 1..=38) if (0..=p.cast_signed()).contains(&self.scale()) => {
                        DataType::Decimal128(p, self.scale())
                    }
                    _ => DataType::Utf8,
                }
            }
            Meaning::VariableDecimal => DataType::Utf8,
            Meaning::None => match self.kind.as_str() {
                "boolean" => DataType::Boolean,
                "int8" => DataType::Int8,
                "int16" => DataType::Int16,
                "int32" => DataType::Int32,
                "int64" => DataType::Int64,
                "float" | "float32" => DataType::Float32,
                "double" | "float64" => DataType::Float64,
                "bytes" => DataType::Binary,
                "array" => {
                    let item = self
                        .items
                        .as_ref()
                        .map_or(DataType::Utf8, |i| i.data_type());
                    DataType::List(Arc::new(Field::new("item", item, true)))
                }
                "map" if self.keys.as_ref().is_some_and(|keys| keys.kind == "string") => {
                    let value = self
                        .values
                        .as_ref()
                        .map_or(DataType::Utf8, |v| v.data_type());
                    types::map_of(DataType::Utf8, Field::new("value", value, true))
                }
                "struct" if !self.fields.is_empty() => DataType::Struct(self.columns().into()),
                _ => DataType::Utf8,
            },
        }
    }

    /// How these values are written for a column of type `of`.
    pub(super) fn wire(&self, of: &DataType, config: &DebeziumConfig) -> Wire {
        match self.meaning() {
            Meaning::Time(unit) | Meaning::Timestamp(unit) => return Wire::leaf(How::Unit(unit)),
            Meaning::IsoDate => return Wire::leaf(How::Iso),
            Meaning::Decimal => return Wire::leaf(How::Unscaled(Some(self.scale()))),
            Meaning::VariableDecimal => return Wire::leaf(How::Unscaled(None)),
            Meaning::Date | Meaning::IsoTimestamp | Meaning::ZonedTimestamp | Meaning::None => {}
        }
        let is_bytes = matches!(
            of,
            DataType::Binary
                | DataType::LargeBinary
                | DataType::BinaryView
                | DataType::FixedSizeBinary(_)
        );
        let child = |schema: Option<&Self>, field: &Field| {
            schema.map_or_else(
                || config.wire(field.data_type()),
                |schema| schema.wire(field.data_type(), config),
            )
        };
        let inside = match of {
            DataType::Struct(fields) => fields
                .iter()
                .map(|field| child(self.child(field.name()), field))
                .collect(),
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                vec![child(self.items.as_deref(), item)]
            }
            DataType::Map(entries, _) => match entries.data_type() {
                DataType::Struct(pair) => pair
                    .iter()
                    .zip([self.keys.as_deref(), self.values.as_deref()])
                    .map(|(field, schema)| child(schema, field))
                    .collect(),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        let how = match self.kind.as_str() {
            "bytes" if is_bytes => How::Base64,
            // The connector has made strings of bytes; the schema does not say how.
            "string" if is_bytes => config.octets(),
            _ => How::Plain,
        };
        Wire { how, inside }
    }
}
