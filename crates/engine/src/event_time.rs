//! Event time of decoded rows: which column, in which unit, and its bounds in a batch.

use arrow::{
    array::{Array, AsArray, RecordBatch},
    compute::{max, min},
    datatypes::{
        DataType, Date32Type, Float64Type, Int32Type, Int64Type, SchemaRef, TimeUnit,
        TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
        TimestampSecondType,
    },
};

use crate::{
    batch::EventTimeBounds,
    error::{Error, Result},
};

/// The event-time column of a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventTime {
    column: usize,
    /// Microseconds of one unit of an integer column; negative: units per microsecond.
    scale: i64,
}

/// Unit of a numeric event-time column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Millis,
    /// Microseconds.
    Micros,
    /// Nanoseconds.
    Nanos,
}

impl Unit {
    fn scale(self) -> i64 {
        match self {
            Self::Seconds => 1_000_000,
            Self::Millis => 1_000,
            Self::Micros => 1,
            Self::Nanos => -1_000,
        }
    }
}

impl EventTime {
    /// Finds the column; `unit` says what its numbers are, where the type does not.
    ///
    /// # Errors
    /// `Config` when there is no such column, or its type has no event time in it.
    pub fn of(schema: &SchemaRef, column: &str, unit: Option<Unit>) -> Result<Self> {
        let Ok(index) = schema.index_of(column) else {
            let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
            return Err(Error::config(format!(
                "event_time.column is not a column of the events: column={column}"
            ))
            .hint(format!("the columns are {}", names.join(", "))));
        };
        let scale = match schema.field(index).data_type() {
            DataType::Timestamp(TimeUnit::Second, _) => Unit::Seconds.scale(),
            DataType::Timestamp(TimeUnit::Millisecond, _) => Unit::Millis.scale(),
            DataType::Timestamp(TimeUnit::Microsecond, _) => Unit::Micros.scale(),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => Unit::Nanos.scale(),
            DataType::Date32 => 86_400_000_000,
            DataType::Int64 | DataType::Int32 | DataType::Float64 => match unit {
                Some(unit) => unit.scale(),
                None => {
                    return Err(Error::config(format!(
                        "event_time.unit is missing for a number: column={column}"
                    ))
                    .hint("say `unit: s`, `ms`, `us` or `ns`"));
                }
            },
            other => {
                return Err(Error::config(format!(
                    "event_time.column is neither a timestamp nor a number: column={column} type={other}"
                ))
                .hint("declare the column as timestamp or bigint in the format's columns"));
            }
        };
        Ok(Self {
            column: index,
            scale,
        })
    }

    /// Lowest and highest event time in microseconds; none when the column is all null.
    pub fn bounds(&self, rows: &RecordBatch) -> EventTimeBounds {
        macro_rules! of {
            ($column:expr, $type:ty) => {{
                let column = $column.as_primitive::<$type>();
                min(column)
                    .zip(max(column))
                    .map(|(a, b)| (i64::from(a), i64::from(b)))
            }};
        }
        let column = rows.column(self.column);
        let (low, high) = match column.data_type() {
            DataType::Timestamp(TimeUnit::Second, _) => of!(column, TimestampSecondType),
            DataType::Timestamp(TimeUnit::Millisecond, _) => of!(column, TimestampMillisecondType),
            DataType::Timestamp(TimeUnit::Microsecond, _) => of!(column, TimestampMicrosecondType),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => of!(column, TimestampNanosecondType),
            DataType::Date32 => of!(column, Date32Type),
            DataType::Int64 => of!(column, Int64Type),
            DataType::Int32 => of!(column, Int32Type),
            DataType::Float64 => {
                let column = column.as_primitive::<Float64Type>();
                let scale = self.float_scale();
                return min(column)
                    .zip(max(column))
                    .map(|(a, b)| ((a * scale) as i64, (b * scale) as i64));
            }
            _ => None,
        }?;
        Some((self.scaled(low), self.scaled(high)))
    }

    /// Event time of each row, in microseconds.
    ///
    /// # Errors
    /// `Data` when a row has none.
    pub fn micros(&self, rows: &RecordBatch) -> Result<Vec<i64>> {
        macro_rules! of {
            ($type:ty) => {{
                let column = rows.column(self.column).as_primitive::<$type>();
                column
                    .values()
                    .iter()
                    .map(|v| self.scaled(i64::from(*v)))
                    .collect()
            }};
        }
        let column = rows.column(self.column);
        if column.null_count() > 0 {
            return Err(Error::data(format!(
                "the row has no event time: column={}",
                rows.schema_ref().field(self.column).name()
            )));
        }
        Ok(match column.data_type() {
            DataType::Timestamp(TimeUnit::Second, _) => of!(TimestampSecondType),
            DataType::Timestamp(TimeUnit::Millisecond, _) => of!(TimestampMillisecondType),
            DataType::Timestamp(TimeUnit::Microsecond, _) => of!(TimestampMicrosecondType),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => of!(TimestampNanosecondType),
            DataType::Date32 => of!(Date32Type),
            DataType::Int64 => of!(Int64Type),
            DataType::Int32 => of!(Int32Type),
            DataType::Float64 => {
                let column = column.as_primitive::<Float64Type>();
                let scale = self.float_scale();
                column.values().iter().map(|v| (v * scale) as i64).collect()
            }
            _ => return Err(Error::internal("an event-time column of another type")),
        })
    }

    fn float_scale(&self) -> f64 {
        if self.scale < 0 {
            1.0 / -self.scale as f64
        } else {
            self.scale as f64
        }
    }

    fn scaled(&self, value: i64) -> i64 {
        if self.scale < 0 {
            value.div_euclid(-self.scale)
        } else {
            value.saturating_mul(self.scale)
        }
    }
}
