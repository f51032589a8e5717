//! Where a row goes: partition values by Iceberg's transforms, computed for a whole batch, and the
//! folder of a table partition. Paths need not be unique by partition: a file's value is in its
//! manifest, the folder is for people.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, PrimitiveArray, RecordBatch},
    compute::cast,
    datatypes::{
        ArrowPrimitiveType, ArrowTimestampType, DataType, Date32Type, Int32Type, SchemaRef,
        TimeUnit, TimestampMicrosecondType, TimestampNanosecondType,
    },
};
use calve_engine::{
    error::{Error, Result},
    opaque::Opaque,
};
use calve_model::Epoch;
use chrono::{DateTime, Datelike, NaiveDate};
use iceberg::{
    spec::{PartitionSpec, PrimitiveType, Schema, TableMetadata, Transform},
    transform::{BoxedTransformFunction, create_transform_function},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    evolve::Evolved,
    files::{self, Content},
    schema::Columns,
};
use crate::write::{DescribedFile, FinishedFile, KeyValue, Placed, Placement, TablePartition};

/// What stands in a folder's name as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// A folder's name is cut here: file systems take 255 bytes.
const NAME_BYTES: usize = 160;

/// Places the rows of one pipeline into one table, as its schema and spec were at the start.
pub(super) struct IcebergPlacement {
    columns: Columns,
    keys: Vec<Key>,
    schema: Arc<Schema>,
    /// The schema is not the table's yet.
    evolved: Option<Evolved>,
    spec_id: i32,
    location: String,
}

/// One partition field.
struct Key {
    /// Place of the source column among the table's columns.
    column: usize,
    /// Encoded name, for the folder.
    name: String,
    transform: Transform,
    function: BoxedTransformFunction,
    /// Type of the transformed value.
    result: PrimitiveType,
}

impl IcebergPlacement {
    /// The placement for rows of `rows` into the table.
    ///
    /// # Errors
    /// `Schema` when the spec has a transform or a source that cannot be computed.
    pub(super) fn new(metadata: &TableMetadata, rows: &SchemaRef) -> Result<Self> {
        Self::with_schema(metadata, metadata.current_schema().clone(), rows)
    }

    /// The same with a schema that the table gets in the commit of the first files.
    ///
    /// # Errors
    /// As [`IcebergPlacement::new`].
    pub(super) fn evolved(
        metadata: &TableMetadata,
        evolved: Evolved,
        rows: &SchemaRef,
    ) -> Result<Self> {
        let schema = Arc::new(evolved.schema.clone());
        let mut placement = Self::with_schema(metadata, schema, rows)?;
        placement.evolved = Some(evolved);
        Ok(placement)
    }

    /// The same with more columns than the table has; its own come first.
    pub(super) fn with_schema(
        metadata: &TableMetadata,
        schema: Arc<Schema>,
        rows: &SchemaRef,
    ) -> Result<Self> {
        let spec: &PartitionSpec = metadata.default_partition_spec();
        let keys = spec
            .fields()
            .iter()
            .map(|field| {
                let failed = || {
                    Error::schema(format!(
                        "the table is partitioned in a way that cannot be written: field={} transform={}",
                        field.name, field.transform
                    ))
                };
                let column = schema
                    .as_struct()
                    .fields()
                    .iter()
                    .position(|f| f.id == field.source_id)
                    .ok_or_else(failed)?;
                let source = &schema.as_struct().fields()[column].field_type;
                let result = field.transform.result_type(source).map_err(|e| failed().because(e))?;
                let result = result.as_primitive_type().ok_or_else(failed)?.clone();
                if matches!(result, PrimitiveType::Float | PrimitiveType::Double | PrimitiveType::Uuid) {
                    return Err(failed().hint("do not partition by a float or a UUID itself; use bucket"));
                }
                Ok(Key {
                    column,
                    name: utf8_percent_encode(&field.name, PLAIN).to_string(),
                    transform: field.transform,
                    function: create_transform_function(&field.transform)
                        .map_err(|e| failed().because(e))?,
                    result,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            columns: Columns::new(&schema, rows)?,
            keys,
            schema,
            evolved: None,
            spec_id: spec.spec_id(),
            location: metadata.location().trim_end_matches('/').to_owned(),
        })
    }

    /// The place that paths are relative to.
    pub(super) fn root(&self) -> &str {
        &self.location
    }
}

impl Placement for IcebergPlacement {
    fn file_schema(&self) -> SchemaRef {
        self.columns.schema().clone()
    }

    fn place(&self, rows: RecordBatch) -> Result<Placed> {
        let rows = self.columns.map(&rows)?;
        let keys = self
            .keys
            .iter()
            .map(|key| key.values(rows.column(key.column)))
            .collect::<Result<_>>()?;
        Ok(Placed { keys, rows })
    }

    fn path(&self, partition: &TablePartition, unique: &str) -> String {
        let mut path = String::from("data/");
        for (key, value) in self.keys.iter().zip(&partition.0) {
            let shown = key.show(value);
            let encoded = utf8_percent_encode(&shown, PLAIN).to_string();
            let mut end = encoded.len().min(NAME_BYTES.saturating_sub(key.name.len()));
            // Not in the middle of an escape.
            while end < encoded.len()
                && (1..3).any(|back| encoded.as_bytes().get(end.wrapping_sub(back)) == Some(&b'%'))
            {
                end -= 1;
            }
            path.push_str(&key.name);
            path.push('=');
            path.push_str(&encoded[..end]);
            path.push('/');
        }
        path.push_str(unique);
        path.push_str(".parquet");
        path
    }

    fn describe(&self, file: &FinishedFile<'_>) -> Result<Opaque> {
        files::describe(file, &self.schema)
    }

    fn content(&self, _epoch: Epoch, files: Vec<DescribedFile>) -> Result<Opaque> {
        let schema = self.schema.schema_id();
        let mut content = Content::new(&self.location, self.spec_id, schema, files)?;
        content.evolved.clone_from(&self.evolved);
        Opaque::of(&content)
    }
}

impl Key {
    fn values(&self, column: &ArrayRef) -> Result<ArrayRef> {
        let failed = |why: &str| {
            Error::data(format!(
                "a row has no table partition: field={} {why}",
                self.name
            ))
        };
        const HOUR: i64 = 3_600_000_000;
        const DAY: i64 = 24 * HOUR;
        let micros = TimeUnit::Microsecond;
        let nanos = TimeUnit::Nanosecond;
        let fast = match (self.transform, column.data_type()) {
            (Transform::Hour, DataType::Timestamp(unit, _)) if *unit == micros => {
                floor::<TimestampMicrosecondType, Int32Type, HOUR>(column)
            }
            (Transform::Hour, DataType::Timestamp(unit, _)) if *unit == nanos => {
                floor::<TimestampNanosecondType, Int32Type, { HOUR * 1000 }>(column)
            }
            (Transform::Day, DataType::Timestamp(unit, _)) if *unit == micros => {
                floor::<TimestampMicrosecondType, Date32Type, DAY>(column)
            }
            (Transform::Day, DataType::Timestamp(unit, _)) if *unit == nanos => {
                floor::<TimestampNanosecondType, Date32Type, { DAY * 1000 }>(column)
            }
            (Transform::Identity, _) => Some(column.clone()),
            _ => {
                let plain = match column.data_type() {
                    DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
                    DataType::Dictionary(_, value)
                        if matches!(
                            **value,
                            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
                        ) =>
                    {
                        DataType::Utf8
                    }
                    DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
                    other => other.clone(),
                };
                let column =
                    cast(column, &plain).map_err(|e| failed("value too large").because(e))?;
                let input_nulls = column.null_count();
                let values = self
                    .function
                    .transform(column)
                    .map_err(|e| failed("transform failed").because(e))?;
                // A calendar that does not reach so far yields null, which is another partition.
                (values.null_count() == input_nulls).then_some(values)
            }
        };
        fast.ok_or_else(|| failed("value out of range"))
    }

    fn show(&self, value: &KeyValue) -> String {
        let date = |days: i64| {
            NaiveDate::from_num_days_from_ce_opt(i32::try_from(days + 719_163).unwrap_or(i32::MAX))
        };
        let shown = match (value, self.transform, &self.result) {
            (KeyValue::Null, ..) => return "null".to_owned(),
            (KeyValue::Int(v), Transform::Year, _) => Some((1970 + v).to_string()),
            (KeyValue::Int(v), Transform::Month, _) => Some(format!(
                "{:04}-{:02}",
                1970 + v.div_euclid(12),
                1 + v.rem_euclid(12)
            )),
            (KeyValue::Int(v), Transform::Hour, _) => date(v.div_euclid(24)).map(|d| {
                format!(
                    "{:04}-{:02}-{:02}-{:02}",
                    d.year(),
                    d.month(),
                    d.day(),
                    v.rem_euclid(24)
                )
            }),
            (KeyValue::Int(v), _, PrimitiveType::Date) => date(*v).map(|d| d.to_string()),
            (KeyValue::Int(v), _, PrimitiveType::Timestamp | PrimitiveType::Timestamptz) => {
                DateTime::from_timestamp_micros(*v)
                    .map(|t| t.format("%Y-%m-%dT%H-%M-%S%.6f").to_string())
            }
            (KeyValue::Int(v), ..) => Some(v.to_string()),
            (KeyValue::UInt(v), ..) => Some(v.to_string()),
            (KeyValue::Bool(v), ..) => Some(v.to_string()),
            (KeyValue::Decimal(v), _, PrimitiveType::Decimal { scale, .. }) => {
                Some(decimal(*v, *scale as usize))
            }
            (KeyValue::Decimal(v), ..) => Some(v.to_string()),
            (KeyValue::Text(v), ..) => Some(v.to_string()),
            (KeyValue::Bytes(v), ..) => Some(files::to_hex(v)),
            (KeyValue::Float(_), ..) => None,
        };
        shown.unwrap_or_else(|| "other".to_owned())
    }
}

/// Whole units since 1970, rounded down; none when one does not fit 32 bits.
fn floor<From, To, const UNIT: i64>(column: &ArrayRef) -> Option<ArrayRef>
where
    From: ArrowTimestampType,
    To: ArrowPrimitiveType<Native = i32>,
{
    let values: PrimitiveArray<To> = column
        .as_primitive::<From>()
        .try_unary(|v| i32::try_from(v.div_euclid(UNIT)))
        .ok()?;
    Some(Arc::new(values))
}

fn decimal(unscaled: i128, scale: usize) -> String {
    let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if unscaled < 0 { "-" } else { "" };
    let point = if scale == 0 { "" } else { "." };
    format!("{sign}{whole}{point}{fraction}")
}
