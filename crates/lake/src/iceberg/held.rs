//! What the table says that it holds of a shard: one property, set in the same commit as the data,
//! and the summaries of the snapshots, which tell the history.
//!
//! The property survives expiry; a rollback moves the current snapshot, but not the property. So the
//! property names the snapshot that it came with, and that one must be an ancestor of the current
//! one, unless expiry has cut the history there. Some engines leave the parent of the oldest snapshot
//! that stays, others take it away; so the property names the sequence number too, and a history that
//! begins behind it was cut.

use calve_engine::error::{Error, Result};
use calve_model::Epoch;
use iceberg::spec::{SnapshotRef, TableMetadata};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

pub(crate) const PIPELINE: &str = "calve.pipeline";
pub(crate) const SHARD: &str = "calve.shard";
pub(crate) const EPOCH: &str = "calve.epoch";
pub(crate) const DIGEST: &str = "calve.digest";
pub(crate) const WATERMARK: &str = "calve.watermark";
/// Summary: every window that ends at or before this event time is closed, in microseconds.
pub(crate) const WINDOWS_COMPLETE: &str = "calve.windows-complete";
pub(crate) const OFFSETS: &str = "calve.offsets";
pub(crate) const RECORD: &str = "calve.record";
/// Summary: what the commit followed, `<epoch before>:<digest of the offsets there>:<digest of them now>`.
pub(crate) const CHAIN: &str = "calve.chain";
/// Summary: the snapshot settled changes. Their epochs may have nothing for a snapshot.
pub(crate) const CHANGES: &str = "calve.changes";

/// The dot separates pipeline and shard.
const PART: &AsciiSet = &CONTROLS.add(b'.').add(b'%');

/// Name of the property of a shard: `calve.<pipeline>.<shard>`.
pub(crate) fn property(pipeline: &str, shard: &str) -> String {
    format!(
        "calve.{}.{}",
        utf8_percent_encode(pipeline, PART),
        utf8_percent_encode(shard, PART)
    )
}

/// What begins names of properties of the other kind. Those that older versions take for a shard's begin
/// with `calve.`.
const TRUNCATED: &str = "calve-truncated.";

/// Name of the property with the order up to which a TRUNCATE removed the rows of a shard.
pub(crate) fn truncated_property(pipeline: &str, shard: &str) -> String {
    let name = property(pipeline, shard);
    name.replacen("calve.", TRUNCATED, 1)
}

/// Pipeline and shard of a property's name; none: it is not of that kind.
pub(crate) fn parse_property(name: &str) -> Option<(String, String)> {
    parse_behind("calve.", name)
}

/// The same of [`truncated_property`].
pub(crate) fn parse_truncated(name: &str) -> Option<(String, String)> {
    parse_behind(TRUNCATED, name)
}

/// Whether calve sets a property by itself.
pub(crate) fn is_own(name: &str) -> bool {
    name.starts_with("calve.") || name.starts_with(TRUNCATED)
}

fn parse_behind(prefix: &str, name: &str) -> Option<(String, String)> {
    let (pipeline, shard) = name.strip_prefix(prefix)?.split_once('.')?;
    let decode = |text: &str| {
        percent_decode_str(text)
            .decode_utf8()
            .ok()
            .map(String::from)
    };
    Some((decode(pipeline)?, decode(shard)?))
}

/// The value of the property: `<epoch>:<digest>:<digest of the offsets>[:<snapshot>[:<sequence>]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) epoch: Epoch,
    /// Digest of the epoch's record.
    pub(crate) digest: String,
    /// Digest of the offsets at its end.
    pub(crate) offsets: String,
    /// The shard's last snapshot.
    pub(crate) snapshot: Option<i64>,
    /// Its sequence number; none in what older versions wrote.
    pub(crate) sequence: Option<i64>,
}

impl Held {
    pub(crate) fn to_value(&self) -> String {
        let Self {
            epoch,
            digest,
            offsets,
            ..
        } = self;
        match (self.snapshot, self.sequence) {
            (None, _) => format!("{}:{digest}:{offsets}", epoch.0),
            (Some(id), None) => format!("{}:{digest}:{offsets}:{id}", epoch.0),
            (Some(id), Some(sequence)) => {
                format!("{}:{digest}:{offsets}:{id}:{sequence}", epoch.0)
            }
        }
    }

    pub(crate) fn parse(value: &str) -> Option<Self> {
        let mut parts = value.split(':');
        let held = Self {
            epoch: Epoch(parts.next()?.parse().ok()?),
            digest: parts.next()?.to_owned(),
            offsets: parts.next()?.to_owned(),
            snapshot: parts.next().map(str::parse).transpose().ok()?,
            sequence: parts.next().map(str::parse).transpose().ok()?,
        };
        parts.next().is_none().then_some(held)
    }

    /// What the table holds of a shard; none: nothing.
    ///
    /// # Errors
    /// `Corrupt` when the property cannot be read, or disagrees with the history.
    pub(crate) fn of(
        metadata: &TableMetadata,
        pipeline: &str,
        shard: &str,
    ) -> Result<Option<Self>> {
        let name = property(pipeline, shard);
        let Some(value) = metadata.properties().get(&name) else {
            return Ok(None);
        };
        let held = Self::parse(value).ok_or_else(|| {
            Error::corrupt(format!(
                "the table's property cannot be read: property={name}"
            ))
            .hint("somebody changed it; restore it, or start over with `calve checkpoint reset`")
        })?;
        held.agrees(metadata, pipeline, shard)?;
        Ok(Some(held))
    }

    fn agrees(&self, metadata: &TableMetadata, pipeline: &str, shard: &str) -> Result<()> {
        let Some(id) = self.snapshot else {
            return Ok(());
        };
        let mut older = None;
        let mut cut = false;
        for snapshot in ancestors(metadata) {
            if snapshot.snapshot_id() == id {
                return Ok(());
            }
            if older.is_none() && of_shard(snapshot, pipeline, shard) {
                older = summary(snapshot, EPOCH);
            }
            cut = match self.sequence {
                Some(ours) => snapshot.sequence_number() > ours,
                None => snapshot
                    .parent_snapshot_id()
                    .is_some_and(|parent| metadata.snapshot_by_id(parent).is_none()),
            };
        }
        if cut && older.is_none() {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "the table was rolled back or restored: its property says epoch={}, its history epoch={}",
            self.epoch,
            older.unwrap_or("none")
        ))
        .hint(
            "what the later epochs wrote is not in the table any more; roll the table forward again, \
             or start over with `calve checkpoint reset`",
        ))
    }
}

/// The current snapshot, its parent, and so on, as far as the history is there.
pub(crate) fn ancestors(metadata: &TableMetadata) -> impl Iterator<Item = &SnapshotRef> {
    std::iter::successors(metadata.current_snapshot(), |snapshot| {
        metadata.snapshot_by_id(snapshot.parent_snapshot_id()?)
    })
}

/// Whether a shard's commit made the snapshot.
pub(crate) fn of_shard(snapshot: &SnapshotRef, pipeline: &str, shard: &str) -> bool {
    summary(snapshot, PIPELINE) == Some(pipeline) && summary(snapshot, SHARD) == Some(shard)
}

/// An entry of the snapshot's summary.
pub(crate) fn summary<'a>(snapshot: &'a SnapshotRef, key: &str) -> Option<&'a str> {
    snapshot
        .summary()
        .additional_properties
        .get(key)
        .map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_dots_stay_apart() {
        assert_eq!(property("orders", "main"), "calve.orders.main");
        let pairs = [("a.b", "c"), ("a", "b.c"), ("a%2Eb", "c")];
        for (pipeline, shard) in pairs {
            let name = property(pipeline, shard);
            assert_eq!(
                parse_property(&name),
                Some((pipeline.to_owned(), shard.to_owned()))
            );
        }
        assert_ne!(property("a.b", "c"), property("a", "b.c"));
        let truncated = truncated_property("calve.a", "main");
        assert_eq!(truncated, "calve-truncated.calve%2Ea.main");
        assert_eq!(parse_property(&truncated), None);
        let both = Some(("calve.a".to_owned(), "main".to_owned()));
        assert_eq!(parse_truncated(&truncated), both);
        assert!(is_own(&truncated) && is_own("calve.a.main") && !is_own("write.x"));
        assert_eq!(parse_property("write.x.y"), None);
    }

    #[test]
    fn values_come_back() {
        for (snapshot, sequence) in [(None, None), (Some(7), None), (Some(7), Some(9))] {
            let held = Held {
                epoch: Epoch(3),
                digest: "ab".into(),
                offsets: "cd".into(),
                snapshot,
                sequence,
            };
            assert_eq!(Held::parse(&held.to_value()), Some(held));
        }
        for wrong in [
            "",
            "3",
            "3:a",
            "x:a:b",
            "3:a:b:c",
            "3:a:b:1:x",
            "3:a:b:1:2:3",
        ] {
            assert_eq!(Held::parse(wrong), None, "{wrong}");
        }
    }
}
