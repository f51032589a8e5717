//! What is in a table now: its data files, and for each the deletes that apply to it.
//!
//! Held slim, since a table may have 100,000 files: no column statistics. When the table has moved on,
//! only manifests that are new are read.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use calve_engine::error::{Error, Result};
use iceberg::{
    metadata_columns::RESERVED_FIELD_ID_DELETE_FILE_PATH,
    spec::{
        DataContentType, DataFile, DataFileFormat, Literal, ManifestContentType, ManifestEntry,
        ManifestFile, PrimitiveLiteral, Struct,
    },
};
use rustc_hash::FxHashMap;

use super::{
    access::FileAccess,
    manifests::{ManifestCache, Parsed},
};

/// A live data file.
#[derive(Debug)]
pub(crate) struct LiveFile {
    /// Its location, as the manifest has it.
    pub(crate) path: Arc<str>,
    /// The manifest that lists it.
    pub(crate) manifest: Arc<str>,
    /// Partition spec, and the values of its fields.
    pub(crate) spec: i32,
    pub(crate) partition: Arc<Struct>,
    /// The schema that its manifest was written with.
    pub(crate) schema: i32,
    pub(crate) format: DataFileFormat,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    /// Data sequence number: deletes of lower ones do not apply.
    pub(crate) sequence: i64,
    /// The snapshot that added it.
    #[cfg_attr(not(test), allow(dead_code, reason = "tests compare it"))]
    pub(crate) snapshot: i64,
    pub(crate) first_row_id: Option<i64>,
}

/// How a delete file says what is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeleteKind {
    /// A file of paths and positions.
    Positions,
    /// A bitmap in a Puffin file.
    Vector {
        /// Where it begins, in bytes.
        offset: u64,
        /// Its length in bytes.
        bytes: u64,
    },
    /// Values of columns.
    Equality,
}

/// A live delete file, or one of the vectors in a Puffin file.
#[derive(Debug)]
pub(crate) struct DeleteFile {
    pub(crate) path: Arc<str>,
    pub(crate) manifest: Arc<str>,
    pub(crate) kind: DeleteKind,
    /// The one data file that it is about; none: it may be about several.
    pub(crate) referenced: Option<Arc<str>>,
    pub(crate) spec: i32,
    pub(crate) partition: Arc<Struct>,
    /// Rows that it deletes, or values.
    pub(crate) rows: u64,
    pub(crate) sequence: i64,
    /// Field ids of the values, in deletes by values.
    pub(crate) equality: Box<[i32]>,
}

impl DeleteFile {
    pub(crate) fn is_vector(&self) -> bool {
        matches!(self.kind, DeleteKind::Vector { .. })
    }

    /// About every table partition.
    pub(crate) fn is_global(&self) -> bool {
        self.kind == DeleteKind::Equality && self.partition.fields().is_empty()
    }

    fn applies(&self, file: &LiveFile) -> bool {
        if self.kind == DeleteKind::Equality {
            // Not to rows of the same commit.
            let about = self.is_global()
                || (self.spec == file.spec && widest(&self.partition) == widest(&file.partition));
            return about && self.sequence > file.sequence;
        }
        // What names the file itself need not name its table partition.
        let about = self.referenced.is_some()
            || (self.spec == file.spec && widest(&self.partition) == widest(&file.partition));
        about && self.sequence >= file.sequence
    }
}

/// Partition values in the widest form: a manifest has them in the types of its time, and a column may
/// have been widened since.
pub(crate) fn widest(partition: &Struct) -> Struct {
    let widen = |value: Option<&Literal>| {
        Some(match value? {
            Literal::Primitive(PrimitiveLiteral::Int(value)) => Literal::long(i64::from(*value)),
            Literal::Primitive(PrimitiveLiteral::Float(value)) => Literal::double(value.0),
            other => other.clone(),
        })
    };
    partition.iter().map(widen).collect()
}

/// What one manifest lists.
#[derive(Debug, Default)]
struct Contents {
    data: Vec<Arc<LiveFile>>,
    deletes: Vec<Arc<DeleteFile>>,
}

/// All live files of one snapshot.
#[derive(Debug, Default)]
pub(crate) struct LiveFiles {
    #[cfg_attr(not(test), allow(dead_code, reason = "tests compare it"))]
    snapshot: Option<i64>,
    /// By path; with the first row id, which a table that became format version 3 gives later.
    manifests: HashMap<String, (Option<u64>, Contents)>,
    files: FxHashMap<Arc<str>, Arc<LiveFile>>,
    /// Deletes about one data file, by its path.
    scoped: FxHashMap<Arc<str>, Vec<Arc<DeleteFile>>>,
    /// Deletes about any data file of a table partition.
    wide: HashMap<(i32, Struct), Vec<Arc<DeleteFile>>>,
    equality: Vec<Arc<DeleteFile>>,
}

impl LiveFiles {
    /// Goes to the snapshot with these manifests. What fails leaves it as it was.
    ///
    /// # Errors
    /// `Corrupt` when a manifest cannot be read.
    pub(crate) async fn update(
        &mut self,
        access: &FileAccess,
        snapshot: Option<i64>,
        manifests: &[ManifestFile],
        cache: &ManifestCache,
    ) -> Result<()> {
        let mut new = Vec::new();
        let same = |has: &Self, m: &ManifestFile| {
            let known = has.manifests.get(&m.manifest_path);
            known.is_some_and(|(first, _)| *first == m.first_row_id)
        };
        for manifest in manifests {
            if !same(self, manifest) {
                let parsed = cache.load(access, manifest).await?;
                let contents = Contents::of(&parsed, manifest)?;
                new.push((manifest, contents));
            }
        }
        let keep: HashSet<&str> = manifests
            .iter()
            .filter(|manifest| same(self, manifest))
            .map(|manifest| &*manifest.manifest_path)
            .collect();
        let gone: Vec<String> = self
            .manifests
            .keys()
            .filter(|path| !keep.contains(path.as_str()))
            .cloned()
            .collect();
        for path in gone {
            if let Some((_, contents)) = self.manifests.remove(&path) {
                self.forget(contents);
            }
        }
        for (manifest, contents) in new {
            self.remember(&contents);
            let path = manifest.manifest_path.clone();
            self.manifests
                .insert(path, (manifest.first_row_id, contents));
        }
        self.snapshot = snapshot;
        Ok(())
    }

    fn remember(&mut self, contents: &Contents) {
        for file in &contents.data {
            self.files.insert(file.path.clone(), file.clone());
        }
        for delete in &contents.deletes {
            match (delete.kind, &delete.referenced) {
                (DeleteKind::Equality, _) => self.equality.push(delete.clone()),
                (_, Some(path)) => self
                    .scoped
                    .entry(path.clone())
                    .or_default()
                    .push(delete.clone()),
                (_, None) => self
                    .wide
                    .entry((delete.spec, widest(&delete.partition)))
                    .or_default()
                    .push(delete.clone()),
            }
        }
    }

    fn forget(&mut self, contents: Contents) {
        for file in contents.data {
            self.files.remove(&file.path);
        }
        for delete in contents.deletes {
            let others = |d: &Arc<DeleteFile>| !Arc::ptr_eq(d, &delete);
            match (delete.kind, &delete.referenced) {
                (DeleteKind::Equality, _) => self.equality.retain(others),
                (_, Some(path)) => {
                    if let Some(list) = self.scoped.get_mut(path) {
                        list.retain(others);
                        if list.is_empty() {
                            self.scoped.remove(path);
                        }
                    }
                }
                (_, None) => {
                    if let Some(list) = self.wide.get_mut(&(delete.spec, widest(&delete.partition)))
                    {
                        list.retain(others);
                    }
                }
            }
        }
    }

    /// The snapshot; none: the table has none.
    #[cfg(test)]
    pub(crate) fn snapshot(&self) -> Option<i64> {
        self.snapshot
    }

    /// All data files, in no order.
    pub(crate) fn files(&self) -> impl ExactSizeIterator<Item = &Arc<LiveFile>> {
        self.files.values()
    }

    /// A data file; none: it is not live.
    pub(crate) fn get(&self, path: &str) -> Option<&Arc<LiveFile>> {
        self.files.get(path)
    }

    /// Delete files and vectors that apply to a data file. Where there is a vector, it comes first,
    /// and holds every position that is deleted: readers leave the files of positions alone then.
    pub(crate) fn deletes_of(&self, file: &LiveFile) -> Vec<Arc<DeleteFile>> {
        let scoped = self.scoped.get(&file.path);
        let wide = self.wide.get(&(file.spec, widest(&file.partition)));
        let mut deletes: Vec<Arc<DeleteFile>> = scoped
            .into_iter()
            .chain(wide)
            .flatten()
            .chain(&self.equality)
            .filter(|delete| delete.applies(file))
            .cloned()
            .collect();
        deletes.sort_by(|a, b| (!a.is_vector(), &a.path).cmp(&(!b.is_vector(), &b.path)));
        deletes
    }

    /// Delete files and vectors about this one data file, whether or not they apply to it still.
    pub(crate) fn scoped_to(&self, path: &str) -> &[Arc<DeleteFile>] {
        self.scoped.get(path).map_or(&[], Vec::as_slice)
    }

    /// All deletes: by positions, vectors, by values; in no order.
    pub(crate) fn deletes(&self) -> impl Iterator<Item = &Arc<DeleteFile>> {
        let by_position = self.scoped.values().chain(self.wide.values()).flatten();
        by_position.chain(&self.equality)
    }

    /// Deletes about one data file that is not live any more: engines that rewrite files leave them.
    pub(crate) fn dangling(&self) -> impl Iterator<Item = &Arc<DeleteFile>> {
        let gone = self
            .scoped
            .iter()
            .filter(|(path, _)| !self.files.contains_key(*path));
        gone.flat_map(|(_, deletes)| deletes)
    }

    /// Position deletes that may be about several data files.
    pub(crate) fn wide(&self) -> impl Iterator<Item = &Arc<DeleteFile>> {
        self.wide.values().flatten()
    }

    /// Deletes by values.
    pub(crate) fn by_values(&self) -> &[Arc<DeleteFile>] {
        &self.equality
    }
}

impl Contents {
    fn of(parsed: &Parsed, manifest: &ManifestFile) -> Result<Self> {
        let path: Arc<str> = manifest.manifest_path.as_str().into();
        let spec = parsed.metadata.partition_spec.spec_id();
        let schema = parsed.metadata.schema.schema_id();
        let mut partitions: HashSet<Arc<Struct>> = HashSet::new();
        let mut contents = Self::default();
        for entry in parsed.live() {
            let file = entry.data_file();
            let partition = if let Some(known) = partitions.get(file.partition()) {
                known.clone()
            } else {
                let new = Arc::new(file.partition().clone());
                partitions.insert(new.clone());
                new
            };
            let (snapshot, sequence) = numbers(entry)?;
            if manifest.content == ManifestContentType::Data {
                contents.data.push(Arc::new(LiveFile {
                    path: file.file_path().into(),
                    manifest: path.clone(),
                    spec,
                    partition,
                    schema,
                    format: file.file_format(),
                    rows: file.record_count(),
                    bytes: file.file_size_in_bytes(),
                    sequence,
                    snapshot,
                    first_row_id: file.first_row_id(),
                }));
                continue;
            }
            contents.deletes.push(Arc::new(DeleteFile {
                path: file.file_path().into(),
                manifest: path.clone(),
                kind: kind(file)?,
                referenced: referenced(file).map(Into::into),
                spec,
                partition,
                rows: file.record_count(),
                sequence,
                equality: file.equality_ids().unwrap_or_default().into(),
            }));
        }
        Ok(contents)
    }
}

fn numbers(entry: &ManifestEntry) -> Result<(i64, i64)> {
    entry
        .snapshot_id()
        .zip(entry.sequence_number())
        .ok_or_else(|| {
            Error::corrupt(format!(
                "a manifest's entry has no sequence number or snapshot: file={}",
                entry.file_path()
            ))
        })
}

fn kind(file: &DataFile) -> Result<DeleteKind> {
    if file.content_type() == DataContentType::EqualityDeletes {
        return Ok(DeleteKind::Equality);
    }
    if file.file_format() != DataFileFormat::Puffin {
        return Ok(DeleteKind::Positions);
    }
    let place = file.content_offset().zip(file.content_size_in_bytes());
    let known = place.and_then(|(offset, bytes)| {
        Some(DeleteKind::Vector {
            offset: offset.try_into().ok()?,
            bytes: bytes.try_into().ok()?,
        })
    });
    known.ok_or_else(|| {
        Error::corrupt(format!(
            "a deletion vector does not say where it is: file={}",
            file.file_path()
        ))
    })
}

/// The one data file that deletes are about. Writers that do not name it tell by the bounds of the
/// column of paths, if they are equal.
fn referenced(file: &DataFile) -> Option<String> {
    if let Some(path) = file.referenced_data_file() {
        return Some(path);
    }
    let id = RESERVED_FIELD_ID_DELETE_FILE_PATH;
    let (lower, upper) = (file.lower_bounds().get(&id)?, file.upper_bounds().get(&id)?);
    match (lower.literal(), upper.literal()) {
        (PrimitiveLiteral::String(lower), PrimitiveLiteral::String(upper)) if lower == upper => {
            Some(lower.clone())
        }
        _ => None,
    }
}
