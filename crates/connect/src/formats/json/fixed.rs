//! Columns of values of a fixed width: integers, floats, dates, times, timestamps, decimals.
//!
//! Plain short numbers are read digit by digit where they stand; every other number is first checked
//! against the grammar, then converted as arrow-json converts it (but integers exactly). Strings are accepted where
//! arrow-json accepts them, and read by the same parsers.

use arrow::{
    array::{ArrayData, ArrayRef, make_array, timezone::Tz},
    buffer::Buffer,
    compute::kernels::cast_utils::{Parser, string_to_datetime},
    datatypes::{
        ArrowNativeType, DataType, Date32Type, Date64Type, DurationMicrosecondType,
        DurationMillisecondType, DurationNanosecondType, DurationSecondType, Float16Type,
        Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Time32MillisecondType,
        Time32SecondType, Time64MicrosecondType, Time64NanosecondType, TimeUnit, UInt8Type,
        UInt16Type, UInt32Type, UInt64Type,
    },
    error::ArrowError,
};
use calve_engine::{Error, Result};
use chrono::{DateTime, TimeZone, Utc};

use super::{
    column::{Column, Nulls, null_or_fail},
    decimal::{decimal, integer},
    text::{Failure, Step, byte, is_null, number_end, skip_space, string},
};

/// Reads a value from the text of a number or a string; none where it does not fit.
pub(super) type Convert<T> = Box<dyn Fn(&str) -> Option<T> + Send>;

/// Values of a fixed width.
pub(in crate::formats) struct Fixed<T> {
    values: Vec<T>,
    nulls: Nulls,
    nullable: bool,
    data_type: DataType,
    /// From the text of a JSON number.
    number: Convert<T>,
    /// From the content of a JSON string.
    string: Convert<T>,
    /// What to say behind the message about a value that does not fit.
    advice: &'static str,
    /// Rows of the last batch: the first guess for the next.
    rows: usize,
}

/// A type of values that may have a short cut for plain numbers.
pub(in crate::formats) trait Native: ArrowNativeType {
    /// Reads the number at `at` when it is short and plain; answers where it ends.
    #[inline]
    fn plain(_bytes: &[u8], _at: usize) -> Option<(Self, usize)> {
        None
    }
}

impl<T: Native> Fixed<T> {
    fn new(data_type: &DataType, nullable: bool, number: Convert<T>, string: Convert<T>) -> Self {
        let data_type = data_type.clone();
        Self {
            values: Vec::new(),
            nulls: Nulls::default(),
            nullable,
            data_type,
            number,
            string,
            advice: "",
            rows: 0,
        }
    }

    /// Appends the value at `at` as that of `row`, when it is a short plain number or null; answers
    /// where it ends.
    #[inline]
    pub(super) fn plain(&mut self, bytes: &[u8], at: usize, row: usize) -> Option<usize> {
        if self.values.len() != row {
            return None;
        }
        if let Some((value, end)) = T::plain(bytes, at) {
            self.values.push(value);
            return Some(end);
        }
        if self.nullable && is_null(bytes, at) {
            self.append_null();
            return Some(at + 4);
        }
        None
    }
}

impl<T: Native> Column for Fixed<T> {
    #[inline]
    fn len(&self) -> usize {
        self.values.len()
    }

    fn append(&mut self, text: &str, at: usize) -> Step {
        let bytes = text.as_bytes();
        let at = skip_space(bytes, at);
        if let Some((value, end)) = T::plain(bytes, at) {
            self.values.push(value);
            return Ok(end);
        }
        let (value, end) = match byte(bytes, at) {
            b'-' | b'0'..=b'9' => {
                let end = number_end(bytes, at)?;
                ((self.number)(&text[at..end]), end)
            }
            b'"' => {
                let (content, end) = string(text, at)?;
                ((self.string)(&content), end)
            }
            _ => {
                let end = null_or_fail(bytes, at, self.nullable, &self.data_type)?;
                self.append_null();
                return Ok(end);
            }
        };
        let value = value.ok_or_else(|| {
            let of = &self.data_type;
            Failure::new(format!("the value does not fit {of}{}", self.advice))
        })?;
        self.values.push(value);
        Ok(end)
    }

    #[inline]
    fn append_null(&mut self) {
        self.nulls.push(self.values.len());
        self.values.push(T::default());
    }

    fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        self.nulls.truncate(len);
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let len = self.values.len();
        let next = Vec::with_capacity(self.rows.min(len));
        self.rows = len + len / 8;
        let values = std::mem::replace(&mut self.values, next);
        let nulls = self.nulls.finish(len);
        let data = ArrayData::builder(self.data_type.clone())
            .len(len)
            .add_buffer(Buffer::from_vec(values))
            .nulls(nulls)
            .build()?;
        Ok(make_array(data))
    }
}

/// Adds the digits at `at` to a number; answers it, where they end, and the byte there. Meaningless beyond
/// 18 digits.
#[inline]
fn digits(bytes: &[u8], mut at: usize, mut sum: u64) -> (u64, usize, u8) {
    loop {
        let next = byte(bytes, at);
        let digit = u64::from(next).wrapping_sub(u64::from(b'0'));
        if digit > 9 {
            return (sum, at, next);
        }
        sum = sum.wrapping_mul(10).wrapping_add(digit);
        at += 1;
    }
}

/// Whether the digits from `from` to `end` are 1 to 18, without a leading zero before others.
#[inline]
fn whole(bytes: &[u8], from: usize, end: usize) -> bool {
    let count = end - from;
    count == 1 || (count.wrapping_sub(1) < 18 && byte(bytes, from) != b'0')
}

/// A plain integer without a sign, of at most 18 digits, that nothing follows which would make it a
/// float.
#[inline]
fn plain_integer(bytes: &[u8], at: usize) -> Option<(i64, usize)> {
    let at = at as u32 as usize; // as in `block`
    let (sum, end, behind) = digits(bytes, at, 0);
    let plain = whole(bytes, at, end) && !matches!(behind, b'.' | b'e' | b'E');
    plain.then_some((sum.cast_signed(), end))
}

/// The same, below zero.
#[inline(never)]
fn plain_negative(bytes: &[u8], at: usize) -> Option<(i64, usize)> {
    let (value, end) = plain_integer(bytes, at + 1)?;
    Some((-value, end))
}

/// A plain decimal fraction as digits (at most 18) and the number of them behind the point.
#[inline]
fn plain_fraction(bytes: &[u8], at: usize) -> Option<(bool, u64, usize, usize)> {
    let at = at as u32 as usize;
    let negative = byte(bytes, at) == b'-';
    let from = at + usize::from(negative);
    let (mut sum, mut end, mut behind) = digits(bytes, from, 0);
    if !whole(bytes, from, end) {
        return None;
    }
    let mut fraction = 0;
    if behind == b'.' {
        let point = end;
        (sum, end, behind) = digits(bytes, point + 1, sum);
        fraction = end - point - 1;
        if fraction == 0 || end - from > 19 {
            return None;
        }
    }
    if matches!(behind, b'e' | b'E') {
        return None;
    }
    Some((negative, sum, fraction, end))
}

macro_rules! integers {
    ($($t:ty)*) => { $(
        impl Native for $t {
            #[inline]
            fn plain(bytes: &[u8], at: usize) -> Option<(Self, usize)> {
                let (value, end) = if byte(bytes, at) == b'-' {
                    plain_negative(bytes, at)?
                } else {
                    plain_integer(bytes, at)?
                };
                Some((Self::try_from(value).ok()?, end))
            }
        }

        impl Integer for $t {
            fn exact(text: &str) -> Option<Self> {
                text.parse().ok()
            }

            fn narrowed(value: i128) -> Option<Self> {
                value.try_into().ok()
            }
        }
    )* };
}
integers!(i8 i16 i32 i64 u8 u16 u32 u64);

/// How numbers are read as integers.
trait Integer: Native {
    /// From an integer's text.
    fn exact(text: &str) -> Option<Self>;
    /// From a wider one; none where it is out of range.
    fn narrowed(value: i128) -> Option<Self>;

    /// `1e3` and `2.0` are integers too; `1.5` is none, and nothing is cut off to make it one.
    fn from_number(text: &str) -> Option<Self> {
        Self::exact(text).or_else(|| Self::narrowed(integer(text)?))
    }
}

/// Powers of ten that f64 holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];

impl Native for f64 {
    /// Where digits and power of ten are exact, one division rounds once, hence correctly (Clinger,
    /// "How to read floating point numbers accurately", 1990).
    #[inline]
    fn plain(bytes: &[u8], at: usize) -> Option<(Self, usize)> {
        let (negative, digits, fraction, end) = plain_fraction(bytes, at)?;
        if digits > 1 << 53 {
            return None;
        }
        let value = digits as Self / POWERS[fraction];
        Some((if negative { -value } else { value }, end))
    }
}

impl Native for f32 {
    #[inline]
    fn plain(bytes: &[u8], at: usize) -> Option<(Self, usize)> {
        let (negative, digits, fraction, end) = plain_fraction(bytes, at)?;
        if digits > 1 << 24 || fraction > 10 {
            return None;
        }
        let value = digits as Self / POWERS[fraction] as Self;
        Some((if negative { -value } else { value }, end))
    }
}

impl Native for half::f16 {}
impl Native for i128 {}
impl Native for arrow::datatypes::i256 {}

impl Fixed<i64> {
    /// Signed integers of 64 bits.
    pub(super) fn integers(data_type: &DataType, nullable: bool) -> Self {
        Self::new(
            data_type,
            nullable,
            Box::new(i64::from_number),
            Box::new(Int64Type::parse),
        )
    }
}

impl Fixed<f64> {
    /// Floats of 64 bits.
    pub(super) fn floats(data_type: &DataType, nullable: bool) -> Self {
        let number = |text: &str| fast_float2::parse(text).ok();
        Self::new(
            data_type,
            nullable,
            Box::new(number),
            Box::new(Float64Type::parse),
        )
    }
}

/// A column whose numbers are integers and whose strings the type itself parses.
fn integral<P>(data_type: &DataType, nullable: bool) -> Box<dyn Column>
where
    P: Parser,
    P::Native: Integer,
{
    let number = <P::Native as Integer>::from_number;
    Box::new(Fixed::<P::Native>::new(
        data_type,
        nullable,
        Box::new(number),
        Box::new(P::parse),
    ))
}

/// A column of decimals, kept as `T`.
fn decimals<T: Native>(
    data_type: &DataType,
    nullable: bool,
    digits: (u8, i8),
    narrow: fn(arrow::datatypes::i256) -> Option<T>,
) -> Box<dyn Column> {
    let (precision, scale) = digits;
    let convert = move || -> Convert<T> {
        Box::new(move |text| decimal(text, precision, scale).and_then(narrow))
    };
    Box::new(Fixed::new(data_type, nullable, convert(), convert()))
}

/// A column of decimals whose strings are not text: `string` reads them.
pub(super) fn unscaled(
    data_type: &DataType,
    nullable: bool,
    digits: (u8, i8),
    string: Convert<i128>,
    advice: &'static str,
) -> Box<dyn Column> {
    let (precision, scale) = digits;
    let number: Convert<i128> = Box::new(move |text| {
        decimal(text, precision, scale).and_then(arrow::datatypes::i256::to_i128)
    });
    Box::new(Fixed {
        advice,
        ..Fixed::new(data_type, nullable, number, string)
    })
}

/// A column of timestamps; `zone` is where strings without an offset are at home.
fn timestamps<Z>(data_type: &DataType, unit: TimeUnit, zone: Z, nullable: bool) -> Box<dyn Column>
where
    Z: TimeZone + Send + 'static,
{
    let from_string = move |text: &str| {
        let at: DateTime<Z> = string_to_datetime(&zone, text).ok()?;
        match unit {
            TimeUnit::Second => Some(at.timestamp()),
            TimeUnit::Millisecond => Some(at.timestamp_millis()),
            TimeUnit::Microsecond => Some(at.timestamp_micros()),
            TimeUnit::Nanosecond => at.timestamp_nanos_opt(),
        }
    };
    Box::new(Fixed::new(
        data_type,
        nullable,
        Box::new(i64::from_number),
        Box::new(from_string),
    ))
}

/// The column of every other type of fixed width; none where the type is something else.
///
/// # Errors
/// `Config` for a time zone that does not exist.
pub(super) fn other_fixed(data_type: &DataType, nullable: bool) -> Result<Option<Box<dyn Column>>> {
    let small = |value: arrow::datatypes::i256| value.to_i128();
    Ok(Some(match data_type {
        DataType::Int8 => integral::<Int8Type>(data_type, nullable),
        DataType::Int16 => integral::<Int16Type>(data_type, nullable),
        DataType::Int32 => integral::<Int32Type>(data_type, nullable),
        DataType::UInt8 => integral::<UInt8Type>(data_type, nullable),
        DataType::UInt16 => integral::<UInt16Type>(data_type, nullable),
        DataType::UInt32 => integral::<UInt32Type>(data_type, nullable),
        DataType::UInt64 => integral::<UInt64Type>(data_type, nullable),
        DataType::Float16 => {
            let parse = || Box::new(Float16Type::parse);
            Box::new(Fixed::new(data_type, nullable, parse(), parse()))
        }
        DataType::Float32 => {
            let number = |text: &str| fast_float2::parse::<f32, _>(text).ok();
            Box::new(Fixed::new(
                data_type,
                nullable,
                Box::new(number),
                Box::new(Float32Type::parse),
            ))
        }
        DataType::Date32 => integral::<Date32Type>(data_type, nullable),
        DataType::Date64 => integral::<Date64Type>(data_type, nullable),
        DataType::Time32(TimeUnit::Second) => integral::<Time32SecondType>(data_type, nullable),
        DataType::Time32(TimeUnit::Millisecond) => {
            integral::<Time32MillisecondType>(data_type, nullable)
        }
        DataType::Time64(TimeUnit::Microsecond) => {
            integral::<Time64MicrosecondType>(data_type, nullable)
        }
        DataType::Time64(TimeUnit::Nanosecond) => {
            integral::<Time64NanosecondType>(data_type, nullable)
        }
        DataType::Duration(unit) => match unit {
            TimeUnit::Second => integral::<DurationSecondType>(data_type, nullable),
            TimeUnit::Millisecond => integral::<DurationMillisecondType>(data_type, nullable),
            TimeUnit::Microsecond => integral::<DurationMicrosecondType>(data_type, nullable),
            TimeUnit::Nanosecond => integral::<DurationNanosecondType>(data_type, nullable),
        },
        DataType::Timestamp(unit, None) => timestamps(data_type, *unit, Utc, nullable),
        DataType::Timestamp(unit, Some(name)) => {
            let zone: Tz = name.parse().map_err(|e: ArrowError| {
                Error::config(format!("unknown time zone: zone={name}")).because(e)
            })?;
            timestamps(data_type, *unit, zone, nullable)
        }
        DataType::Decimal32(p, s) => decimals::<i32>(data_type, nullable, (*p, *s), move |value| {
            value.to_i128()?.try_into().ok()
        }),
        DataType::Decimal64(p, s) => decimals::<i64>(data_type, nullable, (*p, *s), move |value| {
            value.to_i128()?.try_into().ok()
        }),
        DataType::Decimal128(p, s) => decimals(data_type, nullable, (*p, *s), small),
        DataType::Decimal256(p, s) => decimals(data_type, nullable, (*p, *s), Some),
        _ => return Ok(None),
    }))
}
