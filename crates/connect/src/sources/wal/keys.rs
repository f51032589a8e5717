//! Idempotency keys: in memory, and on the disk after their segments are gone.
//!
//! A record holds its key, so keys are durable together with their events. Before segments are
//! removed, their keys go to a file of keys. Files are merged so that each is more than twice as large
//! as the next, and are removed when all of theirs are too old.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    path::{Path, PathBuf},
};

use calve_engine::{Error, Result, durable};

use super::{damaged, record::Key, segments};

const MAGIC: [u8; 8] = *b"calvekey";
const ENTRY_BYTES: usize = 56;
/// Those of one file: beyond it files are not merged.
const LARGEST_FILE_BYTES: u64 = 64 << 20;

/// What was answered to the first request with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) key: Key,
    pub(crate) time_ms: i64,
    /// Where its events begin.
    pub(crate) position: u64,
    pub(crate) events: u32,
    pub(crate) refused: u32,
}

/// Keys that are remembered.
#[derive(Debug)]
pub(super) struct Keys {
    by_key: HashMap<[u8; 16], Known>,
    /// By age: the oldest first, with the place of each in the log to know it again.
    order: VecDeque<([u8; 16], u64)>,
    /// Those that are in no file of keys yet.
    fresh: VecDeque<Known>,
    files: Vec<KeyFile>,
    ttl_ms: i64,
    most: usize,
    forgotten: u64,
}

#[derive(Debug)]
struct KeyFile {
    path: PathBuf,
    bytes: u64,
    newest_ms: i64,
}

impl Keys {
    /// Those of the files in the folder.
    pub(super) fn load(folder: &Path, ttl_ms: i64, most: usize) -> Result<Self> {
        let mut keys = Self {
            by_key: HashMap::new(),
            order: VecDeque::new(),
            fresh: VecDeque::new(),
            files: Vec::new(),
            ttl_ms,
            most,
            forgotten: 0,
        };
        let mut names = segments::names(folder)?;
        names.retain(|name| {
            let rest = name.strip_prefix("keys-");
            rest.is_some_and(|rest| rest.strip_suffix(".keys").is_some())
        });
        names.sort_unstable();
        for name in names {
            let path = folder.join(name);
            let bytes = fs::read(&path).map_err(|e| {
                let what = format!("cannot read the log's keys: file={}", path.display());
                Error::io(what, e)
            })?;
            let entries = decode(&bytes).ok_or_else(|| {
                damaged(format!(
                    "a file of keys is damaged: file={}",
                    path.display()
                ))
            })?;
            keys.files.push(KeyFile {
                path,
                bytes: bytes.len() as u64,
                newest_ms: newest(&entries),
            });
            for known in entries {
                keys.remember(known);
            }
        }
        Ok(keys)
    }

    /// A key of a record that is durable.
    pub(super) fn insert(&mut self, known: Known) {
        self.fresh.push_back(known);
        self.remember(known);
        self.forget_fresh();
    }

    /// What is forgotten need not be in a file.
    fn forget_fresh(&mut self) {
        while self.fresh.len() > self.most {
            self.fresh.pop_front();
        }
    }

    /// About how much memory they take.
    pub(super) fn held_bytes(&self) -> u64 {
        let by_key = self.by_key.capacity() * size_of::<([u8; 16], Known)>();
        let order = self.order.capacity() * size_of::<([u8; 16], u64)>();
        (by_key + order + self.fresh.capacity() * size_of::<Known>()) as u64
    }

    fn remember(&mut self, known: Known) {
        let before = self.by_key.insert(known.key.key, known);
        if before.is_none_or(|before| before.position != known.position) {
            self.order.push_back((known.key.key, known.position));
        }
        self.expire(known.time_ms);
        while self.by_key.len() > self.most && self.forget_oldest() {
            if self.forgotten == 0 {
                tracing::warn!(
                    max_keys = self.most,
                    "more idempotency keys than are remembered: the oldest are forgotten before their time"
                );
            }
            self.forgotten += 1;
        }
    }

    /// Forgets what is too old.
    fn expire(&mut self, now_ms: i64) {
        while let Some((key, position)) = self.order.front() {
            let alive = self.by_key.get(key).is_some_and(|known| {
                known.position == *position && now_ms - known.time_ms < self.ttl_ms
            });
            if alive {
                return;
            }
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let Some((key, position)) = self.order.pop_front() else {
            return false;
        };
        if self
            .by_key
            .get(&key)
            .is_some_and(|k| k.position == position)
        {
            self.by_key.remove(&key);
        }
        true
    }

    /// What is known of a key.
    pub(super) fn get(&self, key: &[u8; 16], now_ms: i64) -> Option<Known> {
        let known = self.by_key.get(key).copied()?;
        (now_ms - known.time_ms < self.ttl_ms).then_some(known)
    }

    pub(super) fn ttl_ms(&self) -> i64 {
        self.ttl_ms
    }

    /// Keys that were forgotten before their time.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The keys of records before `upto` that are in no file yet, for [`write`].
    pub(super) fn take_fresh(&mut self, upto: u64, now_ms: i64) -> Vec<Known> {
        let mut taken = Vec::new();
        while let Some(known) = self.fresh.pop_front_if(|known| known.position < upto) {
            if now_ms - known.time_ms < self.ttl_ms {
                taken.push(known);
            }
        }
        taken
    }

    /// Puts back what could not be written.
    pub(super) fn put_back(&mut self, taken: Vec<Known>) {
        for known in taken.into_iter().rev() {
            self.fresh.push_front(known);
        }
        self.forget_fresh();
    }

    /// Files that are to become one with the next one of `bytes` bytes, the newest last; and those of
    /// which every key is too old, which are not among them any more.
    pub(super) fn plan(&mut self, bytes: u64, now_ms: i64) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let old = |file: &KeyFile| now_ms - file.newest_ms >= self.ttl_ms;
        let expired = self.files.iter().filter(|f| old(f));
        let expired = expired.map(|f| f.path.clone()).collect();
        self.files
            .retain(|file| now_ms - file.newest_ms < self.ttl_ms);
        let (mut sum, mut from) = (bytes, self.files.len());
        while bytes > 0 && from > 0 {
            let next = self.files[from - 1].bytes;
            if next > sum * 2 || next + sum > LARGEST_FILE_BYTES {
                break;
            }
            sum += next;
            from -= 1;
        }
        let merged = self.files[from..].iter().map(|f| f.path.clone()).collect();
        (merged, expired)
    }

    /// The files `merged` are one now.
    pub(super) fn merged(&mut self, merged: &[PathBuf], into: Written) {
        self.files.retain(|file| !merged.contains(&file.path));
        self.files.push(KeyFile {
            path: into.path,
            bytes: into.bytes,
            newest_ms: into.newest_ms,
        });
    }
}

/// A file of keys that was written.
pub(super) struct Written {
    path: PathBuf,
    bytes: u64,
    newest_ms: i64,
}

fn newest(entries: &[Known]) -> i64 {
    entries.iter().map(|k| k.time_ms).max().unwrap_or(i64::MIN)
}

/// Bytes of a file of so many keys.
pub(super) fn file_bytes(entries: usize) -> u64 {
    (MAGIC.len() + entries * ENTRY_BYTES + 4) as u64
}

/// Writes a file of the keys of the files `merged` and of `entries`, durably. The files stay.
pub(super) fn write(
    folder: &Path,
    upto: u64,
    merged: &[PathBuf],
    entries: &[Known],
    still: impl Fn(&Known) -> bool,
) -> Result<Written> {
    let path = folder.join(format!("keys-{upto:020}.keys"));
    let cannot = |e| {
        let what = format!("cannot write the log's keys: file={}", path.display());
        Error::io(what, e)
    };
    let mut all = Vec::new();
    for file in merged {
        let older = decode(&fs::read(file).map_err(cannot)?);
        let older = older.ok_or_else(|| {
            damaged(format!(
                "a file of keys is damaged: file={}",
                file.display()
            ))
        })?;
        all.extend(older.into_iter().filter(&still));
    }
    all.extend_from_slice(entries);
    let bytes = encode(&all);
    durable::replace(&path, &bytes).map_err(cannot)?;
    Ok(Written {
        path: path.clone(),
        bytes: bytes.len() as u64,
        newest_ms: newest(&all),
    })
}

impl Written {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn encode(entries: &[Known]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(file_bytes(entries.len()) as usize);
    bytes.extend_from_slice(&MAGIC);
    for known in entries {
        bytes.extend_from_slice(&known.key.key);
        bytes.extend_from_slice(&known.key.body);
        bytes.extend_from_slice(&known.time_ms.to_le_bytes());
        bytes.extend_from_slice(&known.position.to_le_bytes());
        bytes.extend_from_slice(&known.events.to_le_bytes());
        bytes.extend_from_slice(&known.refused.to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Vec<Known>> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    let entries = body.strip_prefix(&MAGIC)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) || entries.len() % ENTRY_BYTES != 0 {
        return None;
    }
    let entry = |bytes: &[u8]| {
        Some(Known {
            key: Key {
                key: *bytes.first_chunk()?,
                body: *bytes[16..].first_chunk()?,
            },
            time_ms: i64::from_le_bytes(*bytes[32..].first_chunk()?),
            position: u64::from_le_bytes(*bytes[40..].first_chunk()?),
            events: u32::from_le_bytes(*bytes[48..].first_chunk()?),
            refused: u32::from_le_bytes(*bytes[52..].first_chunk()?),
        })
    };
    entries.chunks_exact(ENTRY_BYTES).map(entry).collect()
}
