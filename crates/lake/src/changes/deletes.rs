//! From positions to what a commit does about them: delete files or vectors beside the data files,
//! data files that are removed since no row is left in them.

use std::{collections::BTreeMap, sync::Arc};

use calve_engine::error::{Error, Result};
use iceberg::spec::DataFile;
use roaring::RoaringTreemap;
use rustc_hash::FxHashMap;
use uuid::Uuid;

use super::{index::FileId, resolve::Positions, state::State};
use crate::iceberg::{
    deletes::{deleted_rows, position, vector},
    edit::{AddedFile, RemovedFile},
    handle::TableHandle,
    live::LiveFile,
};

/// A data file with all its rows that are deleted.
pub(crate) struct Deleted {
    pub(crate) file: Arc<LiveFile>,
    /// It comes with this commit.
    pub(crate) new: bool,
    pub(crate) rows: RoaringTreemap,
    /// Delete files that are replaced.
    pub(crate) before: Vec<RemovedFile>,
}

/// What deletes make of an edit.
#[derive(Default)]
pub(crate) struct Marked {
    pub(crate) added: Vec<AddedFile>,
    pub(crate) removed: Vec<RemovedFile>,
    /// Location and bytes of files to be written before the commit.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// Locations of data files that are written already.
    pub(crate) written: Vec<String>,
}

impl Marked {
    /// Both.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.added.extend(other.added);
        self.removed.extend(other.removed);
        self.files.extend(other.files);
        self.written.extend(other.written);
        self
    }
}

/// A file of this commit, as deletes see it.
fn described(file: &AddedFile) -> Arc<LiveFile> {
    let data = &file.file;
    Arc::new(LiveFile {
        path: data.file_path().into(),
        manifest: "".into(),
        spec: file.spec,
        partition: Arc::new(data.partition().clone()),
        schema: file.schema,
        format: data.file_format(),
        rows: data.record_count(),
        bytes: data.file_size_in_bytes(),
        sequence: 0,
        snapshot: 0,
        first_row_id: None,
    })
}

/// The files of this commit.
pub(crate) fn by_id(added: &[AddedFile]) -> FxHashMap<FileId, Arc<LiveFile>> {
    let files = added.iter();
    files
        .map(|file| (FileId::of(file.file.file_path()), described(file)))
        .collect()
}

/// All deleted rows of the data files that lose rows now.
///
/// # Errors
/// `Corrupt` when a delete file cannot be read.
pub(crate) async fn collect(
    handle: &TableHandle,
    state: &State,
    new: &FxHashMap<FileId, Arc<LiveFile>>,
    positions: Positions,
) -> Result<Vec<Deleted>> {
    let mut all = BTreeMap::new();
    for (id, rows) in positions {
        if let Some(file) = new.get(&id) {
            let (file, before) = (file.clone(), Vec::new());
            all.insert(
                file.path.clone(),
                Deleted {
                    file,
                    new: true,
                    rows,
                    before,
                },
            );
            continue;
        }
        let file = state.files.get(&id).cloned();
        let file = file.ok_or_else(|| Error::internal("a row to delete is in no live file"))?;
        let deletes = state.live.deletes_of(&file);
        let earlier = deleted_rows(handle.access.io(), &file, &deletes).await?;
        let scoped = state.live.scoped_to(&file.path);
        let before = scoped
            .iter()
            .map(|delete| RemovedFile::delete(delete))
            .collect();
        let rows = rows | earlier;
        all.insert(
            file.path.clone(),
            Deleted {
                file,
                new: false,
                rows,
                before,
            },
        );
    }
    Ok(all.into_values().collect())
}

/// Marks rows as deleted by files of positions, or by vectors. Data files of the table without a row
/// left are removed; `folder` is where files go.
///
/// # Errors
/// `Internal` when a file cannot be encoded.
pub(crate) fn mark(deleted: Vec<Deleted>, vectors: bool, folder: &str) -> Result<Marked> {
    let mut marked = Marked::default();
    for Deleted {
        file,
        new,
        rows,
        before,
    } in deleted
    {
        marked.removed.extend(before);
        if !new && rows.len() >= file.rows {
            marked.removed.push(RemovedFile::data(&file));
        } else if vectors {
            // One file for each: DuckDB 1.5 mixes up the vectors of one file in its cache.
            let location = format!("{folder}/{}-deletes.puffin", Uuid::now_v7().simple());
            let (bytes, described) = vector::write(&location, &[(&file, &rows)])?;
            marked.files.push((location, bytes));
            let added = described.into_iter().map(|one| about(&file, one));
            marked.added.extend(added);
        } else {
            let location = format!("{folder}/{}-deletes.parquet", Uuid::now_v7().simple());
            let (bytes, described) = position::write(&location, &file, &rows)?;
            marked.files.push((location, bytes));
            marked.added.push(about(&file, described));
        }
    }
    Ok(marked)
}

pub(super) fn about(file: &LiveFile, described: DataFile) -> AddedFile {
    AddedFile {
        file: described,
        spec: file.spec,
        schema: file.schema,
        sequence: None,
    }
}
