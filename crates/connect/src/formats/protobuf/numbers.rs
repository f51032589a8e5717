//! Columns of numbers, booleans, decimals, times, and places of events.

use std::{fmt::Display, sync::Arc};

use arrow::{
    array::{ArrayRef, ArrowPrimitiveType, BooleanArray, BooleanBufferBuilder, PrimitiveArray},
    datatypes::{DataType, TimeUnit, TimestampMicrosecondType, i256},
    error::ArrowError,
};

use super::{
    convert,
    fill::{Fill, Leaf, Scalar, Validity, View, first, renew},
};

/// Numbers of one field, as they are in their cell.
pub(super) struct Plain<T: ArrowPrimitiveType, F> {
    scope: usize,
    leaf: Leaf,
    read: F,
    values: Vec<T::Native>,
    validity: Validity,
}

impl<T: ArrowPrimitiveType, F: Fn(u64) -> T::Native> Plain<T, F> {
    pub(super) fn new(scope: usize, leaf: Leaf, read: F) -> Self {
        Self {
            scope,
            leaf,
            read,
            values: Vec::new(),
            validity: Validity::default(),
        }
    }
}

impl<T: ArrowPrimitiveType, F: Fn(u64) -> T::Native + Send> Fill for Plain<T, F> {
    fn append(&mut self, view: &mut View<'_>) {
        let scope = &view.scopes[self.scope];
        self.values.reserve(scope.rows);
        for row in scope.all() {
            let absent = self.leaf.absent(row);
            let value = (self.read)(row[usize::from(self.leaf.cell)]);
            let value = if absent { T::Native::default() } else { value };
            self.values.push(value);
            self.validity.push(!absent);
        }
    }

    fn nulls(&self) -> usize {
        self.validity.nulls()
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let values = renew(&mut self.values);
        let array = PrimitiveArray::<T>::try_new(values.into(), self.validity.finish())?;
        Ok(Arc::new(array))
    }
}

/// Times of one field of type Timestamp, in microseconds: cut down, never rounded up.
pub(super) struct Moments {
    scope: usize,
    leaf: Leaf,
    nanos: u16,
    zone: Option<Arc<str>>,
    values: Vec<i64>,
    validity: Validity,
}

impl Moments {
    pub(super) fn new(scope: usize, leaf: Leaf, nanos: u16, zone: Option<Arc<str>>) -> Self {
        Self {
            scope,
            leaf,
            nanos,
            zone,
            values: Vec::new(),
            validity: Validity::default(),
        }
    }
}

impl Fill for Moments {
    fn append(&mut self, view: &mut View<'_>) {
        let scopes = view.scopes;
        let scope = &scopes[self.scope];
        self.values.reserve(scope.rows);
        for row in scope.all() {
            if self.leaf.absent(row) {
                self.values.push(0);
                self.validity.push(false);
                continue;
            }
            let seconds = row[usize::from(self.leaf.cell)] as i64;
            let nanos = row[usize::from(self.nanos)] as u32 as i32;
            if !is_timestamp(seconds, nanos) {
                view.failed(&self.leaf.path, OUT_OF_RANGE);
            }
            let whole = seconds.wrapping_mul(1_000_000);
            self.values
                .push(whole.wrapping_add(i64::from(nanos / 1_000)));
            self.validity.push(true);
        }
    }

    fn nulls(&self) -> usize {
        self.validity.nulls()
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let values = renew(&mut self.values);
        let nulls = self.validity.finish();
        let array = PrimitiveArray::<TimestampMicrosecondType>::try_new(values.into(), nulls)?;
        Ok(Arc::new(array.with_timezone_opt(self.zone.clone())))
    }
}

const OUT_OF_RANGE: &str = "the timestamp is out of range";

/// Whether it is one by the type's own rules: years 1 to 9999, nanoseconds that count forward.
#[inline]
fn is_timestamp(seconds: i64, nanos: i32) -> bool {
    (-62_135_596_800..=253_402_300_799).contains(&seconds) && (0..1_000_000_000).contains(&nanos)
}

/// How a value becomes one of another type; what it answers otherwise says why it cannot.
pub(super) type Convert<N> = Box<dyn Fn(Scalar<'_>) -> Result<N, String> + Send>;

/// Numbers of one or several fields, converted.
pub(super) struct Cast<T: ArrowPrimitiveType> {
    scope: usize,
    leaves: Vec<Leaf>,
    convert: Convert<T::Native>,
    data_type: DataType,
    values: Vec<T::Native>,
    validity: Validity,
}

impl<T: ArrowPrimitiveType> Cast<T> {
    pub(super) fn new(
        scope: usize,
        leaves: Vec<Leaf>,
        data_type: DataType,
        convert: Convert<T::Native>,
    ) -> Self {
        Self {
            scope,
            leaves,
            convert,
            data_type,
            values: Vec::new(),
            validity: Validity::default(),
        }
    }
}

impl<T: ArrowPrimitiveType> Fill for Cast<T> {
    fn append(&mut self, view: &mut View<'_>) {
        let scopes = view.scopes;
        let scope = &scopes[self.scope];
        self.values.reserve(scope.rows);
        for row in scope.all() {
            let mut value = None;
            if let Some(leaf) = first(&self.leaves, row) {
                match (self.convert)(leaf.value(row, view.places)) {
                    Ok(converted) => value = Some(converted),
                    Err(what) => view.failed(&leaf.path, what),
                }
            }
            self.validity.push(value.is_some());
            self.values.push(value.unwrap_or_default());
        }
    }

    fn nulls(&self) -> usize {
        self.validity.nulls()
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let values = renew(&mut self.values);
        let array = PrimitiveArray::<T>::try_new(values.into(), self.validity.finish())?;
        Ok(Arc::new(array.with_data_type(self.data_type.clone())))
    }
}

/// Booleans.
pub(super) struct Booleans {
    scope: usize,
    leaves: Vec<Leaf>,
    values: BooleanBufferBuilder,
    validity: Validity,
}

impl Booleans {
    pub(super) fn new(scope: usize, leaves: Vec<Leaf>) -> Self {
        Self {
            scope,
            leaves,
            values: BooleanBufferBuilder::new(0),
            validity: Validity::default(),
        }
    }
}

impl Fill for Booleans {
    fn append(&mut self, view: &mut View<'_>) {
        for row in view.scopes[self.scope].all() {
            if let Some(leaf) = first(&self.leaves, row) {
                self.values.append(row[usize::from(leaf.cell)] != 0);
                self.validity.push(true);
            } else {
                self.values.append(false);
                self.validity.push(false);
            }
        }
    }

    fn nulls(&self) -> usize {
        self.validity.nulls()
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let values = self.values.finish();
        Ok(Arc::new(BooleanArray::new(values, self.validity.finish())))
    }
}

/// The offset of each message, or its place among those of its offset.
pub(super) struct Positions<T: ArrowPrimitiveType> {
    ordinals: bool,
    convert: fn(u64) -> Option<T::Native>,
    values: Vec<T::Native>,
}

impl<T: ArrowPrimitiveType> Positions<T> {
    pub(super) fn new(ordinals: bool, convert: fn(u64) -> Option<T::Native>) -> Self {
        Self {
            ordinals,
            convert,
            values: Vec::new(),
        }
    }
}

impl<T: ArrowPrimitiveType> Fill for Positions<T> {
    fn append(&mut self, view: &mut View<'_>) {
        for message in view.kept {
            let message = *message as usize;
            let position = if self.ordinals {
                u64::from(view.messages.ordinals[message])
            } else {
                view.messages.offsets[message]
            };
            let value = (self.convert)(position);
            if value.is_none() {
                let which = if self.ordinals { "ordinal" } else { "offset" };
                view.failures
                    .push(crate::formats::json::text::Failure::new(format!(
                        "the {which} does not fit the type of its column"
                    )));
            }
            self.values.push(value.unwrap_or_default());
        }
    }

    fn nulls(&self) -> usize {
        0
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let values = renew(&mut self.values);
        Ok(Arc::new(PrimitiveArray::<T>::try_new(values.into(), None)?))
    }
}

fn no_fit(of: &dyn Display) -> String {
    format!("the value does not fit {of}")
}

/// To an integer type named `name`: of integers, and of text that is one.
pub(super) fn integer<N: TryFrom<i128>>(name: &'static str) -> Convert<N> {
    Box::new(move |value| {
        let number = match value {
            Scalar::Int(number) => Some(number),
            Scalar::Bool(set) => Some(i128::from(set)),
            Scalar::Bytes(text) => convert::decimal128(text, 38, 0),
            Scalar::Float(_) | Scalar::Moment(..) => None,
        };
        let fitting = number.and_then(|number| N::try_from(number).ok());
        fitting.ok_or_else(|| no_fit(&name))
    })
}

/// To 64-bit floats: of floats, and of integers that are not rounded by it.
pub(super) fn double() -> Convert<f64> {
    Box::new(|value| match value {
        Scalar::Float(number) => Ok(number),
        Scalar::Int(number) if number.unsigned_abs() <= 1 << 53 => Ok(number as f64),
        _ => Err(no_fit(&"double")),
    })
}

/// To decimals of at most 38 digits.
pub(super) fn decimal128(precision: u8, scale: i8) -> Convert<i128> {
    let no_fit = move || no_fit(&format!("decimal({precision}, {scale})"));
    Box::new(move |value| {
        let number = match value {
            Scalar::Bytes(text) => convert::decimal128(text, precision, scale),
            Scalar::Int(number) => {
                // The digits are those of a number that has them, so the rules are the same.
                convert::decimal128(number.to_string().as_bytes(), precision, scale)
            }
            _ => None,
        };
        number.ok_or_else(no_fit)
    })
}

/// To decimals of at most 76 digits.
pub(super) fn decimal256(precision: u8, scale: i8) -> Convert<i256> {
    let no_fit = move || no_fit(&format!("decimal256({precision}, {scale})"));
    Box::new(move |value| {
        let number = match value {
            Scalar::Bytes(text) => convert::decimal(text, precision, scale),
            Scalar::Int(number) => {
                convert::decimal(number.to_string().as_bytes(), precision, scale)
            }
            _ => None,
        };
        number.ok_or_else(no_fit)
    })
}

fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

/// To times: of a Timestamp (cut down to the unit, never rounded up), and of integers in the unit.
pub(super) fn timestamp(unit: TimeUnit) -> Convert<i64> {
    let per_second = per_second(unit);
    Box::new(move |value| match value {
        Scalar::Moment(seconds, nanos) => {
            if !is_timestamp(seconds, nanos) {
                return Err(OUT_OF_RANGE.to_owned());
            }
            let part = i64::from(nanos) / (1_000_000_000 / per_second);
            let whole = seconds.checked_mul(per_second);
            let value = whole.and_then(|whole| whole.checked_add(part));
            value.ok_or_else(|| no_fit(&"timestamps of nanoseconds"))
        }
        Scalar::Int(number) => i64::try_from(number).map_err(|_| no_fit(&"timestamp")),
        _ => Err(no_fit(&"timestamp")),
    })
}

/// To microseconds: of a Duration, cut towards zero.
pub(super) fn duration() -> Convert<i64> {
    Box::new(|value| {
        let Scalar::Moment(seconds, nanos) = value else {
            return Err(no_fit(&"duration"));
        };
        // As the type says: ten thousand years, and both parts of the same sign.
        let valid = seconds.unsigned_abs() <= 315_576_000_000
            && nanos.unsigned_abs() < 1_000_000_000
            && (seconds == 0 || nanos == 0 || (seconds < 0) == (nanos < 0));
        if !valid {
            return Err("the duration is out of range".to_owned());
        }
        Ok(seconds * 1_000_000 + i64::from(nanos) / 1_000)
    })
}
