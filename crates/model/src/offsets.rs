//! Positions in sources: source partitions, half-open offset ranges, and the map of how far a
//! shard has read. Invariant: positions never go back, and ranges that follow each other touch.

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// The smallest unit of a source with an order and an offset of its own: a file, a Kafka
/// topic-partition, a ledger stream. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SourcePartition(Arc<str>);

impl SourcePartition {
    /// Names a source partition; the name is stable over restarts.
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(Arc::from(name.as_ref()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SourcePartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for SourcePartition {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// What a batch covers of one source partition: `(from, to]`, in the source's own unit (bytes,
/// rows, messages). A file that was read up to byte 10 has position 10; the next range is `(10, n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetRange {
    /// Exclusive: the position before the range.
    pub from: u64,
    /// Inclusive: the position after the range.
    pub to: u64,
}

/// How far one source partition has been read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The offset behind the last event that is accounted for.
    pub offset: u64,
    /// The source partition has ended; nothing more will come unless it grows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub done: bool,
    /// What the source needs to know the partition again (a file's identity), opaque to others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// How far a shard has read each of its source partitions; ordered by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offsets(pub BTreeMap<SourcePartition, Position>);

/// Why a range cannot follow what was read before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OffsetError {
    /// The range begins before the position: events would be taken twice.
    Overlap {
        /// Where the source partition stands.
        position: u64,
        /// The offending range.
        range: OffsetRange,
    },
    /// The range begins behind the position: events would be lost.
    Gap {
        /// Where the source partition stands.
        position: u64,
        /// The offending range.
        range: OffsetRange,
    },
    /// `to < from`.
    Inverted(OffsetRange),
}

impl fmt::Display for OffsetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap { position, range } => {
                write!(
                    f,
                    "offsets overlap: position={position} range=({}, {}]",
                    range.from, range.to
                )
            }
            Self::Gap { position, range } => {
                write!(
                    f,
                    "offsets have a gap: position={position} range=({}, {}]",
                    range.from, range.to
                )
            }
            Self::Inverted(range) => write!(
                f,
                "offset range is inverted: ({}, {}]",
                range.from, range.to
            ),
        }
    }
}

impl Offsets {
    /// The position of a source partition; 0 when it was never read.
    pub fn position(&self, partition: &str) -> u64 {
        self.0.get(partition).map_or(0, |p| p.offset)
    }

    /// Moves a source partition forward over `range`.
    ///
    /// # Errors
    /// A range that does not begin at the position, or is inverted; nothing is changed then.
    pub fn advance(
        &mut self,
        partition: &SourcePartition,
        range: OffsetRange,
    ) -> Result<(), OffsetError> {
        if range.to < range.from {
            return Err(OffsetError::Inverted(range));
        }
        let position = self.position(partition.as_str());
        match range.from.cmp(&position) {
            std::cmp::Ordering::Less => Err(OffsetError::Overlap { position, range }),
            std::cmp::Ordering::Greater => Err(OffsetError::Gap { position, range }),
            std::cmp::Ordering::Equal => {
                self.0.entry(partition.clone()).or_default().offset = range.to;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_must_touch() {
        let mut offsets = Offsets::default();
        let file = SourcePartition::new("a.ndjson");
        offsets
            .advance(&file, OffsetRange { from: 0, to: 10 })
            .expect("first range");
        assert!(matches!(
            offsets.advance(&file, OffsetRange { from: 5, to: 20 }),
            Err(OffsetError::Overlap { position: 10, .. })
        ));
        assert!(matches!(
            offsets.advance(&file, OffsetRange { from: 11, to: 20 }),
            Err(OffsetError::Gap { position: 10, .. })
        ));
        assert!(matches!(
            offsets.advance(&file, OffsetRange { from: 10, to: 9 }),
            Err(OffsetError::Inverted(_))
        ));
        assert_eq!(
            offsets.position("a.ndjson"),
            10,
            "a refused range changes nothing"
        );
        offsets
            .advance(&file, OffsetRange { from: 10, to: 10 })
            .expect("an empty range is fine");
    }
}
