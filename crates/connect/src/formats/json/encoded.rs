//! Columns whose values are not written as their type says: see [`How`].
//!
//! Where it matters for speed the value is read straight from the string; else it is rewritten in
//! the type's own notation, and read by the column of that type.

use arrow::{
    array::ArrayRef,
    datatypes::{DataType, Field, TimeUnit, i256},
    error::ArrowError,
};
use calve_engine::Result;

use super::{
    column::{Column, Slot},
    fixed,
    strings::Octets,
    text::{Failure, Step, byte, colon, number_end, skip_space, skip_value, string, word},
    wire::{How, Wire},
};

/// What to try when a decimal does not fit.
const ADVICE: &str = " (its decimals are read as base64: see `decimal` of the format)";
/// The largest scale that is taken, either way; far outside every precision.
const MOST_SCALE: u32 = 1000;

/// Writes the value at `at` in the notation of the column's type, and answers where it ends; none
/// where the column reads it as it stands.
type Rewrite = Box<dyn FnMut(&str, usize, &mut String) -> Result<Option<usize>, Failure> + Send>;

/// The column of a field whose values are written in another way than its type's; none where that
/// makes no difference for its type.
///
/// # Errors
/// Those of [`Slot::new`].
pub(super) fn column(field: &Field, how: How) -> Result<Option<Box<dyn Column>>> {
    let (data_type, nullable) = (field.data_type(), field.is_nullable());
    let slot = || Slot::new(field, &Wire::default());
    Ok(Some(match (how, data_type) {
        (How::Unit(from), _) if unit_of(data_type).is_some_and(|unit| unit != from) => {
            let to = unit_of(data_type).map_or(1, per_second);
            let from = per_second(from);
            Rewritten::of(slot()?, move |text, at, into| {
                scaled(text, at, into, from, to)
            })
        }
        (
            How::Base64 | How::Base64Url,
            DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_),
        ) => {
            let decode = match how {
                How::Base64Url => |text: &str| base64(text, true),
                _ => |text: &str| base64(text, false),
            };
            let expected = "a string of base64";
            Box::new(Octets::new(data_type.clone(), nullable, decode, expected))
        }
        (How::Unscaled(scale), DataType::Decimal128(precision, to)) => {
            let (digits, from) = ((*precision, *to), scale.unwrap_or(*to));
            let read = move |text: &str| unscaled(text, from, digits);
            let plain = fixed::unscaled(data_type, nullable, digits, Box::new(read), ADVICE);
            Rewritten::of(Slot::Other(plain), |text, at, into| {
                variable(text, at, into)
            })
        }
        (How::Unscaled(scale), of) => {
            let quoted = matches!(
                of,
                DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
            );
            let scale = scale.unwrap_or(match of {
                DataType::Decimal256(_, scale) => *scale,
                _ => 0,
            });
            Rewritten::of(slot()?, move |text, at, into| {
                decimal_text(text, at, into, scale, quoted)
            })
        }
        (How::Text, _) => Rewritten::of(slot()?, scalar_text),
        (How::Iso, DataType::Date32 | DataType::Time32(_) | DataType::Time64(_)) => {
            Rewritten::of(slot()?, without_zone)
        }
        (How::Operation, _) => Rewritten::of(slot()?, |text, at, _| {
            let known = ["\"c\"", "\"u\"", "\"d\"", "\"r\"", "\"t\"", "null"];
            let ahead = text.get(at..).unwrap_or_default();
            if known.iter().any(|op| ahead.starts_with(op)) {
                return Ok(None);
            }
            Err(Failure::new("the operation is none of c, u, d, r, t"))
        }),
        (How::Plain | How::Unit(_) | How::Base64 | How::Base64Url | How::Iso, _) => {
            return Ok(None);
        }
    }))
}

/// A column whose values are rewritten before it reads them.
struct Rewritten {
    inner: Slot,
    rewrite: Rewrite,
    scratch: String,
}

impl Rewritten {
    fn of(
        inner: Slot,
        rewrite: impl FnMut(&str, usize, &mut String) -> Result<Option<usize>, Failure> + Send + 'static,
    ) -> Box<dyn Column> {
        Box::new(Self {
            inner,
            rewrite: Box::new(rewrite),
            scratch: String::new(),
        })
    }
}

impl Column for Rewritten {
    fn len(&self) -> usize {
        match &self.inner {
            Slot::Int(column) => column.len(),
            Slot::Float(column) => column.len(),
            Slot::Text(column) => column.len(),
            Slot::Repeated(column) => column.len(),
            Slot::Other(column) => column.len(),
        }
    }

    fn append(&mut self, text: &str, at: usize) -> Step {
        let at = skip_space(text.as_bytes(), at);
        self.scratch.clear();
        match (self.rewrite)(text, at, &mut self.scratch)? {
            Some(end) => {
                self.inner.append(&self.scratch, 0)?;
                Ok(end)
            }
            None => self.inner.append(text, at),
        }
    }

    fn append_null(&mut self) {
        self.inner.any().append_null();
    }

    fn truncate(&mut self, len: usize) {
        self.inner.any().truncate(len);
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        self.inner.any().finish()
    }
}

/// The unit of a type of times.
fn unit_of(data_type: &DataType) -> Option<TimeUnit> {
    match data_type {
        DataType::Timestamp(unit, _) | DataType::Time32(unit) | DataType::Time64(unit) => {
            Some(*unit)
        }
        _ => None,
    }
}

fn per_second(unit: TimeUnit) -> i128 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

/// An integer that counts `from` parts of a second, as one that counts `to`; rounded down.
fn scaled(
    text: &str,
    at: usize,
    into: &mut String,
    from: i128,
    to: i128,
) -> Result<Option<usize>, Failure> {
    let bytes = text.as_bytes();
    if !matches!(byte(bytes, at), b'-' | b'0'..=b'9') {
        return Ok(None);
    }
    let end = number_end(bytes, at)?;
    let count: i64 = text[at..end]
        .parse()
        .map_err(|_| Failure::new("the value does not fit a count of time"))?;
    into.push_str(&(i128::from(count) * to).div_euclid(from).to_string());
    Ok(Some(end))
}

/// A number or boolean as a string.
fn scalar_text(text: &str, at: usize, into: &mut String) -> Result<Option<usize>, Failure> {
    let bytes = text.as_bytes();
    let end = match byte(bytes, at) {
        b'-' | b'0'..=b'9' => number_end(bytes, at)?,
        b't' => word(bytes, at, b"true")?,
        b'f' => word(bytes, at, b"false")?,
        _ => return Ok(None),
    };
    into.push('"');
    into.push_str(&text[at..end]);
    into.push('"');
    Ok(Some(end))
}

/// A string without the `Z` that it ends in.
fn without_zone(text: &str, at: usize, into: &mut String) -> Result<Option<usize>, Failure> {
    if byte(text.as_bytes(), at) != b'"' {
        return Ok(None);
    }
    let (content, end) = string(text, at)?;
    let Some(content) = content.strip_suffix('Z') else {
        return Ok(None);
    };
    into.push('"');
    into.push_str(content);
    into.push('"');
    Ok(Some(end))
}

/// A decimal in any notation, as a number or a string of its digits.
fn decimal_text(
    text: &str,
    at: usize,
    into: &mut String,
    scale: i8,
    quoted: bool,
) -> Result<Option<usize>, Failure> {
    let bytes = text.as_bytes();
    let quote = if quoted { "\"" } else { "" };
    into.push_str(quote);
    let end = match byte(bytes, at) {
        b'"' => {
            let (content, end) = string(text, at)?;
            write_digits(&content, i32::from(scale), into)?;
            end
        }
        b'{' => match variable(text, at, into)? {
            Some(end) => end,
            None => return Ok(None),
        },
        b'-' | b'0'..=b'9' => {
            let end = number_end(bytes, at)?;
            into.push_str(&text[at..end]);
            end
        }
        _ => return Ok(None),
    };
    into.push_str(quote);
    Ok(Some(end))
}

/// An object of `scale` and `value`, as the number that it stands for.
fn variable(text: &str, at: usize, into: &mut String) -> Result<Option<usize>, Failure> {
    let bytes = text.as_bytes();
    if byte(bytes, at) != b'{' {
        return Ok(None);
    }
    let wrong = || Failure::new("expected an object of a scale and a value in base64");
    let (mut scale, mut value) = (None, None);
    let mut at = skip_space(bytes, at + 1);
    while byte(bytes, at) == b'"' {
        let (key, next) = string(text, at)?;
        at = colon(bytes, next)?;
        let end = skip_value(bytes, at)?;
        match key.as_ref() {
            "scale" => scale = Some(text[at..end].parse::<i32>().map_err(|_| wrong())?),
            "value" if byte(bytes, at) == b'"' => value = Some(string(text, at)?.0),
            _ => {}
        }
        at = skip_space(bytes, end);
        if byte(bytes, at) == b',' {
            at = skip_space(bytes, at + 1);
        }
    }
    let (Some(scale), Some(value), b'}') = (scale, value, byte(bytes, at)) else {
        return Err(wrong());
    };
    write_digits(&value, scale, into)?;
    Ok(Some(at + 1))
}

/// Writes the decimal whose unscaled number is `value`, in base64.
fn write_digits(value: &str, scale: i32, into: &mut String) -> Result<(), Failure> {
    let wrong = || Failure::new("a decimal is not base64 of at most 32 bytes");
    if scale.unsigned_abs() > MOST_SCALE {
        return Err(Failure::new("a decimal's scale is out of range"));
    }
    let bytes = base64(value, false).ok_or_else(wrong)?;
    let digits = whole(&bytes).ok_or_else(wrong)?.to_string();
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", digits.as_str()),
    };
    into.push_str(sign);
    match usize::try_from(scale) {
        Ok(0) => into.push_str(digits),
        Ok(scale) => {
            let before = digits.len().saturating_sub(scale);
            into.push_str(if before == 0 { "0" } else { &digits[..before] });
            into.push('.');
            into.extend(std::iter::repeat_n('0', scale.saturating_sub(digits.len())));
            into.push_str(&digits[before..]);
        }
        Err(_) if digits == "0" => into.push('0'),
        Err(_) => {
            into.push_str(digits);
            into.extend(std::iter::repeat_n('0', scale.unsigned_abs() as usize));
        }
    }
    Ok(())
}

/// The decimal of `digits` (precision and scale) whose unscaled number is `text` in base64 and whose
/// scale is `from`; digits beyond the scale are cut off, as of those that are written as numbers.
fn unscaled(text: &str, from: i8, (precision, to): (u8, i8)) -> Option<i128> {
    let value = whole(&base64(text, false)?)?;
    let ten = |power: i8| i256::from_i128(10).checked_pow(u32::from(power.unsigned_abs()));
    let moved = match to.checked_sub(from)? {
        0 => value,
        up @ 1.. => value.checked_mul(ten(up)?)?,
        down => ten(down).map_or(Some(i256::ZERO), |by| value.checked_div(by))?,
    };
    let moved = moved.to_i128()?;
    let most = 10_u128.checked_pow(u32::from(precision))?;
    (moved.unsigned_abs() < most).then_some(moved)
}

/// The integer of big-endian bytes in two's complement; none where it has more than 256 bits.
fn whole(bytes: &[u8]) -> Option<i256> {
    let negative = bytes.first()? & 0x80 != 0;
    let fill = if negative { 0xff } else { 0 };
    let surplus = bytes.len().saturating_sub(32);
    let (extra, rest) = bytes.split_at(surplus);
    let mut all = [fill; 32];
    all[32 - rest.len()..].copy_from_slice(rest);
    let same_sign = surplus == 0 || (rest[0] & 0x80 != 0) == negative;
    (same_sign && extra.iter().all(|b| *b == fill)).then(|| i256::from_be_bytes(all))
}

/// The bytes of base64; the padding may be left out.
fn base64(text: &str, url: bool) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    let padding = text.iter().rev().take_while(|b| **b == b'=').count();
    let digits = &text[..text.len() - padding];
    let padded = padding == 0 || (padding <= 2 && text.len().is_multiple_of(4));
    if digits.len() % 4 == 1 || !padded {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let mut bits = 0_u32;
        for (n, digit) in group.iter().enumerate() {
            let six = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' if !url => 62,
                b'/' if !url => 63,
                b'-' if url => 62,
                b'_' if url => 63,
                _ => return None,
            };
            bits |= u32::from(six) << (18 - 6 * n);
        }
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_every_length() {
        for (text, expected) in [
            ("", Some(&b""[..])),
            ("Zg==", Some(b"f")),
            ("Zg", Some(b"f")),
            ("Zm8=", Some(b"fo")),
            ("Zm9v", Some(b"foo")),
            ("Zm9vYg==", Some(b"foob")),
            ("+/8=", Some(b"\xfb\xff")),
            ("-_8=", None),
            ("Z", None),
            ("Zg=", None),
            ("Zm9v====", None),
            ("Zm 9", None),
            ("Zg==Zg==", None),
        ] {
            assert_eq!(base64(text, false).as_deref(), expected, "{text}");
        }
        assert_eq!(base64("-_8=", true).as_deref(), Some(&b"\xfb\xff"[..]));
    }

    #[test]
    fn decimals_of_bytes() {
        // 0x3039 is 12345, 0xcfc7 its negative.
        for (text, from, to, expected) in [
            ("MDk=", 2, 2, Some(12345)),
            ("z8c=", 2, 2, Some(-12345)),
            ("////z8c=", 2, 2, Some(-12345)),
            ("MDk=", 2, 4, Some(1_234_500)),
            ("MDk=", 4, 2, Some(123)),
            ("z8c=", 4, 2, Some(-123)),
            ("MDk=", 100, 2, Some(0)),
            ("AA==", 2, 2, Some(0)),
            ("", 2, 2, None),
            ("MDk=", -100, 2, None),
            ("f/////////////////////8=", 0, 0, None),
            ("12.3", 2, 2, None),
        ] {
            assert_eq!(unscaled(text, from, (20, to)), expected, "{text}");
        }
        assert_eq!(unscaled("MDk=", 2, (4, 2)), None, "five digits");
        let digits = |value: &str, scale| {
            let mut text = String::new();
            write_digits(value, scale, &mut text).map(|()| text).ok()
        };
        for (scale, expected) in [
            (0, "-12345"),
            (2, "-123.45"),
            (5, "-0.12345"),
            (7, "-0.0012345"),
            (-2, "-1234500"),
        ] {
            assert_eq!(digits("z8c=", scale).as_deref(), Some(expected));
        }
        assert_eq!(digits("z8c=", 1001), None);
    }
}
