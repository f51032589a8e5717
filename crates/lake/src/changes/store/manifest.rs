//! The manifest: which runs and which log make up the store. It is written beside and renamed, so
//! that there is always a whole one; what it does not list is deleted on open.
//!
//! It says nothing of the caller's meta: that stands in the log's commit records, and the log must
//! hold at least `log_min` valid bytes. So the runs can never be seen without the commit that goes
//! with them.

use std::io;
use std::path::Path;

use super::files::{self, MANIFEST, MANIFEST_NEW, damaged};
use super::hash::SHARDS;

const MAGIC: &[u8; 8] = b"calvekx1";

/// What the manifest says of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunEntry {
    pub(super) id: u64,
    /// Length of the file.
    pub(super) bytes: u64,
    /// Checksum of its footer, which covers index and filter.
    pub(super) check: u32,
    /// How many of its keys probably stand in an older run of the shard too.
    pub(super) shadow: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    /// Of the hash of keys; chosen when the store is created.
    pub(super) seed: u64,
    /// No file has this number or a higher one.
    pub(super) next_id: u64,
    pub(super) log_id: u64,
    /// What the log's checksums start from, so that no other log can be taken for it.
    pub(super) log_salt: u32,
    /// Bytes that the log must hold at least.
    pub(super) log_min: u64,
    /// Runs of each shard, oldest first.
    pub(super) shards: Vec<Vec<RunEntry>>,
}

impl Manifest {
    pub(super) fn save(&self, folder: &Path) -> io::Result<()> {
        let new = folder.join(MANIFEST_NEW);
        let file = files::create(&new)?;
        files::write(&file, &new, &self.encode())?;
        files::rename(&new, &folder.join(MANIFEST))
    }

    /// The manifest of the folder; `None` when there is none.
    pub(super) fn load(folder: &Path) -> io::Result<Option<Self>> {
        let path = folder.join(MANIFEST);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Self::decode(&bytes)
            .map(Some)
            .ok_or_else(|| damaged(&path, "not a whole manifest of this version"))
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for number in [
            self.seed,
            self.next_id,
            self.log_id,
            u64::from(self.log_salt),
            self.log_min,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for runs in &self.shards {
            out.extend_from_slice(&(runs.len() as u64).to_le_bytes());
            for run in runs {
                for number in [run.id, run.bytes, u64::from(run.check), run.shadow] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
        }
        let check = crc32fast::hash(&out);
        out.extend_from_slice(&check.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, check) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*check) {
            return None;
        }
        let mut numbers = body
            .strip_prefix(MAGIC)?
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word));
        let (seed, next_id, log_id) = (numbers.next()?, numbers.next()?, numbers.next()?);
        let (log_salt, log_min) = (u32::try_from(numbers.next()?).ok()?, numbers.next()?);
        let mut shards = Vec::with_capacity(SHARDS);
        for _ in 0..SHARDS {
            let mut runs = Vec::new();
            for _ in 0..numbers.next()? {
                let (id, bytes) = (numbers.next()?, numbers.next()?);
                let check = u32::try_from(numbers.next()?).ok()?;
                runs.push(RunEntry {
                    id,
                    bytes,
                    check,
                    shadow: numbers.next()?,
                });
            }
            shards.push(runs);
        }
        numbers.next().is_none().then_some(Self {
            seed,
            next_id,
            log_id,
            log_salt,
            log_min,
            shards,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_reads_back_and_no_part_of_it_does() {
        let mut shards = vec![Vec::new(); SHARDS];
        shards[3].push(RunEntry {
            id: 5,
            bytes: 99,
            check: 7,
            shadow: 1,
        });
        shards[3].push(RunEntry {
            id: 6,
            bytes: 100,
            check: 8,
            shadow: 2,
        });
        let manifest = Manifest {
            seed: 1,
            next_id: 9,
            log_id: 8,
            log_salt: 3,
            log_min: 40,
            shards,
        };
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes), Some(manifest));
        for length in 0..bytes.len() {
            assert_eq!(Manifest::decode(&bytes[..length]), None, "{length}");
            let mut flipped = bytes.clone();
            flipped[length] ^= 1;
            assert_eq!(Manifest::decode(&flipped), None, "{length}");
        }
    }
}
