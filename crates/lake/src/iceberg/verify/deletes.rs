//! Deletes by position: that they are about live files, within them, and that none comes twice.

use std::{collections::BTreeMap, sync::Arc};

use arrow::array::RecordBatch;
use roaring::RoaringTreemap;

use super::{
    super::{
        deletes::{equality, position, vector},
        live::{DeleteFile, DeleteKind, LiveFiles},
    },
    Check,
};

impl Check<'_> {
    pub(super) async fn deletes(&mut self, live: &LiveFiles) {
        let mut all: Vec<Arc<DeleteFile>> = live.deletes().cloned().collect();
        all.sort_by(|a, b| (&a.path, &a.referenced).cmp(&(&b.path, &b.referenced)));
        // The rows that are deleted of each data file, by those deletes that readers apply.
        let mut rows: BTreeMap<Arc<str>, RoaringTreemap> = BTreeMap::new();
        for delete in all {
            let Some(named) = self.rows(&delete).await else {
                continue;
            };
            for (path, named) in named {
                let Some(file) = live.get(&path) else {
                    // Engines that rewrite files leave such deletes behind, and readers pass them over.
                    continue;
                };
                if named.max().is_some_and(|row| row >= file.rows) {
                    self.tell(
                        "deletes",
                        format!(
                            "a row is deleted that is not there: file={} data_file={path} rows={}",
                            delete.path, file.rows
                        ),
                    );
                }
                let applied = live.deletes_of(file);
                let vectors = applied.iter().filter(|d| d.is_vector()).count();
                if delete.is_vector() && vectors > 1 {
                    self.tell(
                        "deletes",
                        format!("a data file has several deletion vectors: data_file={path}"),
                    );
                }
                let counts = applied
                    .iter()
                    .take(if vectors > 0 { 1 } else { usize::MAX })
                    .any(|d| d.path == delete.path && d.kind == delete.kind);
                let before = rows.entry(file.path.clone()).or_default();
                if counts && !before.is_disjoint(&named) {
                    self.tell(
                        "deletes",
                        format!(
                            "a row is deleted twice: file={} data_file={path}",
                            delete.path
                        ),
                    );
                }
                if counts {
                    *before |= named;
                }
            }
        }
    }

    /// What a delete file names, by data file; none where it cannot be read, which is told.
    async fn rows(&mut self, delete: &DeleteFile) -> Option<BTreeMap<String, RoaringTreemap>> {
        let file_io = self.handle.access.io();
        let mut named: BTreeMap<String, RoaringTreemap> = BTreeMap::new();
        let mut count = 0_u64;
        let read = match delete.kind {
            // What they delete depends on the files before them.
            DeleteKind::Equality => {
                let read = equality::read(file_io, delete).await;
                let count = |batches: &[RecordBatch]| -> u64 {
                    batches.iter().map(|batch| batch.num_rows() as u64).sum()
                };
                match read {
                    Ok((_, batches)) if count(&batches) == delete.rows => {}
                    Ok((_, batches)) => self.tell(
                        "deletes",
                        format!(
                            "a delete file has another number of rows: file={} rows={} listed={}",
                            delete.path,
                            count(&batches),
                            delete.rows
                        ),
                    ),
                    Err(error) => self.tell("deletes", error),
                }
                return None;
            }
            DeleteKind::Vector { .. } => vector::read(file_io, delete).await.map(|rows| {
                count = rows.len();
                let path = delete.referenced.as_deref().unwrap_or_default();
                named.insert(path.to_owned(), rows);
            }),
            DeleteKind::Positions => {
                position::read_each(file_io, &delete.path, |path, row| {
                    count += 1;
                    if let Some(rows) = named.get_mut(path) {
                        rows.insert(row);
                    } else {
                        named.insert(path.to_owned(), RoaringTreemap::from_iter([row]));
                    }
                })
                .await
            }
        };
        if let Err(error) = read {
            self.tell("deletes", error);
            return None;
        }
        let distinct: u64 = named.values().map(RoaringTreemap::len).sum();
        if distinct != delete.rows || count != distinct {
            self.tell(
                "deletes",
                format!(
                    "a delete file has another number of rows: file={} rows={count} distinct={distinct} listed={}",
                    delete.path, delete.rows
                ),
            );
        }
        Some(named)
    }
}
