//! The value of a table partition: one owned, hashable value per key column.

use std::{fmt, sync::Arc};

use arrow::{
    array::{Array, AsArray},
    datatypes::{
        DataType, Date32Type, Date64Type, Decimal128Type, Float32Type, Float64Type, Int8Type,
        Int16Type, Int32Type, Int64Type, Time32MillisecondType, Time32SecondType,
        Time64MicrosecondType, Time64NanosecondType, TimeUnit, TimestampMicrosecondType,
        TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type,
        UInt16Type, UInt32Type, UInt64Type,
    },
};
use calve_engine::error::{Error, Result};

/// One value of a key column, detached from its Arrow type (the column's type says how to read it).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyValue {
    /// SQL NULL.
    Null,
    /// A boolean.
    Bool(bool),
    /// Any signed integer of up to 64 bits, date, time or timestamp, in the column's own unit; also
    /// unsigned integers of up to 32 bits.
    Int(i64),
    /// A 64-bit unsigned integer.
    UInt(u64),
    /// The unscaled value of a 128-bit decimal.
    Decimal(i128),
    /// Bits of a 64-bit float (32-bit ones are widened, which is exact); NaN has one form, and -0
    /// differs from 0.
    Float(u64),
    /// A string.
    Text(Box<str>),
    /// Bytes, of variable or fixed length.
    Bytes(Box<[u8]>),
}

impl KeyValue {
    /// A float, with NaN in its one form.
    pub fn float(value: f64) -> Self {
        Self::Float(if value.is_nan() {
            f64::NAN.to_bits()
        } else {
            value.to_bits()
        })
    }

    /// The float behind [`KeyValue::Float`].
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(bits) => Some(f64::from_bits(*bits)),
            _ => None,
        }
    }

    /// The value of row `row`.
    ///
    /// # Errors
    /// `Config` for a type that table partitions cannot have.
    pub fn of(array: &dyn Array, row: usize) -> Result<Self> {
        if array.is_null(row) {
            return Ok(Self::Null);
        }
        macro_rules! int {
            ($type:ty) => {
                Self::Int(i64::from(array.as_primitive::<$type>().value(row)))
            };
        }
        Ok(match array.data_type() {
            DataType::Null => Self::Null,
            DataType::Boolean => Self::Bool(array.as_boolean().value(row)),
            DataType::Int8 => int!(Int8Type),
            DataType::Int16 => int!(Int16Type),
            DataType::Int32 => int!(Int32Type),
            DataType::Int64 => int!(Int64Type),
            DataType::UInt8 => int!(UInt8Type),
            DataType::UInt16 => int!(UInt16Type),
            DataType::UInt32 => int!(UInt32Type),
            DataType::UInt64 => Self::UInt(array.as_primitive::<UInt64Type>().value(row)),
            DataType::Date32 => int!(Date32Type),
            DataType::Date64 => int!(Date64Type),
            DataType::Time32(TimeUnit::Second) => int!(Time32SecondType),
            DataType::Time32(_) => int!(Time32MillisecondType),
            DataType::Time64(TimeUnit::Microsecond) => int!(Time64MicrosecondType),
            DataType::Time64(_) => int!(Time64NanosecondType),
            DataType::Timestamp(TimeUnit::Second, _) => int!(TimestampSecondType),
            DataType::Timestamp(TimeUnit::Millisecond, _) => int!(TimestampMillisecondType),
            DataType::Timestamp(TimeUnit::Microsecond, _) => int!(TimestampMicrosecondType),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => int!(TimestampNanosecondType),
            DataType::Decimal128(..) => {
                Self::Decimal(array.as_primitive::<Decimal128Type>().value(row))
            }
            DataType::Float32 => {
                Self::float(f64::from(array.as_primitive::<Float32Type>().value(row)))
            }
            DataType::Float64 => Self::float(array.as_primitive::<Float64Type>().value(row)),
            DataType::Utf8 => Self::Text(array.as_string::<i32>().value(row).into()),
            DataType::LargeUtf8 => Self::Text(array.as_string::<i64>().value(row).into()),
            DataType::Utf8View => Self::Text(array.as_string_view().value(row).into()),
            DataType::Binary => Self::Bytes(array.as_binary::<i32>().value(row).into()),
            DataType::LargeBinary => Self::Bytes(array.as_binary::<i64>().value(row).into()),
            DataType::BinaryView => Self::Bytes(array.as_binary_view().value(row).into()),
            DataType::FixedSizeBinary(_) => {
                Self::Bytes(array.as_fixed_size_binary().value(row).into())
            }
            DataType::Dictionary(..) => {
                let dictionary = array.as_any_dictionary();
                let key = match Self::of(dictionary.keys(), row)? {
                    Self::Int(key) => usize::try_from(key),
                    Self::UInt(key) => usize::try_from(key),
                    _ => Ok(usize::MAX),
                };
                let values = dictionary.values().as_ref();
                match key {
                    Ok(key) if key < values.len() => Self::of(values, key)?,
                    _ => return Err(Error::internal("a dictionary key is out of range")),
                }
            }
            other => {
                return Err(Error::config(format!(
                    "a column of this type cannot partition a table: type={other}"
                )));
            }
        })
    }
}

/// A value of the table's partition spec: one [`KeyValue`] per key column, in their order. Empty for
/// a table without partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TablePartition(pub Box<[KeyValue]>);

impl TablePartition {
    /// The values of row `row` of the key columns.
    ///
    /// # Errors
    /// See [`KeyValue::of`].
    pub fn of(keys: &[arrow::array::ArrayRef], row: usize) -> Result<Self> {
        keys.iter()
            .map(|key| KeyValue::of(key.as_ref(), row))
            .collect::<Result<_>>()
            .map(Self)
    }
}

/// For logs at debug level only: it shows values of rows.
impl fmt::Display for TablePartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Shared: the same partition recurs in every batch.
pub type PartitionRef = Arc<TablePartition>;
