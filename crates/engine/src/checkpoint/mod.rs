//! Checkpoints: the durable records of a shard's epochs, and who may write the next one.
//!
//! Invariant (the fence): a record is created only where none was, and an epoch at or below the
//! floor, or below a record that exists, is never used. So of two processes that believe they own
//! the shard, at most one creates the next epoch. Protocol: design.md section 3.

pub mod conformance;
mod object;
mod record;
mod store;

use std::sync::Arc;

use calve_model::{Epoch, Offsets, Watermarks, recovery};
use uuid::Uuid;

pub use object::ObjectRecords;
pub(crate) use record::hex;
pub use record::{Meta, Record, RecordKind, RecordOutput, Totals, digest, offsets_digest};
pub use store::{LocalRecords, RecordStore, open_store};

use crate::{
    durable::Created,
    error::{Error, Result},
    fault,
};

/// Begins the names of floors; see [`Checkpoints::retire`].
const FLOOR: &str = "floor-";
/// Folder of the runs of open windows, beside the shards: a shard's own is listed at each epoch.
const RUNS: &str = ".runs";

/// The checkpoints of one shard of one pipeline, as one owner sees them.
#[derive(Clone)]
pub struct Checkpoints {
    store: Arc<dyn RecordStore>,
    pipeline: Arc<str>,
    shard: Arc<str>,
    owner: Uuid,
}

/// What the store holds of a shard.
#[derive(Debug, Default)]
pub struct Loaded {
    /// All records above the floor with their digests, lowest epoch first.
    pub records: Vec<(Record, String)>,
    /// See [`Checkpoints::retire`].
    pub floor: Epoch,
    /// What was fixed at the pipeline's first start.
    pub meta: Option<Meta>,
}

impl Loaded {
    /// The newest record.
    pub fn newest(&self) -> Option<&Record> {
        self.records.last().map(|(record, _)| record)
    }

    /// The records as facts for [`recovery::decide`].
    pub fn facts(&self) -> Vec<recovery::RecordFacts> {
        self.records
            .iter()
            .map(|(record, digest)| record.facts(digest))
            .collect()
    }
}

impl Checkpoints {
    /// Looks at a shard's checkpoints under a new owner id. Reads and writes nothing yet.
    pub fn new(store: Arc<dyn RecordStore>, pipeline: &str, shard: &str) -> Self {
        Self {
            store,
            pipeline: pipeline.into(),
            shard: shard.into(),
            owner: Uuid::new_v4(),
        }
    }

    /// The pipeline's id.
    pub fn pipeline(&self) -> &Arc<str> {
        &self.pipeline
    }

    /// The shard's name.
    pub fn shard(&self) -> &Arc<str> {
        &self.shard
    }

    /// Where a record is, relative to the store's root.
    pub fn path(&self, epoch: Epoch) -> String {
        format!("{}/{}/{:020}.json", self.pipeline, self.shard, epoch.0)
    }

    fn meta_path(&self) -> String {
        format!("{}/meta.json", self.pipeline)
    }

    fn floor_path(&self, floor: Epoch) -> String {
        format!("{}/{}/{FLOOR}{:020}", self.pipeline, self.shard, floor.0)
    }

    fn run_path(&self, name: &str) -> String {
        format!("{}/{RUNS}/{}/{name}", self.pipeline, self.shard)
    }

    /// A name for a run of an epoch, which no other process uses. Names are ordered by epoch.
    pub fn run_name(epoch: Epoch) -> String {
        format!("{:020}-{}.arrow", epoch.0, Uuid::new_v4().simple())
    }

    /// Writes a run: rows of open windows, or keys of deleted rows, which the next record refers to.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn create_run(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        // Its name is its own: one that exists is what an earlier try wrote.
        self.store
            .create(&self.run_path(name), bytes)
            .await
            .map(drop)
    }

    /// A run's bytes; none when it is not there.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn run(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.store.get(&self.run_path(name)).await
    }

    /// Removes what writers of runs left when they were killed. Only for the owner of the shard.
    pub(crate) async fn tidy_runs(&self) -> Result<()> {
        let folder = format!("{}/{RUNS}/{}", self.pipeline, self.shard);
        self.store.tidy(&folder).await
    }

    /// Whether another owner has taken the shard over.
    ///
    /// # Errors
    /// `Fenced` when it has.
    pub async fn check_owner(&self) -> Result<()> {
        let Some(newest) = self.epochs().await?.last().copied() else {
            return Ok(());
        };
        // One that vanishes between the list and the read was retired by a newer owner, or by us.
        match self.store.get(&self.path(newest)).await? {
            Some(bytes) if Record::parse(&bytes)?.owner != self.owner => Err(self.fenced(newest)),
            _ => Ok(()),
        }
    }

    /// Deletes a run that no record refers to any more.
    pub(crate) async fn delete_run(&self, name: &str) -> Result<()> {
        self.store.delete(&self.run_path(name)).await
    }

    /// The names of all runs, also those that a crash left.
    pub async fn runs(&self) -> Result<Vec<String>> {
        let folder = format!("{}/{RUNS}/{}", self.pipeline, self.shard);
        self.store.list(&folder).await
    }

    /// Reads everything: meta, floor and all records above it.
    ///
    /// # Errors
    /// `Unavailable`; `Corrupt` for a record that cannot be read.
    pub async fn load(&self) -> Result<Loaded> {
        let meta = match self.store.get(&self.meta_path()).await? {
            Some(bytes) => Some(Meta::parse(&bytes)?),
            None => None,
        };
        // The floor comes after the list. A process that slept may create a name that was used and
        // deleted meanwhile; it is fenced at once, but its record stays, at or below the floor.
        let epochs = self.epochs().await?;
        let floor = self.floor().await?;
        let mut loaded = Loaded {
            meta,
            floor,
            records: Vec::new(),
        };
        for epoch in epochs.into_iter().filter(|epoch| *epoch > floor) {
            // A record that vanishes between the list and the read was retired by another owner.
            if let Some(bytes) = self.store.get(&self.path(epoch)).await? {
                let record = Record::parse(&bytes).map_err(|e| e.context(self.path(epoch)))?;
                if record.epoch != epoch {
                    return Err(Error::corrupt(format!(
                        "record holds another epoch: path={}",
                        self.path(epoch)
                    )));
                }
                loaded.records.push((record, digest(&bytes)));
            }
        }
        Ok(loaded)
    }

    /// Fixes what never changes for a pipeline; answers what was fixed, ours or the earlier one.
    pub async fn fix_meta(&self, meta: &Meta) -> Result<Meta> {
        match self
            .store
            .create(&self.meta_path(), meta.to_bytes())
            .await?
        {
            Created::Yes => Ok(meta.clone()),
            Created::Exists => {
                let bytes = self.store.get(&self.meta_path()).await?;
                Meta::parse(
                    &bytes.ok_or_else(|| Error::unavailable("the pipeline's meta vanished"))?,
                )
            }
        }
    }

    /// Takes the shard over: creates the epoch after `newest` with its content under our own id.
    ///
    /// # Errors
    /// `Fenced` when somebody else took it in the meantime.
    pub async fn claim(
        &self,
        newest: Option<&Record>,
        base: RecordBase,
    ) -> Result<(Record, String)> {
        let record = Record::claim(self, newest, base);
        let digest = self.create(&record).await?;
        Ok((record, digest))
    }

    /// The point of no return: creates the record of an epoch. Returns its digest.
    ///
    /// # Errors
    /// `Fenced` when the epoch is taken by another owner, or a later one exists.
    pub async fn create(&self, record: &Record) -> Result<String> {
        let (path, bytes) = (self.path(record.epoch), record.to_bytes());
        let digest = digest(&bytes);
        fault::point("checkpoint.before_create")?;
        if self.store.create(&path, bytes).await? == Created::Exists {
            // It may be our own: a create that succeeded, but whose answer was lost.
            let found = self.store.get(&path).await?;
            let ours = match found {
                Some(bytes) => {
                    let found = Record::parse(&bytes)?;
                    found.owner == self.owner && found.nonce == record.nonce
                }
                None => false,
            };
            if !ours {
                return Err(self.fenced(record.epoch));
            }
        }
        fault::point("checkpoint.after_create")?;
        let newest = self.epochs().await?.last().copied().unwrap_or_default();
        if newest > record.epoch || self.floor().await? >= record.epoch {
            return Err(self.fenced(record.epoch));
        }
        Ok(digest)
    }

    fn fenced(&self, epoch: Epoch) -> Error {
        Error::fenced(format!(
            "another process has taken over this pipeline: pipeline={} shard={} epoch={epoch}",
            self.pipeline, self.shard
        ))
        .hint("only one process may run a pipeline; this one has stopped, and what it had not prepared is read again by the other")
    }

    /// Deletes records below `below`, oldest first; raises the floor before. The caller has made
    /// sure that every output holds them and that a newer one exists.
    pub async fn retire(&self, below: Epoch) -> Result<()> {
        let epochs: Vec<Epoch> = self
            .epochs()
            .await?
            .into_iter()
            .filter(|e| *e < below)
            .collect();
        let Some(last) = epochs.last() else {
            return Ok(());
        };
        self.raise_floor(*last).await?;
        fault::point("checkpoint.retire.after_floor")?;
        for epoch in epochs {
            self.store.delete(&self.path(epoch)).await?;
            fault::point("checkpoint.retire.each")?;
        }
        Ok(())
    }

    /// Forgets the shard: deletes every record, the runs and the pipeline's meta; the floor stays.
    pub async fn reset(&self) -> Result<usize> {
        let epochs = self.epochs().await?;
        if let Some(last) = epochs.last() {
            self.raise_floor(*last).await?;
        }
        for epoch in &epochs {
            self.store.delete(&self.path(*epoch)).await?;
        }
        for run in self.runs().await? {
            self.delete_run(&run).await?;
        }
        self.store.delete(&self.meta_path()).await?;
        Ok(epochs.len())
    }

    /// Each floor has a name of its own and the highest counts: were it one value, a process that
    /// slept between looking and writing would put an old one in the place of a newer.
    async fn raise_floor(&self, to: Epoch) -> Result<()> {
        let floors = self.floors().await?;
        let highest = floors.last().copied().unwrap_or_default();
        if to <= highest {
            return Ok(());
        }
        let text = to.to_string().into_bytes();
        self.store.create(&self.floor_path(to), text).await?;
        for floor in floors.into_iter().filter(|floor| *floor < highest) {
            self.store.delete(&self.floor_path(floor)).await?;
        }
        Ok(())
    }

    async fn floor(&self) -> Result<Epoch> {
        Ok(self.floors().await?.last().copied().unwrap_or_default())
    }

    /// Lowest first; only the last counts, and the one before it stays for who is listing right now.
    async fn floors(&self) -> Result<Vec<Epoch>> {
        self.numbered(|name| name.strip_prefix(FLOOR)).await
    }

    async fn epochs(&self) -> Result<Vec<Epoch>> {
        self.numbered(|name| name.strip_suffix(".json")).await
    }

    /// The numbers of those names of the shard that have one, lowest first.
    async fn numbered(&self, number: impl Fn(&str) -> Option<&str>) -> Result<Vec<Epoch>> {
        let folder = format!("{}/{}", self.pipeline, self.shard);
        let names = self.store.list(&folder).await?;
        let mut numbers: Vec<Epoch> = names
            .iter()
            .filter_map(|name| number(name)?.parse().ok().map(Epoch))
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// What a record begins with.
#[derive(Clone, Debug)]
pub struct RecordBase {
    /// Fingerprints of the pipeline as configured now.
    pub fingerprints: std::collections::BTreeMap<String, String>,
    /// Identity of each output now.
    pub identities: std::collections::BTreeMap<String, Option<String>>,
    /// Where to start when there is no record yet.
    pub offsets: Offsets,
    /// Watermarks when there is no record yet.
    pub watermarks: Watermarks,
    /// The last epoch each output holds when there is no record yet (after a rebuild).
    pub previous: std::collections::BTreeMap<String, Epoch>,
    /// The epoch below the first one.
    pub floor: Epoch,
}

#[cfg(test)]
mod tests;
