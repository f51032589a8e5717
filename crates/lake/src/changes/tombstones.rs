//! Keys that were deleted, with their orders: runs in the checkpoint store, one for each chunk with
//! deletes. They say what a commit deletes, and afterwards keep an older change that comes late from
//! bringing a row back. Their names tell epoch, processing time and number of keys.

use std::time::Duration;

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::Schema,
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use calve_engine::{
    checkpoint::Checkpoints,
    error::{Error, Result},
};
use calve_model::Epoch;
use uuid::Uuid;

use super::keys::KeyCodec;

/// After so many epochs an epoch is committed for sure: fewer are prepared at once.
const COMMITTED_AFTER: u64 = 16;
/// So many small runs become one.
const MERGED: usize = 32;
/// A run with more keys is left as it is.
const LARGE: u64 = 200_000;

/// The name of a run, and what it tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunName {
    pub(crate) name: String,
    pub(crate) epoch: Epoch,
    /// Seconds since 1970.
    pub(crate) written: i64,
    keys: u64,
}

impl RunName {
    pub(crate) fn new(epoch: Epoch, written: i64, keys: u64) -> Self {
        let unique = Uuid::new_v4().simple();
        Self {
            name: format!("{:020}-{written}-{keys}-{unique}.deletes", epoch.0),
            epoch,
            written,
            keys,
        }
    }

    /// None: the run is not of this kind.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(".deletes")?.split('-');
        Some(Self {
            name: name.to_owned(),
            epoch: Epoch(parts.next()?.parse().ok()?),
            written: parts.next()?.parse().ok()?,
            keys: parts.next()?.parse().ok()?,
        })
    }
}

/// The runs that a writer keeps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tombstones {
    runs: Vec<RunName>,
}

impl Tombstones {
    /// As the record of an earlier epoch names them.
    pub(crate) fn resume(&mut self, names: &[String]) {
        self.runs = names
            .iter()
            .filter_map(|name| RunName::parse(name))
            .collect();
    }

    pub(crate) fn add(&mut self, run: RunName) {
        self.runs.push(run);
    }

    /// Lets go of what is not needed after `epoch`.
    pub(crate) fn expire(&mut self, epoch: Epoch, now: i64, retention: Duration) {
        let oldest = now.saturating_sub(retention.as_secs() as i64);
        let committed = |run: &RunName| run.epoch.0 + COMMITTED_AFTER <= epoch.0;
        self.runs
            .retain(|run| !committed(run) || run.written > oldest);
    }

    /// Small runs that are better one; they are not kept any more, and the one that replaces them is.
    pub(crate) fn merge(&mut self, epoch: Epoch) -> Option<(Vec<String>, RunName)> {
        let small = |run: &RunName| run.epoch.0 + COMMITTED_AFTER <= epoch.0 && run.keys < LARGE;
        if self.runs.iter().filter(|run| small(run)).count() < MERGED {
            return None;
        }
        let (merged, kept) = std::mem::take(&mut self.runs).into_iter().partition(small);
        self.runs = kept;
        let last = merged.iter().map(|run| run.epoch).max().unwrap_or_default();
        let written = merged
            .iter()
            .map(|run| run.written)
            .max()
            .unwrap_or_default();
        let keys = merged.iter().map(|run| run.keys).sum();
        let one = RunName::new(last, written, keys);
        self.runs.insert(0, one.clone());
        Some((merged.into_iter().map(|run| run.name).collect(), one))
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.runs.iter().map(|run| run.name.clone()).collect()
    }
}

/// The bytes of a run.
pub(crate) fn encode(codec: &KeyCodec, columns: Vec<ArrayRef>) -> Result<Vec<u8>> {
    let schema = Schema::new(codec.fields(&columns));
    let rows = RecordBatch::try_new(schema.into(), columns);
    rows.and_then(|rows| {
        let mut writer = StreamWriter::try_new(Vec::new(), &rows.schema())?;
        writer.write(&rows)?;
        writer.into_inner()
    })
    .map_err(|e| Error::internal("cannot write the keys of deleted rows").because(e))
}

/// The batches of a run.
///
/// # Errors
/// `Corrupt` when it is gone or cannot be read, `Fenced` when another owner has removed it.
pub(crate) async fn read(checkpoints: &Checkpoints, name: &str) -> Result<Vec<RecordBatch>> {
    let Some(bytes) = checkpoints.run(name).await? else {
        // The next owner removes what its own records do not need.
        checkpoints.check_owner().await?;
        return Err(Error::corrupt(format!(
            "keys of deleted rows are gone from the checkpoint store: run={name}"
        ))
        .hint(
            "put the checkpoint store back, or start over: `calve checkpoint reset FILE --yes`",
        ));
    };
    StreamReader::try_new(bytes.as_slice(), None)
        .and_then(Iterator::collect)
        .map_err(|e| Error::corrupt(format!("a run cannot be read: run={name}")).because(e))
}

/// Makes one run of several.
///
/// # Errors
/// As [`read`]; those of the store.
pub(crate) async fn merge_runs(
    checkpoints: &Checkpoints,
    from: &[String],
    to: &RunName,
) -> Result<()> {
    let failed = |e| Error::internal("cannot write the keys of deleted rows").because(e);
    let mut writer = None;
    for name in from {
        for rows in read(checkpoints, name).await? {
            let writer = match &mut writer {
                Some(writer) => writer,
                none => {
                    none.insert(StreamWriter::try_new(Vec::new(), &rows.schema()).map_err(failed)?)
                }
            };
            writer.write(&rows).map_err(failed)?;
        }
    }
    let bytes = writer
        .map(StreamWriter::into_inner)
        .transpose()
        .map_err(failed)?;
    checkpoints
        .create_run(&to.name, bytes.unwrap_or_default())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        let name = RunName::new(Epoch(7), 1_700_000_000, 12);
        assert_eq!(RunName::parse(&name.name), Some(name));
        assert_eq!(RunName::parse("00000000000000000007-abc.arrow"), None);
    }

    #[test]
    fn runs_go_when_they_are_committed_and_old() {
        let mut kept = Tombstones::default();
        for epoch in [1, 2, 30] {
            kept.add(RunName::new(Epoch(epoch), epoch as i64 * 100, 1));
        }
        let hour = Duration::from_secs(100);
        kept.expire(Epoch(31), 250, hour);
        let epochs = |kept: &Tombstones| kept.runs.iter().map(|r| r.epoch.0).collect::<Vec<_>>();
        assert_eq!(epochs(&kept), [2, 30], "the first is older than 100 s");
        kept.expire(Epoch(31), 100_000, hour);
        assert_eq!(
            epochs(&kept),
            [30],
            "one that may not be committed yet stays"
        );
    }

    #[test]
    fn small_runs_become_one() {
        let mut kept = Tombstones::default();
        kept.add(RunName::new(Epoch(1), 5, LARGE));
        for epoch in 2..40 {
            kept.add(RunName::new(Epoch(epoch), epoch as i64, 1));
        }
        assert_eq!(
            kept.clone().merge(Epoch(40)),
            None,
            "most may not be committed"
        );
        let (merged, one) = kept.merge(Epoch(60)).expect("enough");
        assert_eq!((merged.len(), one.epoch, one.keys), (38, Epoch(39), 38));
        assert_eq!(kept.runs.len(), 2);
    }
}
