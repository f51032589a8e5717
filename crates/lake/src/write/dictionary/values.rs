//! The distinct values of a column chunk, numbered in the order of their first occurrence.

use std::ops::Range;

use calve_engine::short::{self, Mixer, Numbering, SHORT};
use parquet::{
    basic::Type,
    data_type::ByteArray,
    file::statistics::{Statistics, ValueStatistics},
};

/// Longer lowest and highest values are shortened in statistics.
const STATISTICS_BYTES: usize = 64;

/// Slots of a first table, which is that of many columns of many files: doubled as need be.
const FIRST_BITS: u32 = 6;

/// Numbers of four or eight bytes, told apart by their bits.
#[derive(Debug)]
pub(super) struct Numbers {
    physical: Type,
    bits: Numbering<u64>,
}

impl Numbers {
    /// `physical` is `INT32`, `INT64`, `FLOAT` or `DOUBLE`.
    pub(super) fn new(physical: Type) -> Self {
        Self {
            physical,
            bits: Numbering::new(FIRST_BITS),
        }
    }

    /// The number of a value; a new one where it was not seen before.
    #[inline]
    pub(super) fn id(&mut self, value: u64) -> u32 {
        self.bits
            .find(value)
            .unwrap_or_else(|| self.bits.insert(value))
    }

    fn width(&self) -> usize {
        match self.physical {
            Type::INT32 | Type::FLOAT => 4,
            _ => 8,
        }
    }

    /// The body of the dictionary page.
    fn page(&self) -> Vec<u8> {
        let width = self.width();
        let mut page = Vec::with_capacity(self.bits.len() * width);
        for bits in self.bits.keys() {
            page.extend_from_slice(&bits.to_le_bytes()[..width]);
        }
        page
    }

    fn statistics(&self, nulls: u64) -> Statistics {
        let bits = self.bits.keys().iter().copied();
        let nulls = Some(nulls);
        match self.physical {
            Type::INT32 => {
                let (low, high) = ends(bits.map(|b| b as i32));
                Statistics::Int32(
                    ValueStatistics::new(low, high, None, nulls, false)
                        .with_backwards_compatible_min_max(true),
                )
            }
            Type::FLOAT => {
                let (low, high) = float_ends(bits.map(|b| f64::from(f32::from_bits(b as u32))));
                let (low, high) = (low.map(|v| v as f32), high.map(|v| v as f32));
                Statistics::Float(
                    ValueStatistics::new(low, high, None, nulls, false)
                        .with_backwards_compatible_min_max(true),
                )
            }
            Type::DOUBLE => {
                let (low, high) = float_ends(bits.map(f64::from_bits));
                Statistics::Double(
                    ValueStatistics::new(low, high, None, nulls, false)
                        .with_backwards_compatible_min_max(true),
                )
            }
            _ => {
                let (low, high) = ends(bits.map(|b| b as i64));
                Statistics::Int64(
                    ValueStatistics::new(low, high, None, nulls, false)
                        .with_backwards_compatible_min_max(true),
                )
            }
        }
    }
}

fn ends<T: Ord + Copy>(values: impl Iterator<Item = T> + Clone) -> (Option<T>, Option<T>) {
    (values.clone().min(), values.max())
}

/// NaN has no place in an order; zero may be either zero, as the format asks for.
fn float_ends(values: impl Iterator<Item = f64> + Clone) -> (Option<f64>, Option<f64>) {
    let values = values.filter(|v| !v.is_nan());
    let zero = |value: f64, zero: f64| if value == 0.0 { zero } else { value };
    let low = values.clone().reduce(f64::min).map(|low| zero(low, -0.0));
    let high = values.reduce(f64::max).map(|high| zero(high, 0.0));
    (low, high)
}

/// Strings.
#[derive(Debug)]
pub(super) struct Texts {
    mix: Mixer,
    /// The body of the dictionary page: lengths and bytes.
    page: Vec<u8>,
    /// Where each string ends in `page`.
    ends: Vec<u32>,
    /// Of short strings their keys, of others a hash and [`LONG`].
    numbers: Numbering<u128>,
}

/// No short string has a key with this last byte.
const LONG: u128 = 0xff << 120;

impl Texts {
    pub(super) fn new() -> Self {
        Self {
            mix: Mixer::new(),
            page: Vec::new(),
            ends: Vec::new(),
            numbers: Numbering::new(FIRST_BITS),
        }
    }

    /// The number of the string at `range` of `values`; a new one where it was not seen before.
    #[inline]
    pub(super) fn id(&mut self, values: &[u8], range: Range<usize>) -> u32 {
        if range.len() >= SHORT {
            return self.long(&values[range]);
        }
        let key = short::key(values, range.clone());
        match self.numbers.find(key) {
            Some(id) => id,
            None => self.add(key, &values[range]),
        }
    }

    #[inline(never)]
    fn long(&mut self, string: &[u8]) -> u32 {
        let key = u128::from(self.mix.bytes(string)) | LONG;
        let same = |id: u32| self.string(id) == string;
        match self.numbers.find_same(key, same) {
            Some(id) => id,
            None => self.add(key, string),
        }
    }

    #[cold]
    fn add(&mut self, key: u128, string: &[u8]) -> u32 {
        self.page
            .extend_from_slice(&(string.len() as u32).to_le_bytes());
        self.page.extend_from_slice(string);
        self.ends.push(self.page.len() as u32);
        self.numbers.insert(key)
    }

    fn string(&self, id: u32) -> &[u8] {
        string_of(&self.page, &self.ends, id)
    }

    fn statistics(&self, nulls: u64) -> Statistics {
        let strings = || (0..self.numbers.len() as u32).map(|id| self.string(id));
        let (low, high) = (strings().min(), strings().max());
        let shown = (low.map(lowered), high.map(raised));
        let exact = (shown.0.as_deref() == low, shown.1.as_deref() == high);
        let bytes = |shown: Option<Vec<u8>>| shown.map(ByteArray::from);
        let ends = ValueStatistics::new(bytes(shown.0), bytes(shown.1), None, Some(nulls), false);
        Statistics::ByteArray(ends.with_min_is_exact(exact.0).with_max_is_exact(exact.1))
    }
}

/// The string, or a short one below it.
fn lowered(string: &[u8]) -> Vec<u8> {
    start_of(string).unwrap_or(string).to_vec()
}

/// The string, or a short one above it where there is one.
fn raised(string: &[u8]) -> Vec<u8> {
    let raised = || {
        let start = std::str::from_utf8(start_of(string)?).ok()?;
        start.char_indices().rev().find_map(|(at, last)| {
            let next = char::from_u32(last as u32 + 1)?;
            // A longer character may be longer than the limit.
            let same = next.len_utf8() == last.len_utf8();
            same.then(|| format!("{}{next}", &start[..at]).into_bytes())
        })
    };
    raised().unwrap_or_else(|| string.to_vec())
}

/// As many characters of a long string as statistics have room for; none: it is not long.
fn start_of(string: &[u8]) -> Option<&[u8]> {
    let text = std::str::from_utf8(string).ok()?;
    (text.len() > STATISTICS_BYTES).then(|| &string[..text.floor_char_boundary(STATISTICS_BYTES)])
}

fn string_of<'a>(page: &'a [u8], ends: &[u32], id: u32) -> &'a [u8] {
    let at = id as usize;
    let start = at.checked_sub(1).map_or(0, |before| ends[before]) as usize;
    &page[start + 4..ends[at] as usize]
}

/// The distinct values of a column chunk.
#[derive(Debug)]
pub(super) enum Values {
    Numbers(Numbers),
    Texts(Texts),
}

impl Values {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Numbers(numbers) => numbers.bits.len(),
            Self::Texts(texts) => texts.numbers.len(),
        }
    }

    /// Bytes of the dictionary page, before compression.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Numbers(numbers) => numbers.bits.len() * numbers.width(),
            Self::Texts(texts) => texts.page.len(),
        }
    }

    /// Memory held, in bytes.
    pub(super) fn memory(&self) -> usize {
        match self {
            Self::Numbers(numbers) => numbers.bits.memory(),
            Self::Texts(texts) => {
                texts.page.capacity() + texts.ends.capacity() * 4 + texts.numbers.memory()
            }
        }
    }

    /// Lowest and highest value, and the number of nulls.
    pub(super) fn statistics(&self, nulls: u64) -> Statistics {
        match self {
            Self::Numbers(numbers) => numbers.statistics(nulls),
            Self::Texts(texts) => texts.statistics(nulls),
        }
    }

    /// The body of the dictionary page.
    pub(super) fn into_page(self) -> Vec<u8> {
        match self {
            Self::Numbers(numbers) => numbers.page(),
            Self::Texts(texts) => texts.page,
        }
    }
}
