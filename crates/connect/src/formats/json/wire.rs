//! How values are written in JSON, where a column's type alone does not say it: connectors write
//! bytes, decimals and times in ways of their own.

use arrow::datatypes::TimeUnit;

/// How the values of a column, and those inside of them, are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::formats) struct Wire {
    /// The values themselves.
    pub(in crate::formats) how: How,
    /// What is inside: the fields of a struct, the item of a list, key and value of a map. What is
    /// left out at the end is plain.
    pub(in crate::formats) inside: Vec<Wire>,
}

/// How values are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::formats) enum How {
    /// As the type says: integers count the type's own unit, bytes are hexadecimal.
    #[default]
    Plain,
    /// Integers count this unit, since 1970 or since midnight.
    Unit(TimeUnit),
    /// Bytes in base64 (RFC 4648, section 4), with or without padding.
    Base64,
    /// Bytes in the alphabet that is safe in URLs (section 5).
    Base64Url,
    /// Decimals as base64 of the unscaled number, big-endian in two's complement, with this scale;
    /// none: that of the column. Or as an object of `scale` and `value`.
    Unscaled(Option<i8>),
    /// Dates and times of day as text in ISO 8601, with the `Z` of UTC behind.
    Iso,
    /// Any string, number or boolean, kept as text.
    Text,
    /// The letter of a change's operation.
    Operation,
}

impl Wire {
    const PLAIN: &'static Self = &Self {
        how: How::Plain,
        inside: Vec::new(),
    };

    /// A value with nothing inside.
    pub(in crate::formats) fn leaf(how: How) -> Self {
        Self {
            how,
            inside: Vec::new(),
        }
    }

    /// How the values inside, in place `n`, are written.
    pub(in crate::formats) fn child(&self, n: usize) -> &Self {
        self.inside.get(n).unwrap_or(Self::PLAIN)
    }
}
