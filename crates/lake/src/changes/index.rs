//! The index of keys: where the row of each key is, and the order of the change that wrote it.
//!
//! A cache on the local disk: it says which snapshot of the table it reflects, and whoever finds that
//! it is another one, or that the index is lost or damaged, makes it anew from the table.

use std::{
    fs,
    hash::{Hash, Hasher as _},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use arrow::row::Rows;
use calve_engine::error::{Error, Result};
use serde::{Deserialize, Serialize};

use super::store::{Keys, Options, Store, Values};

/// Folders that are tried when another process holds the first.
const FOLDERS: usize = 4;

/// A data file, by a hash of its location.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId(u64);

impl FileId {
    pub(crate) fn of(location: &str) -> Self {
        #[allow(deprecated, reason = "its values are the same in every version")]
        let mut hasher = std::hash::SipHasher::new();
        location.hash(&mut hasher);
        // The highest stands for none.
        Self(hasher.finish().min(u64::MAX - 1))
    }
}

/// Where a key's row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    Row {
        file: FileId,
        row: u32,
    },
    /// It was deleted at this time, in seconds since 1970.
    Deleted {
        at: u32,
    },
}

/// What the index holds of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) place: Where,
    pub(crate) order: &'a [u8],
}

const HEAD: usize = 12;

impl<'a> Entry<'a> {
    fn write(&self, to: &mut Vec<u8>) {
        let (file, row) = match self.place {
            Where::Row { file, row } => (file.0, row),
            Where::Deleted { at } => (u64::MAX, at),
        };
        to.clear();
        to.extend_from_slice(&file.to_le_bytes());
        to.extend_from_slice(&row.to_le_bytes());
        to.extend_from_slice(self.order);
    }

    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (file, rest) = bytes.split_first_chunk::<8>()?;
        let (row, order) = rest.split_first_chunk::<4>()?;
        let (file, row) = (u64::from_le_bytes(*file), u32::from_le_bytes(*row));
        let place = if file == u64::MAX {
            Where::Deleted { at: row }
        } else {
            Where::Row {
                file: FileId(file),
                row,
            }
        };
        Some(Self { place, order })
    }
}

/// What was found for the keys of some rows.
#[derive(Debug)]
pub(crate) struct Found(Values);

impl Found {
    /// Of the key of a row; none: the index does not have it.
    pub(crate) fn entry(&self, row: usize) -> Option<Entry<'_>> {
        Entry::read(self.0.get(row)?)
    }
}

/// What the index reflects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reflects {
    /// Identity of the table.
    pub(crate) table: String,
    /// How keys and orders are encoded.
    pub(crate) fingerprint: String,
    /// The snapshot; none: an empty table.
    pub(crate) snapshot: Option<i64>,
    /// Changes below this order came too late: a TRUNCATE removed their rows. Hexadecimal.
    pub(crate) floor: Option<String>,
}

#[derive(Debug)]
pub(crate) struct KeyIndex {
    store: Store,
    floor: Option<Vec<u8>>,
    value: Vec<u8>,
    folder: PathBuf,
    damaged: AtomicBool,
}

impl KeyIndex {
    /// Opens the index in a folder. A damaged one is removed.
    ///
    /// # Errors
    /// `Unavailable` or `Full` of the disk.
    pub(crate) fn open(folder: &Path, memory_bytes: usize) -> Result<(Self, Option<Reflects>)> {
        let failed = |folder: &Path, e| {
            Error::io(
                format!("cannot open the index of keys: folder={}", folder.display()),
                e,
            )
        };
        for n in 0..FOLDERS {
            // A process that was taken over from may still hold the first, or sleep.
            let folder = nth(folder, n);
            let options = Options { memory_bytes };
            let opened = match Store::open(&folder, options) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && n + 1 < FOLDERS => continue,
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    tracing::warn!(error = %e, "the index of keys is damaged and is made anew");
                    fs::remove_dir_all(&folder).map_err(|e| failed(&folder, e))?;
                    Store::open(&folder, options)
                }
                opened => opened,
            };
            let store = opened.map_err(|e| failed(&folder, e))?;
            tracing::debug!(
                folder = %folder.display(),
                keys = store.len_estimate(),
                memory_bytes = store.memory_bytes(),
                disk_bytes = store.disk_bytes().unwrap_or_default(),
                "opened the index of keys"
            );
            let reflects: Option<Reflects> = store
                .meta()
                .and_then(|meta| serde_json::from_slice(meta).ok());
            let floor = reflects.as_ref().and_then(|r| r.floor.as_deref());
            let floor = floor.and_then(crate::iceberg::files::from_hex);
            let index = Self {
                store,
                floor,
                value: Vec::with_capacity(HEAD),
                folder,
                damaged: AtomicBool::new(false),
            };
            return Ok((index, reflects));
        }
        Err(Error::internal("no folder for the index of keys"))
    }

    /// What it has for each of the keys.
    ///
    /// # Errors
    /// `Unavailable` when the disk fails; `Corrupt` when the index is damaged.
    pub(crate) fn get(&mut self, keys: &Rows) -> Result<Found> {
        let mut batch = Keys::with_capacity(keys.num_rows(), keys.size());
        for key in keys {
            batch.push(key.data());
        }
        self.store
            .get(&batch)
            .map(Found)
            .map_err(|e| self.failed(e))
    }

    /// # Errors
    /// As [`KeyIndex::get`].
    pub(crate) fn put(&mut self, key: &[u8], entry: &Entry<'_>) -> Result<()> {
        entry.write(&mut self.value);
        self.store.put(key, &self.value).map_err(|e| self.failed(e))
    }

    /// # Errors
    /// As [`KeyIndex::get`].
    pub(crate) fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.store.delete(key).map_err(|e| self.failed(e))
    }

    /// Forgets everything.
    ///
    /// # Errors
    /// As [`KeyIndex::get`].
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.floor = None;
        self.store.clear().map_err(|e| self.failed(e))
    }

    /// Every key with its entry, in no order.
    ///
    /// # Errors
    /// As [`KeyIndex::get`].
    pub(crate) fn scan(&self, mut each: impl FnMut(&[u8], Entry<'_>)) -> Result<()> {
        let read = |key: &[u8], value: &[u8]| {
            if let Some(entry) = Entry::read(value) {
                each(key, entry);
            }
        };
        self.store.scan(read).map_err(|e| self.failed(e))
    }

    /// Whether a TRUNCATE has removed everything that this order could change.
    pub(crate) fn below_floor(&self, order: &[u8]) -> bool {
        self.floor
            .as_ref()
            .is_some_and(|floor| order < floor.as_slice())
    }

    pub(crate) fn raise_floor(&mut self, order: &[u8]) {
        if self
            .floor
            .as_ref()
            .is_none_or(|floor| floor.as_slice() < order)
        {
            self.floor = Some(order.to_vec());
        }
    }

    /// The order below which changes came too late.
    pub(crate) fn floor(&self) -> Option<&[u8]> {
        self.floor.as_deref()
    }

    /// Lets go of it, and removes it if it is damaged; what cannot be removed is found damaged again.
    pub(crate) fn close(self) {
        let Self {
            store,
            folder,
            damaged,
            ..
        } = self;
        drop(store);
        if damaged.into_inner() {
            let _ = fs::remove_dir_all(folder);
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        if error.kind() == io::ErrorKind::InvalidData {
            self.damaged.store(true, Ordering::Relaxed);
            return Error::unavailable("the index of keys is damaged and is made anew")
                .because(error);
        }
        Error::io("cannot read or write the index of keys", error)
    }

    /// From now on it reflects this, also after a crash.
    ///
    /// # Errors
    /// As [`KeyIndex::get`].
    pub(crate) fn commit(&mut self, mut reflects: Reflects) -> Result<()> {
        reflects.floor = self.floor.as_deref().map(crate::iceberg::files::to_hex);
        let meta = serde_json::to_vec(&reflects)
            .map_err(|e| Error::internal("cannot describe the index").because(e))?;
        self.store.commit(&meta).map_err(|e| self.failed(e))
    }
}

/// Folders beside the one that was asked for, where that is another process's.
fn nth(folder: &Path, n: usize) -> PathBuf {
    match n {
        0 => folder.to_owned(),
        n => folder.with_extension(n.to_string()),
    }
}
