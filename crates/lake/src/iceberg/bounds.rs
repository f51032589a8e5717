//! Lowest and highest values of a column, as Iceberg's manifests hold them: in its single-value
//! serialization, cut as its `truncate(16)` metrics are, and still bounds after the cut.

use iceberg::spec::{Datum, PrimitiveLiteral, PrimitiveType};
use parquet::file::statistics::Statistics;

use super::files::to_hex;

/// Characters or bytes that a bound keeps.
const BOUND_LENGTH: usize = 16;

/// Lowest and highest value over a file's row groups, as comparable literals.
pub(super) struct Bounds {
    of: Option<PrimitiveType>,
    lower: Option<Datum>,
    upper: Option<Datum>,
}

impl Bounds {
    /// Of a column of this type.
    pub(super) fn of(primitive: &PrimitiveType) -> Self {
        Self {
            of: Some(primitive.clone()),
            lower: None,
            upper: None,
        }
    }

    /// Of a column for which there are none.
    pub(super) fn of_nothing() -> Self {
        Self {
            of: None,
            lower: None,
            upper: None,
        }
    }

    /// A chunk that has values but no statistics takes the bounds away for good.
    pub(super) fn add(&mut self, statistics: Option<&Statistics>, values: u64) {
        let Some(primitive) = &self.of else { return };
        if statistics.and_then(Statistics::null_count_opt) == Some(values) {
            return;
        }
        let bound = |bytes: Option<&[u8]>, statistics: &Statistics| -> Option<Datum> {
            let bytes = serialized(primitive, statistics, bytes?)?;
            Datum::try_from_bytes(&bytes, primitive.clone())
                .ok()
                .filter(|d| !d.is_nan())
        };
        let found = statistics
            .and_then(|s| Some((bound(s.min_bytes_opt(), s)?, bound(s.max_bytes_opt(), s)?)));
        let Some((lower, upper)) = found else {
            *self = Self::of_nothing();
            return;
        };
        if self.lower.as_ref().is_none_or(|has| less(&lower, has)) {
            self.lower = Some(lower);
        }
        if self.upper.as_ref().is_none_or(|has| less(has, &upper)) {
            self.upper = Some(upper);
        }
    }

    /// Whether every value lies within these; true where nothing is known.
    pub(super) fn within(&self, lower: Option<&Datum>, upper: Option<&Datum>) -> bool {
        let below = |of: Option<&Datum>, lowest: &Datum| of.is_some_and(|of| less(lowest, of));
        let above = |of: Option<&Datum>, highest: &Datum| of.is_some_and(|of| less(of, highest));
        !self
            .lower
            .as_ref()
            .is_some_and(|lowest| below(lower, lowest))
            && !self
                .upper
                .as_ref()
                .is_some_and(|highest| above(upper, highest))
    }

    /// Both as hexadecimal.
    pub(super) fn finish(self) -> (Option<String>, Option<String>) {
        let lower = self
            .lower
            .and_then(|d| cut_down(d.to_bytes().ok()?.into_vec(), d.data_type()));
        let upper = self
            .upper
            .and_then(|d| cut_up(d.to_bytes().ok()?.into_vec(), d.data_type()));
        (lower.as_deref().map(to_hex), upper.as_deref().map(to_hex))
    }
}

/// `Datum` itself does not order bytes.
fn less(a: &Datum, b: &Datum) -> bool {
    match (a.literal(), b.literal()) {
        (PrimitiveLiteral::Binary(a), PrimitiveLiteral::Binary(b)) => a < b,
        _ => a < b,
    }
}

/// Iceberg's serialization of a Parquet statistic; Parquet's plain encoding is the same but for
/// decimals.
fn serialized(primitive: &PrimitiveType, statistics: &Statistics, bytes: &[u8]) -> Option<Vec<u8>> {
    let PrimitiveType::Decimal { .. } = primitive else {
        return Some(bytes.to_vec());
    };
    let mut wide = [0; 16];
    match statistics {
        Statistics::Int32(_) | Statistics::Int64(_) => {
            let negative = bytes.last()? & 0x80 != 0;
            wide.fill(if negative { 0xff } else { 0 });
            for (to, from) in wide.iter_mut().rev().zip(bytes) {
                *to = *from;
            }
        }
        _ => {
            let negative = bytes.first()? & 0x80 != 0;
            wide.fill(if negative { 0xff } else { 0 });
            for (to, from) in wide.iter_mut().rev().zip(bytes.iter().rev()) {
                *to = *from;
            }
        }
    }
    // The fewest bytes that keep the sign.
    let redundant =
        |w: &[u8]| (w[0] == 0 && w[1] & 0x80 == 0) || (w[0] == 0xff && w[1] & 0x80 != 0);
    let start = wide.windows(2).take_while(|w| redundant(w)).count();
    Some(wide[start..].to_vec())
}

fn cut_down(mut bytes: Vec<u8>, of: &PrimitiveType) -> Option<Vec<u8>> {
    match of {
        PrimitiveType::String => {
            let text = String::from_utf8(bytes).ok()?;
            Some(
                text.chars()
                    .take(BOUND_LENGTH)
                    .collect::<String>()
                    .into_bytes(),
            )
        }
        PrimitiveType::Binary => {
            bytes.truncate(BOUND_LENGTH);
            Some(bytes)
        }
        _ => Some(bytes),
    }
}

/// A bound that was cut must still be above every value: its last character goes up by one.
fn cut_up(bytes: Vec<u8>, of: &PrimitiveType) -> Option<Vec<u8>> {
    match of {
        PrimitiveType::String => {
            let text = String::from_utf8(bytes).ok()?;
            let mut kept: Vec<char> = text.chars().take(BOUND_LENGTH).collect();
            if kept.len() == text.chars().count() {
                return Some(text.into_bytes());
            }
            while let Some(last) = kept.pop() {
                let next = match last {
                    '\u{d7ff}' => Some('\u{e000}'),
                    other => char::from_u32(u32::from(other) + 1),
                };
                if let Some(next) = next {
                    kept.push(next);
                    return Some(kept.into_iter().collect::<String>().into_bytes());
                }
            }
            None
        }
        PrimitiveType::Binary if bytes.len() > BOUND_LENGTH => {
            let mut kept = bytes[..BOUND_LENGTH].to_vec();
            while let Some(last) = kept.pop() {
                if last < 0xff {
                    kept.push(last + 1);
                    return Some(kept);
                }
            }
            None
        }
        _ => Some(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cut_bound_still_bounds(text in "\\PC{0,40}") {
            let bytes = text.clone().into_bytes();
            let low = cut_down(bytes.clone(), &PrimitiveType::String).expect("cuts");
            prop_assert!(low <= bytes && String::from_utf8(low).is_ok());
            if let Some(high) = cut_up(bytes.clone(), &PrimitiveType::String) {
                prop_assert!(high >= bytes && String::from_utf8(high).is_ok());
            }
        }

        #[test]
        fn cut_bytes_still_bound(bytes in proptest::collection::vec(prop_oneof![Just(0xff), any::<u8>()], 0..40)) {
            prop_assert!(cut_down(bytes.clone(), &PrimitiveType::Binary).expect("cuts") <= bytes);
            if let Some(high) = cut_up(bytes.clone(), &PrimitiveType::Binary) {
                prop_assert!(high >= bytes);
            } else {
                prop_assert!(bytes[..BOUND_LENGTH].iter().all(|b| *b == 0xff));
            }
        }
    }
}
