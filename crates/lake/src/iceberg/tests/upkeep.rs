//! Expiry and compaction of small tables.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use arrow::{array::AsArray, datatypes::Int64Type};
use iceberg::spec::{
    FormatVersion, NestedField, PrimitiveType, Schema, Transform, Type, UnboundPartitionSpec,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{
    Lake, commit, committed,
    edits::{delete_by_vector, delete_positions, live},
    prepare, rows,
};
use crate::iceberg::{
    CompactOptions, ExpireOptions, Finding, clean, compact, content_files,
    deletes::deleted_rows,
    expire,
    handle::{Known, TableHandle, commit_edit},
    live::LiveFiles,
    show, verify,
};

const ALL: ExpireOptions = ExpireOptions {
    older_than: Duration::ZERO,
    keep: 1,
    dry_run: false,
};

/// Files that nothing refers to.
async fn unreferenced(lake: &Lake) -> Vec<String> {
    let none = HashSet::new();
    let table = "shop.orders";
    let cleaned = clean(&lake.config.catalog, table, Duration::ZERO, &none, true).await;
    cleaned.expect("cleaned").names
}

#[tokio::test]
async fn expiry_keeps_what_shards_and_records_need() {
    let lake = Lake::new(&["region"]);
    let (placement, output) = lake.open().await;
    // A shard whose last commit lies far back.
    committed(&output, &commit("old", 1, prepare(&placement, rows(0..3)))).await;
    for epoch in 1..=8 {
        let first = 100 + epoch as i64 * 3;
        committed(
            &output,
            &commit("main", epoch, prepare(&placement, rows(first..first + 3))),
        )
        .await;
    }
    let handle = lake.handle().await;
    let (_, files) = live(&handle).await;
    // Compaction by hand: all files of the first commits go, in a snapshot of their own.
    let gone: Vec<_> = files.files().filter(|f| f.sequence <= 3).cloned().collect();
    let one = gone.iter().find(|f| f.sequence == 2).expect("a file");
    let held_back = one.path.to_string();
    super::edits::replace(&handle, &gone, &placement, rows(200..203)).await;
    committed(&output, &commit("main", 9, prepare(&placement, rows(6..9)))).await;

    let catalog = &lake.config.catalog;
    let recorded: HashSet<String> = HashSet::from([held_back.clone()]);
    let dry = ExpireOptions {
        dry_run: true,
        ..ALL
    };
    let young = ExpireOptions {
        older_than: Duration::from_hours(1),
        ..ALL
    };
    let nothing = expire(catalog, "shop.orders", &young, &recorded).await;
    assert_eq!(
        nothing.expect("expired"),
        crate::iceberg::Expired::default()
    );
    let would = expire(catalog, "shop.orders", &dry, &recorded).await;
    let would = would.expect("planned");
    let did = expire(catalog, "shop.orders", &ALL, &recorded).await;
    let did = did.expect("expired");
    assert_eq!(would, did);
    // Of eleven snapshots the newest stays, which is main's last, and the old shard's.
    assert_eq!(did.snapshots.len(), 9);
    let data = did.removed.names.iter().filter(|n| n.ends_with(".parquet"));
    assert_eq!(data.count(), 5, "of two commits, but for the recorded one");
    let path = held_back.trim_start_matches("file://");
    assert!(!did.removed.names.iter().any(|name| name == path));
    assert!(std::path::Path::new(path).exists(), "a record refers to it");

    let details = show(catalog, "shop.orders").await.expect("details");
    for shard in &details.shards {
        assert!(
            shard.offsets.is_some() && shard.trouble.is_none(),
            "{shard:?}"
        );
    }
    let again = expire(catalog, "shop.orders", &ALL, &recorded).await;
    assert_eq!(again.expect("expired").snapshots, Vec::<i64>::new());
    assert_eq!(lake.ids().await.len(), 9 * 3 - 9 + 3 + 3);
    committed(&output, &commit("old", 2, prepare(&placement, rows(3..6)))).await;
    committed(
        &output,
        &commit("main", 10, prepare(&placement, rows(9..12))),
    )
    .await;
    let prepared = prepare(&placement, rows(9..12));
    assert_eq!(content_files(&prepared.content).expect("files").len(), 3);
    let left = unreferenced(&lake).await;
    // The recorded file, and what was just prepared.
    assert_eq!(left.len(), 4, "{left:?}");
}

#[tokio::test]
async fn tags_and_branches_keep_their_snapshots() {
    let lake = Lake::new(&[]);
    let (placement, output) = lake.open().await;
    for epoch in 1..=5 {
        let first = epoch as i64;
        committed(
            &output,
            &commit("main", epoch, prepare(&placement, rows(first..first + 1))),
        )
        .await;
    }
    let catalog = lake.catalog().await;
    let catalog = catalog.sql();
    let location = catalog
        .locate(&lake.table())
        .await
        .expect("asked")
        .expect("there");
    let metadata = catalog.read(&location).await.expect("metadata");
    let mut oldest_first: Vec<_> = metadata.snapshots().cloned().collect();
    oldest_first.sort_by_key(|s| s.sequence_number());
    let mut json: serde_json::Value = serde_json::to_value(&metadata).expect("JSON");
    let id = |n: usize| oldest_first[n].snapshot_id();
    json["refs"]["kept"] = serde_json::json!({ "snapshot-id": id(0), "type": "tag" });
    json["refs"]["other"] = serde_json::json!({ "snapshot-id": id(2), "type": "branch" });
    let next = location.replace("/000", "/100");
    std::fs::write(next.trim_start_matches("file://"), json.to_string()).expect("written");
    assert!(
        catalog
            .swap(&lake.table(), &location, &next)
            .await
            .expect("swapped")
    );
    let one = ExpireOptions { keep: 1, ..ALL };
    let expired = expire(&lake.config.catalog, "shop.orders", &one, &HashSet::new()).await;
    assert_eq!(expired.expect("expired").snapshots, [id(3)]);
}

pub(super) fn pool() -> Arc<rayon::ThreadPool> {
    Arc::new(
        rayon::ThreadPoolBuilder::new()
            .num_threads(2)
            .build()
            .expect("a pool"),
    )
}

pub(super) const FEW: CompactOptions = CompactOptions {
    target_file_size: 64 << 20,
    min_files: 2,
    all_deletes: true,
    sort: false,
    memory_bytes: 64 << 20,
    dry_run: false,
};

pub(super) async fn findings(lake: &Lake) -> Vec<Finding> {
    verify(&lake.config.catalog, "shop.orders", &[])
        .await
        .expect("verified")
}

/// Ids with the rows' own ids and the sequence numbers of their last changes, as the files say them
/// or as their places do.
async fn lineage(handle: &TableHandle) -> BTreeMap<i64, (i64, i64)> {
    let (known, files) = live(handle).await;
    let mut found = BTreeMap::new();
    for file in files.files() {
        let path = file.path.trim_start_matches("file://");
        let opened = std::fs::File::open(path).expect("a file");
        let reader = ParquetRecordBatchReaderBuilder::try_new(opened).expect("Parquet");
        let deleted = deleted_rows(handle.access.io(), file, &files.deletes_of(file))
            .await
            .expect("rows");
        let mut row = 0;
        for batch in reader.build().expect("a reader") {
            let batch = batch.expect("rows");
            let longs = |name: &str| {
                let column = batch.column_by_name(name)?;
                Some(column.as_primitive::<Int64Type>().clone())
            };
            let ids = longs("id").expect("ids");
            for at in 0..batch.num_rows() {
                let by_place = file.first_row_id.expect("an id") + row;
                let id = longs("_row_id").map_or(by_place, |own| own.value(at));
                let last = longs("_last_updated_sequence_number");
                let last = last.map_or(file.sequence, |own| own.value(at));
                if !deleted.contains(row as u64) {
                    found.insert(ids.value(at), (id, last));
                }
                row += 1;
            }
        }
    }
    assert!(known.metadata.next_row_id() >= found.len() as u64);
    found
}

#[tokio::test]
async fn compaction_changes_no_row() {
    for version in [2, 3] {
        let mut lake = Lake::new(&["region"]);
        lake.config.format_version = version;
        let (placement, output) = lake.open().await;
        for epoch in 1..=6 {
            let first = epoch as i64 * 30;
            committed(
                &output,
                &commit("main", epoch, prepare(&placement, rows(first..first + 30))),
            )
            .await;
        }
        let handle = lake.handle().await;
        for (n, positions) in [(0, vec![0, 9]), (4, vec![3]), (0, vec![5])] {
            delete_rows(&handle, n, &positions).await;
        }
        let before = lake.read_by_others();
        assert_eq!(before.0.len(), 176);
        assert_eq!(before.0, before.1);
        let ids = if version == 3 {
            lineage(&handle).await
        } else {
            BTreeMap::new()
        };
        assert_eq!(findings(&lake).await, []);

        let catalog = &lake.config.catalog;
        let dry = CompactOptions {
            dry_run: true,
            ..FEW
        };
        let would = compact(catalog, "shop.orders", &dry, pool()).await;
        let would = would.expect("planned");
        assert_eq!((would.groups, would.files_before), (3, 18));
        let done = compact(catalog, "shop.orders", &FEW, pool()).await;
        let done = done.expect("compacted");
        assert_eq!(
            (done.groups, done.files_before, done.files_after),
            (3, 18, 3)
        );
        assert_eq!((done.rows_deleted, done.deletes_removed), (4, 2));
        // The second one is without the manifest that says which deletes are gone.
        assert_eq!(done.snapshots.len(), 2);
        assert_eq!(findings(&lake).await, []);
        assert_eq!(lake.read_by_others(), before, "format version {version}");
        let (known, after) = live(&handle).await;
        assert_eq!(after.files().len(), 3);
        assert_eq!(after.deletes().count(), 0);
        let said = known.metadata.current_snapshot().expect("one").summary();
        assert_eq!(said.additional_properties["total-records"], "176");
        if version == 3 {
            assert_eq!(lineage(&handle).await, ids, "rows keep their ids");
        }
        let again = compact(catalog, "shop.orders", &FEW, pool()).await;
        assert_eq!(
            again.expect("nothing to do"),
            crate::iceberg::Compacted::default()
        );
        // The pipeline goes on, and compaction takes what it adds.
        for epoch in 7..=8 {
            let first = epoch as i64 * 30;
            committed(
                &output,
                &commit("main", epoch, prepare(&placement, rows(first..first + 30))),
            )
            .await;
        }
        let done = compact(catalog, "shop.orders", &FEW, pool()).await;
        assert_eq!(done.expect("compacted").files_before, 9);
        if version == 3 {
            let now = lineage(&handle).await;
            assert!(ids.iter().all(|(id, row)| now[id] == *row));
        }
        assert_eq!(lake.read_by_others().0.len(), 236);
        assert_eq!(findings(&lake).await, []);
    }
}

/// Deletes rows of the n-th file of the first commits by the way of the table's format version.
pub(super) async fn delete_rows(handle: &TableHandle, n: usize, positions: &[u64]) {
    commit_edit(handle, async |known: &Known| {
        let mut now = LiveFiles::default();
        handle.live(known, &mut now).await?;
        let mut files: Vec<_> = now.files().cloned().collect();
        files.sort_by_key(|file| (file.sequence, file.path.clone()));
        let edit = match known.metadata.format_version() {
            FormatVersion::V3 => delete_by_vector(handle, known, &now, &files[n], positions).await,
            _ => delete_positions(handle, known, &now, &files[n], positions).await,
        };
        Ok(Some(edit))
    })
    .await
    .expect("committed");
}

#[tokio::test]
async fn compaction_goes_into_the_schema_and_spec_of_now() {
    let lake = Lake::new(&["region"]);
    let (placement, output) = lake.open().await;
    for epoch in 1..=3 {
        let first = epoch as i64 * 10;
        committed(
            &output,
            &commit("main", epoch, prepare(&placement, rows(first..first + 10))),
        )
        .await;
    }
    let catalog = lake.catalog().await;
    let catalog = catalog.sql();
    let location = catalog
        .locate(&lake.table())
        .await
        .expect("asked")
        .expect("there");
    let metadata = catalog.read(&location).await.expect("metadata");
    let next = location.replace("/000", "/100");
    let fields = metadata.current_schema().as_struct().fields().to_vec();
    let mut fields: Vec<NestedField> = fields.iter().map(|f| f.as_ref().clone()).collect();
    fields[1].name = "area".to_owned();
    fields.push(NestedField::optional(
        9,
        "note",
        Type::Primitive(PrimitiveType::String),
    ));
    let schema = Schema::builder()
        .with_fields(fields.into_iter().map(Arc::new))
        .build()
        .expect("a schema");
    let spec = UnboundPartitionSpec::builder()
        .add_partition_field(3, "id_bucket", Transform::Bucket(2))
        .expect("a spec")
        .build();
    let evolved = metadata
        .into_builder(Some(location.clone()))
        .add_current_schema(schema)
        .and_then(|builder| builder.add_default_partition_spec(spec))
        .and_then(iceberg::spec::TableMetadataBuilder::build)
        .expect("evolved");
    let json = serde_json::to_vec(&evolved.metadata).expect("JSON");
    std::fs::write(next.trim_start_matches("file://"), json).expect("written");
    assert!(
        catalog
            .swap(&lake.table(), &location, &next)
            .await
            .expect("swapped")
    );

    let before = lake.read_by_others();
    let done = compact(&lake.config.catalog, "shop.orders", &FEW, pool()).await;
    let done = done.expect("compacted");
    assert_eq!((done.groups, done.files_before), (3, 9));
    assert_eq!(lake.read_by_others(), before);
    assert_eq!(findings(&lake).await, []);
    let (known, after) = live(&lake.handle().await).await;
    let current = known.metadata.default_partition_spec_id();
    assert!(
        after
            .files()
            .all(|file| file.spec == current && current != 0)
    );
}

#[tokio::test]
async fn compaction_sorts_by_the_order_of_the_table() {
    let mut lake = Lake::new(&[]);
    lake.config.sort_by = vec!["region desc nulls first".into(), "id desc".into()];
    let (placement, output) = lake.open().await;
    for epoch in 1..=3 {
        let first = epoch as i64 * 10;
        committed(
            &output,
            &commit("main", epoch, prepare(&placement, rows(first..first + 10))),
        )
        .await;
    }
    let sorted = CompactOptions { sort: true, ..FEW };
    let done = compact(&lake.config.catalog, "shop.orders", &sorted, pool()).await;
    assert_eq!(done.expect("compacted").files_after, 1);
    let (_, after) = live(&lake.handle().await).await;
    let file = after.files().next().expect("a file").path.to_string();
    let file = std::fs::File::open(file.trim_start_matches("file://")).expect("a file");
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet");
    let batch = reader
        .build()
        .expect("a reader")
        .next()
        .expect("rows")
        .expect("rows");
    let ids = batch.column(2).as_primitive::<Int64Type>();
    let expected: Vec<i64> = [1, 2, 0]
        .into_iter()
        .flat_map(|region| (10..40).rev().filter(move |id| id % 3 == region))
        .collect();
    assert_eq!(ids.values().to_vec(), expected);
    let unsorted = Lake::new(&[]);
    unsorted.open().await;
    let refused = compact(&unsorted.config.catalog, "shop.orders", &sorted, pool()).await;
    // An empty table has nothing to sort.
    assert_eq!(refused.expect("nothing to do").groups, 0);
}
