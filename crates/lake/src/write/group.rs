//! Dense group ids: rows with equal keys get the same small number, in order of first occurrence.
//!
//! Each key column becomes codes of its own, and the columns are combined. Integers within a small
//! range, dictionaries and combinations of few codes go through a plain table; the rest through a
//! hash table of row numbers that copies no key. Null is a value like any other; NaN equals NaN.

use arrow::{
    array::{
        Array, ArrayRef, ArrowPrimitiveType, AsArray, GenericStringArray, OffsetSizeTrait,
        PrimitiveArray, UInt32Array,
    },
    buffer::NullBuffer,
    compute::take,
    datatypes::{
        DataType, Date32Type, Date64Type, Decimal128Type, Float32Type, Float64Type, Int8Type,
        Int16Type, Int32Type, Int64Type, Time32MillisecondType, Time32SecondType,
        Time64MicrosecondType, Time64NanosecondType, TimeUnit, TimestampMicrosecondType,
        TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type,
        UInt16Type, UInt32Type, UInt64Type,
    },
};
use calve_engine::{
    error::{Error, Result},
    short::{self, Mixer, SHORT},
};

use super::{arrow_failed, partition::KeyValue};

/// Tables of up to this many entries are used whatever the number of rows.
const SMALL_TABLE: usize = 4096;
const NONE: u32 = u32::MAX;

/// Group of each row, and the first row of each group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Groups {
    /// As many as rows; below `firsts.len()`. Empty when there is at most one group.
    pub(crate) ids: Vec<u32>,
    /// First row of each group, rising.
    pub(crate) firsts: Vec<u32>,
}

impl Groups {
    /// Groups `rows` rows by their keys.
    pub(crate) fn of(keys: &[ArrayRef], rows: usize) -> Result<Self> {
        let mut groups = Self::one(rows);
        for key in keys {
            let codes = column(key.as_ref())?;
            groups = groups.combine(codes, rows);
        }
        Ok(groups)
    }

    fn one(rows: usize) -> Self {
        Self {
            ids: Vec::new(),
            firsts: if rows == 0 { Vec::new() } else { vec![0] },
        }
    }

    fn combine(self, other: Self, rows: usize) -> Self {
        if other.firsts.len() <= 1 {
            return self;
        }
        if self.firsts.len() <= 1 {
            return other;
        }
        let width = other.firsts.len();
        let cells = self.firsts.len().saturating_mul(width);
        let (a, b) = (&self.ids, &other.ids);
        if cells <= table_limit(rows) {
            tabled(
                a.iter()
                    .zip(b)
                    .map(|(a, b)| *a as usize * width + *b as usize),
                cells,
                rows,
            )
        } else {
            let mix = Mixer::new();
            let pair = |row: usize| (u64::from(a[row]) << 32) | u64::from(b[row]);
            hashed(rows, pair, |pair| mix.number(*pair))
        }
    }

    /// Whether the rows of each group follow each other already.
    pub(crate) fn contiguous(&self) -> bool {
        self.ids.is_sorted()
    }
}

fn table_limit(rows: usize) -> usize {
    SMALL_TABLE.max(rows.saturating_mul(4))
}

/// Groups of codes below `cells`.
fn tabled(codes: impl Iterator<Item = usize>, cells: usize, rows: usize) -> Groups {
    let mut table = vec![NONE; cells];
    let mut firsts = Vec::new();
    let mut ids = Vec::with_capacity(rows);
    ids.extend(codes.enumerate().map(|(row, code)| {
        let id = table[code];
        if id != NONE {
            return id;
        }
        let id = firsts.len() as u32;
        table[code] = id;
        firsts.push(row as u32);
        id
    }));
    Groups { ids, firsts }
}

/// Groups of any values; `value` is called for each row, and for first rows again.
fn hashed<V: PartialEq>(
    rows: usize,
    value: impl Fn(usize) -> V,
    hash: impl Fn(&V) -> u64,
) -> Groups {
    let mut slots = vec![NONE; 64];
    let mut groups = Groups::one(0);
    let mut hashes: Vec<u64> = Vec::new();
    groups.ids.reserve(rows);
    let mut last: Option<(V, u32)> = None;
    for row in 0..rows {
        let this = value(row);
        if let Some((before, id)) = &last
            && *before == this
        {
            groups.ids.push(*id);
            continue;
        }
        let code = hash(&this);
        let mut at = code as usize & (slots.len() - 1);
        let id = loop {
            let id = slots[at];
            if id == NONE {
                let id = groups.firsts.len() as u32;
                slots[at] = id;
                groups.firsts.push(row as u32);
                hashes.push(code);
                break id;
            }
            let seen = id as usize;
            if hashes[seen] == code && value(groups.firsts[seen] as usize) == this {
                break id;
            }
            at = (at + 1) & (slots.len() - 1);
        };
        groups.ids.push(id);
        last = Some((this, id));
        if groups.firsts.len() * 2 > slots.len() {
            slots = grown(slots.len() * 4, &hashes);
        }
    }
    groups
}

fn grown(size: usize, hashes: &[u64]) -> Vec<u32> {
    let mut slots = vec![NONE; size];
    for (id, code) in hashes.iter().enumerate() {
        let mut at = *code as usize & (size - 1);
        while slots[at] != NONE {
            at = (at + 1) & (size - 1);
        }
        slots[at] = id as u32;
    }
    slots
}

fn integers<T>(array: &PrimitiveArray<T>) -> Groups
where
    T: ArrowPrimitiveType,
    T::Native: Into<i64> + Ord,
{
    let (values, nulls) = (array.values(), array.nulls().filter(|n| n.null_count() > 0));
    let rows = values.len();
    if nulls.is_none()
        && let Some(groups) = close_together(values)
    {
        return groups;
    }
    // The values behind nulls count too: at worst the table is not used.
    let (Some(low), Some(high)) = (values.iter().copied().min(), values.iter().copied().max())
    else {
        return Groups::one(0);
    };
    let (low, high): (i64, i64) = (low.into(), high.into());
    if low == high && nulls.is_none() {
        return Groups::one(rows);
    }
    let range = high.wrapping_sub(low) as u64;
    if range < table_limit(rows) as u64 {
        let cell = |v: &T::Native| ((*v).into() - low) as usize;
        let cells = range as usize + 2;
        return match nulls {
            None => tabled(values.iter().map(cell), cells, rows),
            Some(nulls) => {
                let cell = |(v, valid)| if valid { cell(v) } else { cells - 1 };
                tabled(values.iter().zip(nulls.iter()).map(cell), cells, rows)
            }
        };
    }
    let mix = Mixer::new();
    scalars(
        rows,
        nulls,
        |row| -> i64 { values[row].into() },
        |v| mix.number(*v as u64),
    )
}

/// Groups of integers that lie around the first: found in one pass, without their lowest and highest
/// first. None at the first value that is too far away.
fn close_together<T: Copy + Into<i64>>(values: &[T]) -> Option<Groups> {
    let mut table = [NONE; SMALL_TABLE];
    let first: i64 = (*values.first()?).into();
    let base = first.wrapping_sub(SMALL_TABLE as i64 / 2);
    let mut ids = vec![0; values.len()];
    let mut firsts = Vec::new();
    for (row, (value, id)) in values.iter().zip(&mut ids).enumerate() {
        let value: i64 = (*value).into();
        let cell = usize::try_from(value.wrapping_sub(base) as u64).ok()?;
        let cell = table.get_mut(cell)?;
        if *cell == NONE {
            *cell = firsts.len() as u32;
            firsts.push(row as u32);
        }
        *id = *cell;
    }
    if firsts.len() <= 1 {
        return Some(Groups::one(values.len()));
    }
    Some(Groups { ids, firsts })
}

/// Groups of values that are cheap to get, with or without nulls.
fn scalars<V: PartialEq>(
    rows: usize,
    nulls: Option<&NullBuffer>,
    value: impl Fn(usize) -> V,
    hash: impl Fn(&V) -> u64,
) -> Groups {
    match nulls.filter(|n| n.null_count() > 0) {
        None => hashed(rows, value, hash),
        Some(nulls) => hashed(
            rows,
            |row| nulls.is_valid(row).then(|| value(row)),
            |v| v.as_ref().map_or(0, &hash),
        ),
    }
}

fn bytes<'a>(array: &'a dyn Array, value: impl Fn(usize) -> &'a [u8]) -> Groups {
    let mix = Mixer::new();
    scalars(array.len(), array.nulls(), value, |v| mix.bytes(v))
}

/// Strings that are all short are compared and hashed as numbers.
fn strings<O: OffsetSizeTrait>(array: &GenericStringArray<O>) -> Groups {
    let (values, offsets) = (array.value_data(), array.value_offsets());
    let range = |row: usize| offsets[row].as_usize()..offsets[row + 1].as_usize();
    if offsets.windows(2).all(|w| (w[1] - w[0]).as_usize() < SHORT) {
        let mix = Mixer::new();
        let key = |row| short::key(values, range(row));
        return scalars(array.len(), array.nulls(), key, |key| mix.key(*key));
    }
    bytes(array, |row| &values[range(row)])
}

fn column(array: &dyn Array) -> Result<Groups> {
    macro_rules! int {
        ($type:ty) => {
            integers(array.as_primitive::<$type>())
        };
    }
    let (rows, nulls) = (array.len(), array.nulls());
    let mix = Mixer::new();
    Ok(match array.data_type() {
        DataType::Null => Groups::one(rows),
        DataType::Boolean => {
            let values = array.as_boolean();
            let code = |row: usize| {
                if values.is_null(row) {
                    2
                } else {
                    usize::from(values.value(row))
                }
            };
            tabled((0..rows).map(code), 3, rows)
        }
        DataType::Int8 => int!(Int8Type),
        DataType::Int16 => int!(Int16Type),
        DataType::Int32 => int!(Int32Type),
        DataType::Int64 => int!(Int64Type),
        DataType::UInt8 => int!(UInt8Type),
        DataType::UInt16 => int!(UInt16Type),
        DataType::UInt32 => int!(UInt32Type),
        DataType::UInt64 => {
            let values = array.as_primitive::<UInt64Type>().values();
            scalars(rows, nulls, |row| values[row], |v| mix.number(*v))
        }
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
            let values = array.as_primitive::<Decimal128Type>().values();
            let hash = |v: &i128| mix.number(*v as u64 ^ mix.number((*v >> 64) as u64));
            scalars(rows, nulls, |row| values[row], hash)
        }
        DataType::Float32 => {
            let values = array.as_primitive::<Float32Type>().values();
            scalars(
                rows,
                nulls,
                |row| float_bits(f64::from(values[row])),
                |v| mix.number(*v),
            )
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>().values();
            scalars(
                rows,
                nulls,
                |row| float_bits(values[row]),
                |v| mix.number(*v),
            )
        }
        DataType::Utf8 => strings(array.as_string::<i32>()),
        DataType::LargeUtf8 => strings(array.as_string::<i64>()),
        DataType::Utf8View => {
            let values = array.as_string_view();
            bytes(array, |row| values.value(row).as_bytes())
        }
        DataType::Binary => {
            let values = array.as_binary::<i32>();
            bytes(array, |row| values.value(row))
        }
        DataType::LargeBinary => {
            let values = array.as_binary::<i64>();
            bytes(array, |row| values.value(row))
        }
        DataType::BinaryView => {
            let values = array.as_binary_view();
            bytes(array, |row| values.value(row))
        }
        DataType::FixedSizeBinary(_) => {
            let values = array.as_fixed_size_binary();
            bytes(array, |row| values.value(row))
        }
        DataType::Dictionary(..) => dictionary(array)?,
        other => {
            return Err(Error::config(format!(
                "a column of this type cannot partition a table: type={other}"
            )));
        }
    })
}

fn float_bits(value: f64) -> u64 {
    match KeyValue::float(value) {
        KeyValue::Float(bits) => bits,
        _ => 0,
    }
}

fn dictionary(array: &dyn Array) -> Result<Groups> {
    let dictionary = array.as_any_dictionary();
    let rows = array.len();
    let values = dictionary.values();
    if values.is_empty() {
        return Ok(Groups::one(rows));
    }
    if values.len() > table_limit(rows) {
        let keys = dictionary.normalized_keys();
        let indices: UInt32Array = keys
            .iter()
            .enumerate()
            .map(|(row, key)| dictionary.keys().is_valid(row).then_some(*key as u32))
            .collect();
        return column(
            take(values.as_ref(), &indices, None)
                .map_err(arrow_failed)?
                .as_ref(),
        );
    }
    // Values may repeat, and may be null, as well as keys.
    let codes = column(values.as_ref())?;
    let cells = codes.firsts.len() + 1;
    let code = |value: usize| codes.ids.get(value).map_or(0, |id| *id as usize);
    let null_value = (0..values.len()).find(|v| values.is_null(*v));
    let null = null_value.map_or(cells - 1, code);
    let nulls = dictionary.keys().nulls();
    if nulls.is_none()
        && let Some(keys) = dictionary.keys().as_primitive_opt::<Int32Type>()
    {
        let cell = |key: &i32| code(*key as usize);
        return Ok(tabled(keys.values().iter().map(cell), cells, rows));
    }
    let keys = dictionary.normalized_keys();
    let cell = |(row, key): (usize, &usize)| {
        if nulls.is_some_and(|n| n.is_null(row)) {
            null
        } else {
            code(*key)
        }
    };
    Ok(tabled(keys.iter().enumerate().map(cell), cells, rows))
}
