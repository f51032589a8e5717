//! Edits of a table: deletes, rewrites, merged manifests, and what other readers make of them.

use std::{collections::BTreeMap, process::Command, sync::Arc};

use arrow::array::RecordBatch;
use calve_engine::error::ErrorKind;
use iceberg::spec::{DataContentType, ManifestStatus, Operation};
use roaring::RoaringTreemap;
use uuid::Uuid;

use super::{Lake, commit, committed, prepare, rows};
use crate::iceberg::{
    deletes,
    edit::{AddedFile, Edit, RemovedFile},
    files::Content,
    handle::{Known, TableHandle, commit_edit},
    held,
    live::{LiveFile, LiveFiles},
    place::IcebergPlacement,
    publish::write_all,
};

impl Lake {
    pub(crate) async fn handle(&self) -> TableHandle {
        TableHandle::open(self.catalog().await, "shop.orders")
            .await
            .expect("a table")
    }

    /// What PyIceberg and DuckDB read.
    pub(in crate::iceberg) fn read_by_others(&self) -> (Vec<i64>, Vec<i64>) {
        let python =
            std::env::var("CALVE_PYTHON").expect("CALVE_PYTHON: run the tests by `make test`");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/iceberg/tests/readers.py");
        let done = Command::new(python)
            .arg(script)
            .arg(self.config.catalog.sqlite.as_ref().expect("a file"))
            .arg("shop.orders")
            .output()
            .expect("run Python");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "the readers failed: {said}");
        let read: BTreeMap<String, Vec<i64>> =
            serde_json::from_slice(&done.stdout).expect("the readers print JSON");
        (read["pyiceberg"].clone(), read["duckdb"].clone())
    }
}

pub(crate) async fn live(handle: &TableHandle) -> (Known, LiveFiles) {
    let known = handle.load_existing().await.expect("a table");
    let mut live = LiveFiles::default();
    handle.live(&known, &mut live).await.expect("live files");
    (known, live)
}

fn treemap(rows: &[u64]) -> RoaringTreemap {
    rows.iter().copied().collect()
}

/// Data files, oldest first, then by path.
pub(in crate::iceberg) fn in_order(live: &LiveFiles) -> Vec<Arc<LiveFile>> {
    let mut files: Vec<_> = live.files().cloned().collect();
    files.sort_by_key(|file| (file.sequence, file.path.clone()));
    files
}

/// Deletes rows of one data file by a position delete file, into which the earlier one goes.
pub(crate) async fn delete_positions(
    handle: &TableHandle,
    known: &Known,
    live: &LiveFiles,
    file: &LiveFile,
    rows: &[u64],
) -> Edit {
    let folder = format!("{}/data", known.metadata.location());
    let location = format!("{folder}/{}-deletes.parquet", Uuid::new_v4());
    let file_io = handle.access.io();
    let before = live.deletes_of(file);
    let mut all = deletes::deleted_rows(file_io, file, &before)
        .await
        .expect("positions");
    all |= treemap(rows);
    let (bytes, described) = deletes::position::write(&location, file, &all).expect("encoded");
    write_all(vec![(location, bytes)], &folder)
        .await
        .expect("written");
    let mut edit = Edit::new(Operation::Delete);
    edit.added.push(added(described, file));
    edit.removed = before.iter().map(|d| RemovedFile::delete(d)).collect();
    edit
}

/// The same by a deletion vector.
pub(in crate::iceberg) async fn delete_by_vector(
    handle: &TableHandle,
    known: &Known,
    live: &LiveFiles,
    file: &LiveFile,
    rows: &[u64],
) -> Edit {
    let folder = format!("{}/data", known.metadata.location());
    let location = format!("{folder}/{}-deletes.puffin", Uuid::new_v4());
    let before = live.deletes_of(file);
    let mut all = deletes::deleted_rows(handle.access.io(), file, &before)
        .await
        .expect("rows");
    all |= treemap(rows);
    let (bytes, described) = deletes::vector::write(&location, &[(file, &all)]).expect("encoded");
    write_all(vec![(location, bytes)], &folder)
        .await
        .expect("written");
    let mut edit = Edit::new(Operation::Delete);
    edit.added = described.into_iter().map(|d| added(d, file)).collect();
    edit.removed = before.iter().map(|d| RemovedFile::delete(d)).collect();
    edit
}

fn added(described: iceberg::spec::DataFile, of: &LiveFile) -> AddedFile {
    AddedFile {
        file: described,
        spec: of.spec,
        schema: of.schema,
        sequence: None,
    }
}

/// Replaces data files by such with these rows, as a compaction does; they keep the sequence number 1.
pub(in crate::iceberg) async fn replace(
    handle: &TableHandle,
    old: &[Arc<LiveFile>],
    placement: &IcebergPlacement,
    rows: RecordBatch,
) {
    let again = prepare(placement, rows);
    let content = Content::from_json(&again.content).expect("content");
    let replaced = commit_edit(handle, async |known: &Known| {
        let mut edit = Edit::new(Operation::Replace);
        edit.removed = old.iter().map(|f| RemovedFile::data(f)).collect();
        let (spec, schema) = (content.spec, content.schema);
        let files = content.data_files(&known.metadata)?;
        edit.added.extend(files.into_iter().map(|file| AddedFile {
            file,
            spec,
            schema,
            sequence: Some(1),
        }));
        Ok(Some(edit))
    });
    replaced.await.expect("committed");
}

/// Entries of the current snapshot's summary.
fn summary(known: &Known) -> BTreeMap<String, String> {
    let snapshot = known.metadata.current_snapshot().expect("a snapshot");
    let entries = &snapshot.summary().additional_properties;
    entries
        .iter()
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

#[tokio::test]
async fn position_deletes_are_merged_and_read_by_all() {
    let lake = Lake::new(&["region"]);
    let (placement, output) = lake.open().await;
    committed(
        &output,
        &commit("main", 1, prepare(&placement, rows(0..30))),
    )
    .await;
    committed(
        &output,
        &commit("main", 2, prepare(&placement, rows(30..60))),
    )
    .await;
    let handle = lake.handle().await;
    let (_, before) = live(&handle).await;
    let file = in_order(&before)[0].clone();
    assert_eq!(file.rows, 10);
    for (positions, total) in [(vec![0, 3], 2), (vec![3, 9], 3)] {
        let done = commit_edit(&handle, async |known: &Known| {
            let mut live = LiveFiles::default();
            handle.live(known, &mut live).await?;
            let file = live.get(&file.path).expect("live").clone();
            Ok(Some(
                delete_positions(&handle, known, &live, &file, &positions).await,
            ))
        });
        assert!(done.await.expect("committed").is_some());
        let (known, after) = live(&handle).await;
        let deletes = after.deletes_of(&file);
        assert_eq!(deletes.len(), 1, "one delete file for a data file");
        assert_eq!(deletes[0].rows, total);
        let said = summary(&known);
        assert_eq!(said["total-position-deletes"], total.to_string());
        assert_eq!(said["total-delete-files"], "1");
        assert_eq!(said["total-records"], "60");
        assert_eq!(said["added-position-delete-files"], "1");
        assert_eq!(
            said.get("removed-position-delete-files")
                .map(String::as_str),
            (total == 3).then_some("1")
        );
    }
    // The next commit carries the deletes on, and no entries that are marked as deleted.
    committed(
        &output,
        &commit("main", 3, prepare(&placement, rows(60..63))),
    )
    .await;
    committed(
        &output,
        &commit("main", 4, prepare(&placement, rows(63..66))),
    )
    .await;
    let (known, after) = live(&handle).await;
    let ours = held::Held::of(&known.metadata, "orders", "main").expect("the history agrees");
    assert_eq!(ours.map(|held| held.epoch.0), Some(4));
    let manifests = handle.manifests(&known).await.expect("manifests");
    for manifest in manifests.iter() {
        let read = manifest
            .load_manifest(handle.access.io())
            .await
            .expect("a manifest");
        let gone = |e: &&Arc<iceberg::spec::ManifestEntry>| e.status() == ManifestStatus::Deleted;
        if manifest.added_snapshot_id != known.metadata.current_snapshot_id().expect("one") {
            let marked = read.entries().iter().filter(gone).count();
            assert!(marked <= 1, "only where the commit itself removed it");
        }
    }
    let deleted = deletes::deleted_rows(handle.access.io(), &file, &after.deletes_of(&file))
        .await
        .expect("positions");
    assert_eq!(deleted, treemap(&[0, 3, 9]));
    let left = lake.ids().await;
    assert_eq!(left.len(), 63);
    let (pyiceberg, duckdb) = lake.read_by_others();
    assert_eq!(pyiceberg, left);
    assert_eq!(duckdb, left);
}

#[tokio::test]
async fn deletion_vectors_share_a_file_and_are_read_by_others() {
    let mut lake = Lake::new(&["region"]);
    lake.config.format_version = 3;
    let (placement, output) = lake.open().await;
    committed(
        &output,
        &commit("main", 1, prepare(&placement, rows(0..30))),
    )
    .await;
    let handle = lake.handle().await;
    let (_, before) = live(&handle).await;
    let files = in_order(&before);
    let vectors = async |which: &[(usize, RoaringTreemap)]| {
        let edit = commit_edit(&handle, async |known: &Known| {
            let mut now = LiveFiles::default();
            handle.live(known, &mut now).await?;
            let folder = format!("{}/data", known.metadata.location());
            let location = format!("{folder}/{}-deletes.puffin", Uuid::new_v4());
            let of: Vec<(&LiveFile, &RoaringTreemap)> = which
                .iter()
                .map(|(n, rows)| (files[*n].as_ref(), rows))
                .collect();
            let (bytes, described) = deletes::vector::write(&location, &of)?;
            write_all(vec![(location, bytes)], &folder).await?;
            let mut edit = Edit::new(Operation::Delete);
            for ((of, _), file) in of.iter().zip(described) {
                edit.added.push(added(file, of));
                let before = now.scoped_to(&of.path);
                edit.removed
                    .extend(before.iter().map(|d| RemovedFile::delete(d)));
            }
            Ok(Some(edit))
        });
        edit.await.expect("committed").expect("a snapshot");
    };
    let both = [
        (0, treemap(&[1, 2])),
        (1, treemap(&[0, 9])),
        (2, treemap(&[5])),
    ];
    vectors(&both).await;
    vectors(&[(1, treemap(&[0, 4, 9]))]).await;
    let (known, after) = live(&handle).await;
    let said = summary(&known);
    assert_eq!((&*said["added-dvs"], &*said["removed-dvs"]), ("1", "1"));
    assert_eq!(said["total-position-deletes"], "6");
    assert_eq!(said["total-delete-files"], "3");
    assert!(!said.contains_key("added-position-delete-files"));
    for (file, expected) in files.iter().zip([vec![1, 2], vec![0, 4, 9], vec![5]]) {
        let deletes = after.deletes_of(file);
        assert_eq!(deletes.len(), 1);
        let read = deletes::deleted_rows(handle.access.io(), file, &deletes)
            .await
            .expect("rows");
        assert_eq!(read, treemap(&expected));
    }
    let (pyiceberg, duckdb) = lake.read_by_others();
    assert_eq!(pyiceberg.len(), 24);
    assert_eq!(pyiceberg, duckdb);
}

#[tokio::test]
async fn what_is_not_live_any_more_is_a_conflict() {
    let lake = Lake::new(&["region"]);
    let (placement, output) = lake.open().await;
    for epoch in 1..=3 {
        let first = epoch as i64 * 3;
        committed(
            &output,
            &commit("main", epoch, prepare(&placement, rows(first..first + 3))),
        )
        .await;
    }
    let handle = lake.handle().await;
    let (known, before) = live(&handle).await;
    let files = in_order(&before);
    let remove = |n: usize| {
        let mut edit = Edit::new(Operation::Delete);
        edit.removed.push(RemovedFile::data(&files[n]));
        edit
    };
    let mut tries = 0;
    commit_edit(&handle, async |_: &Known| {
        tries += 1;
        if tries == 1 {
            // Another commit comes in between: the plan is made again.
            let other = commit("main", 4, prepare(&placement, rows(12..15)));
            committed(&output, &other).await;
        }
        Ok(Some(remove(0)))
    })
    .await
    .expect("committed");
    assert!(tries <= 2);
    let stale = handle.build(&known, remove(1)).await.expect("built on it");
    let outcome = handle.apply(&known, stale).await.expect("an outcome");
    assert_eq!(outcome, calve_engine::seams::Outcome::Conflict);
    let (known, after) = live(&handle).await;
    assert_eq!(after.files().len(), 11);
    let error = handle.build(&known, remove(0)).await.err().expect("gone");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    let said = summary(&known);
    assert_eq!(said["deleted-data-files"], "1");
    assert_eq!(said["total-data-files"], "11");
    assert_eq!(said["total-records"], "11");
    assert_eq!(lake.ids().await.len(), 11);
}

#[tokio::test]
async fn merged_manifests_keep_numbers_and_row_ids() {
    for version in [2, 3] {
        let mut lake = Lake::new(&["region"]);
        lake.config.format_version = version;
        let few = ("commit.manifest.min-count-to-merge", "4");
        lake.config
            .properties
            .insert(few.0.to_owned(), few.1.to_owned());
        let (placement, output) = lake.open().await;
        let handle = lake.handle().await;
        let mut kept = LiveFiles::default();
        let mut seen: BTreeMap<Arc<str>, (i64, i64, Option<i64>)> = BTreeMap::new();
        for epoch in 1..=14 {
            let first = epoch as i64 * 10;
            committed(
                &output,
                &commit("main", epoch, prepare(&placement, rows(first..first + 10))),
            )
            .await;
            let (known, fresh) = live(&handle).await;
            handle.live(&known, &mut kept).await.expect("updated");
            assert_eq!(kept.snapshot(), fresh.snapshot());
            assert_eq!(kept.files().len(), fresh.files().len());
            for file in in_order(&kept) {
                let numbers = (file.sequence, file.snapshot, file.first_row_id);
                let before = seen.entry(file.path.clone()).or_insert(numbers);
                assert_eq!(*before, numbers, "format version {version}");
            }
        }
        let (known, after) = live(&handle).await;
        let manifests = handle.manifests(&known).await.expect("manifests");
        assert!(manifests.len() <= 6, "{}", manifests.len());
        assert_eq!(after.files().len(), 42);
        assert_eq!(lake.ids().await, (10..150).collect::<Vec<_>>());
        if version == 3 {
            assert_eq!(known.metadata.next_row_id(), 140);
            let mut next = 0;
            let mut ids: Vec<(i64, u64)> = after
                .files()
                .map(|file| (file.first_row_id.expect("an id"), file.rows))
                .collect();
            ids.sort_unstable();
            for (first, rows) in ids {
                assert_eq!(first, next);
                next += rows as i64;
            }
            // A rewritten manifest keeps them too.
            let gone = after.files().next().expect("a file").clone();
            commit_edit(&handle, async |_: &Known| {
                let mut edit = Edit::new(Operation::Delete);
                edit.removed.push(RemovedFile::data(&gone));
                Ok(Some(edit))
            })
            .await
            .expect("committed");
            let (known, after) = live(&handle).await;
            assert_eq!(known.metadata.next_row_id(), 140);
            for file in after.files() {
                assert_eq!(Some(seen[&file.path].2), Some(file.first_row_id));
            }
        }
    }
}

#[tokio::test]
async fn a_rewritten_file_may_keep_its_sequence_number() {
    let lake = Lake::new(&["region"]);
    let (placement, output) = lake.open().await;
    committed(&output, &commit("main", 1, prepare(&placement, rows(0..9)))).await;
    let handle = lake.handle().await;
    let (_, before) = live(&handle).await;
    let old: Vec<_> = before.files().cloned().collect();
    replace(&handle, &old, &placement, rows(0..9)).await;
    // Deletes of the first commit's time apply to them still, and the pipeline goes on.
    committed(
        &output,
        &commit("main", 2, prepare(&placement, rows(9..10))),
    )
    .await;
    let (known, after) = live(&handle).await;
    let numbers: Vec<i64> = in_order(&after).iter().map(|f| f.sequence).collect();
    assert_eq!(numbers, [1, 1, 1, 3]);
    let manifests = handle.manifests(&known).await.expect("manifests");
    let lowest = manifests.iter().map(|m| m.min_sequence_number).min();
    assert_eq!(lowest, Some(1));
    for manifest in manifests.iter() {
        let read = manifest.load_manifest(handle.access.io()).await;
        let data =
            |e: &Arc<iceberg::spec::ManifestEntry>| e.content_type() == DataContentType::Data;
        assert!(read.expect("a manifest").entries().iter().all(data));
    }
    assert_eq!(lake.ids().await, (0..10).collect::<Vec<_>>());
    assert_eq!(lake.read_by_others().0, (0..10).collect::<Vec<_>>());
}
