//! One writer: commits, repeats, fences, refusals.

use std::{collections::HashSet, sync::Arc, time::Duration};

use calve_engine::{
    error::ErrorKind,
    seams::{Outcome, Output},
};
use calve_model::Epoch;
use iceberg::spec::MAIN_BRANCH;

use super::{Lake, commit, committed, prepare, rows, schema};
use crate::{
    iceberg::{clean, content_files, forget, ls, open, publish::next_metadata, show},
    write::WriteOptions,
};

const NOW: Duration = Duration::ZERO;

#[tokio::test]
async fn commits_are_read_back() {
    let lake = Lake::new(&["hour(ts)", "region"]);
    let (placement, output) = lake.open().await;
    assert_eq!(
        output.state("orders", "main").await.expect("a state").held,
        None
    );
    for epoch in 1..=3 {
        let first = (epoch as i64 - 1) * 10;
        let prepared = prepare(&placement, rows(first..first + 10));
        committed(&output, &commit("main", epoch, prepared)).await;
    }
    assert_eq!(lake.ids().await, (0..30).collect::<Vec<_>>());
    let state = output.state("orders", "main").await.expect("a state");
    assert_eq!(state.held, Some((Epoch(3), "d3".to_owned())));
    assert_eq!(
        output.state("orders", "other").await.expect("a state").held,
        None
    );

    let (_, again) = lake.open().await;
    assert_eq!(again.state("orders", "main").await.expect("a state"), state);

    let details = show(&lake.config.catalog, "shop.orders")
        .await
        .expect("details");
    assert_eq!(details.info.partition_by, ["hour(ts)", "region"]);
    assert_eq!(details.info.totals.rows, Some(30));
    assert_eq!(details.snapshots.len(), 3);
    assert_eq!(details.shards[0].epoch, 3);
    assert_eq!(details.shards[0].watermark, Some(-5));
    assert_eq!(details.shards[0].trouble, None);
    assert_eq!(ls(&lake.config.catalog).await.expect("a list").len(), 1);
}

#[tokio::test]
async fn the_shared_writer_feeds_the_table() {
    let lake = Lake::new(&["day(ts)", "region"]);
    let pool = Arc::new(
        rayon::ThreadPoolBuilder::new()
            .num_threads(2)
            .build()
            .expect("a pool"),
    );
    let options = WriteOptions::default();
    let (mut writer, output) = open(
        &lake.config,
        &options,
        schema(),
        ("orders", "main"),
        pool,
        None,
    )
    .await
    .expect("a table");
    let mut splitter = writer.splitter();
    for epoch in 1..=2 {
        for part in 0..4 {
            let first = (epoch as i64 - 1) * 400 + part * 100;
            let split = splitter.split(rows(first..first + 100)).expect("a split");
            writer.append(split).await.expect("appended");
        }
        let prepared = writer.seal(Epoch(epoch)).finish().await.expect("prepared");
        assert_eq!(prepared.rows, 400);
        let files = content_files(&prepared.content).expect("files");
        assert_eq!(files.len() as u64, prepared.files);
        let outcome = output
            .commit(&commit("main", epoch, prepared))
            .await
            .expect("an outcome");
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
    }
    assert_eq!(lake.ids().await, (0..800).collect::<Vec<_>>());
}

/// Readers that do not know them are in use; elsewhere such text is written so.
#[tokio::test(flavor = "multi_thread")]
async fn text_is_written_without_deltas() {
    use arrow::{array::StringArray, record_batch::RecordBatch};
    use parquet::{
        basic::Encoding,
        file::reader::{FileReader, SerializedFileReader},
    };
    let lake = Lake::new(&[]);
    let id = |n: u64| format!("{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let text = StringArray::from_iter_values((0..9000).map(id));
    let rows = RecordBatch::try_from_iter([("region", Arc::new(text) as _)]).expect("rows");
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().build().expect("a pool"));
    let (options, names) = (WriteOptions::default(), ("orders", "main"));
    let opened = open(&lake.config, &options, rows.schema(), names, pool, None);
    let (mut writer, _) = opened.await.expect("a table");
    let split = writer.splitter().split(rows).expect("a split");
    writer.append(split).await.expect("appended");
    let prepared = writer.seal(Epoch(1)).finish().await.expect("prepared");
    let files = content_files(&prepared.content).expect("files");
    let path = files[0].strip_prefix("file://").expect("a local file");
    let file = std::fs::File::open(path).expect("the file");
    let reader = SerializedFileReader::new(file).expect("parquet");
    let column = reader.metadata().row_group(0).column(0);
    let found: Vec<Encoding> = column.encodings().collect();
    assert!(found.contains(&Encoding::PLAIN), "{found:?}");
    let deltas = [
        Encoding::DELTA_BYTE_ARRAY,
        Encoding::DELTA_LENGTH_BYTE_ARRAY,
    ];
    assert!(!found.iter().any(|one| deltas.contains(one)), "{found:?}");
}

#[tokio::test]
async fn bounds_do_not_prune_what_is_there() {
    use futures::TryStreamExt;
    use iceberg::{expr::Reference, spec::Datum};
    let lake = Lake::new(&["bucket(3, id)", "truncate(4, region)"]);
    let (placement, output) = lake.open().await;
    committed(
        &output,
        &commit("main", 1, prepare(&placement, rows(-20..40))),
    )
    .await;
    let table = crate::iceberg::load_table(&lake.config.catalog, "shop.orders")
        .await
        .expect("a table");
    // Ids -20..40: the region follows the remainder of the id.
    let with_remainder = |r: i64| (-20i64..40).filter(|id| (id % 3).abs() == r).count();
    for (predicate, expected) in [
        (Reference::new("id").equal_to(Datum::long(-7)), 1),
        (Reference::new("id").greater_than(Datum::long(29)), 10),
        (
            Reference::new("region").equal_to(Datum::string("us")),
            with_remainder(2),
        ),
        (Reference::new("region").is_null(), with_remainder(1)),
        (
            Reference::new("ts").less_than(Datum::timestamp_micros(0)),
            20,
        ),
    ] {
        let shown = predicate.to_string();
        let scan = table.scan().with_filter(predicate).build().expect("a scan");
        let batches: Vec<_> = scan
            .to_arrow()
            .await
            .expect("a stream")
            .try_collect()
            .await
            .expect("rows");
        let count: usize = batches
            .iter()
            .map(arrow::array::RecordBatch::num_rows)
            .sum();
        assert_eq!(count, expected, "{shown}");
    }
}

#[tokio::test]
async fn a_repeat_changes_nothing_and_another_chain_is_fenced() {
    let lake = Lake::new(&[]);
    let (placement, output) = lake.open().await;
    let one = commit("main", 1, prepare(&placement, rows(0..5)));
    let two = commit("main", 2, prepare(&placement, rows(5..9)));
    committed(&output, &one).await;
    committed(&output, &two).await;
    for held in [&one, &two] {
        assert_eq!(
            output.commit(held).await.expect("an outcome"),
            Outcome::AlreadyCommitted
        );
        let mut other = held.clone();
        other.digest = "another".to_owned();
        assert_eq!(
            output.commit(&other).await.expect("an outcome"),
            Outcome::Fenced
        );
    }
    let mut ahead = commit("main", 9, two.prepared.clone());
    ahead.previous = Epoch(1);
    assert_eq!(
        output.commit(&ahead).await.expect("an outcome"),
        Outcome::Fenced
    );
    assert_eq!(lake.ids().await, (0..9).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_does_not_follow_is_refused() {
    let lake = Lake::new(&[]);
    let (placement, output) = lake.open().await;
    let prepared = prepare(&placement, rows(0..5));
    let gap = commit("main", 2, prepared.clone());
    assert_eq!(
        output.commit(&gap).await.expect_err("a gap").kind(),
        ErrorKind::Corrupt
    );
    committed(&output, &commit("main", 1, prepared.clone())).await;
    let mut offsets = commit("main", 2, prepare(&placement, rows(5..6)));
    offsets.offsets_from = "elsewhere".to_owned();
    assert_eq!(
        output.commit(&offsets).await.expect_err("offsets").kind(),
        ErrorKind::Corrupt
    );
    let gone = commit("main", 2, prepare(&placement, rows(5..6)));
    for file in content_files(&gone.prepared.content).expect("files") {
        std::fs::remove_file(file.trim_start_matches("file://")).expect("removed");
    }
    assert_eq!(
        output.commit(&gone).await.expect_err("no file").kind(),
        ErrorKind::Corrupt
    );
    assert_eq!(lake.ids().await, (0..5).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_epoch_without_files_moves_the_property_only() {
    let lake = Lake::new(&[]);
    let (placement, output) = lake.open().await;
    committed(&output, &commit("main", 1, prepare(&placement, rows(0..5)))).await;
    committed(&output, &commit("main", 2, prepare(&placement, rows(0..0)))).await;
    let details = show(&lake.config.catalog, "shop.orders")
        .await
        .expect("details");
    assert_eq!((details.snapshots.len(), details.shards[0].epoch), (1, 2));
    committed(&output, &commit("main", 3, prepare(&placement, rows(5..6)))).await;
    assert_eq!(lake.ids().await, (0..6).collect::<Vec<_>>());
}

/// Puts the table's metadata through a change, as another engine would.
pub(crate) async fn change(
    lake: &Lake,
    change: impl FnOnce(iceberg::spec::TableMetadataBuilder) -> iceberg::spec::TableMetadataBuilder,
) {
    let catalog = lake.catalog().await;
    let catalog = catalog.sql();
    let location = catalog
        .locate(&lake.table())
        .await
        .expect("an answer")
        .expect("a table");
    let metadata = catalog.read(&location).await.expect("metadata");
    let (_, next) = next_metadata(&location, metadata.location());
    let changed = change(metadata.into_builder(Some(location.clone())))
        .build()
        .expect("metadata");
    let mut json = serde_json::to_value(&changed.metadata).expect("JSON");
    take_lost_parents_away(&mut json);
    std::fs::write(next.trim_start_matches("file://"), json.to_string()).expect("written");
    assert!(
        catalog
            .swap(&lake.table(), &location, &next)
            .await
            .expect("an answer")
    );
}

/// As `PyIceberg` does where a parent has expired; other engines leave its id.
fn take_lost_parents_away(metadata: &mut serde_json::Value) {
    let snapshots = metadata["snapshots"].as_array_mut().expect("a list");
    let ids: Vec<_> = snapshots.iter().map(|s| s["snapshot-id"].clone()).collect();
    for snapshot in snapshots {
        if !ids.contains(&snapshot["parent-snapshot-id"]) {
            let fields = snapshot.as_object_mut().expect("a snapshot");
            fields.remove("parent-snapshot-id");
        }
    }
}

pub(crate) async fn snapshot_ids(lake: &Lake) -> Vec<i64> {
    let details = show(&lake.config.catalog, "shop.orders")
        .await
        .expect("details");
    details.snapshots.iter().map(|s| s.id).collect()
}

#[tokio::test]
async fn a_rolled_back_table_is_refused_until_it_is_reset() {
    let lake = Lake::new(&["region"]);
    let (placement, output) = lake.open().await;
    for epoch in 1..=3 {
        committed(
            &output,
            &commit("main", epoch, prepare(&placement, rows(0..3))),
        )
        .await;
    }
    let oldest = *snapshot_ids(&lake).await.last().expect("a snapshot");
    let reference = iceberg::spec::SnapshotReference {
        snapshot_id: oldest,
        retention: iceberg::spec::SnapshotRetention::Branch {
            min_snapshots_to_keep: None,
            max_snapshot_age_ms: None,
            max_ref_age_ms: None,
        },
    };
    change(&lake, |b| {
        b.set_ref(MAIN_BRANCH, reference).expect("a snapshot")
    })
    .await;
    let error = output
        .state("orders", "main")
        .await
        .expect_err("rolled back");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error
            .hint_text()
            .is_some_and(|hint| hint.contains("calve checkpoint reset"))
    );
    let next = commit("main", 4, prepare(&placement, rows(0..3)));
    assert_eq!(
        output.commit(&next).await.expect_err("rolled back").kind(),
        ErrorKind::Corrupt
    );

    // The later snapshots expire: still refused, the history shows epoch 1.
    let later: Vec<i64> = {
        let catalog = lake.catalog().await;
        let catalog = catalog.sql();
        let location = catalog
            .locate(&lake.table())
            .await
            .expect("an answer")
            .expect("a table");
        let metadata = catalog.read(&location).await.expect("metadata");
        metadata
            .snapshots()
            .map(|s| s.snapshot_id())
            .filter(|id| *id != oldest)
            .collect()
    };
    change(&lake, |b| b.remove_snapshots(&later)).await;
    assert_eq!(
        output
            .state("orders", "main")
            .await
            .expect_err("rolled back")
            .kind(),
        ErrorKind::Corrupt
    );

    assert_eq!(
        forget(&lake.config.catalog, "shop.orders", "orders")
            .await
            .expect("forgotten"),
        1
    );
    assert_eq!(
        output.state("orders", "main").await.expect("a state").held,
        None
    );
    committed(&output, &commit("main", 1, prepare(&placement, rows(3..5)))).await;
    assert_eq!(lake.ids().await, (0..5).collect::<Vec<_>>());
}

#[tokio::test]
async fn expired_history_leaves_the_property_to_decide() {
    let lake = Lake::new(&[]);
    let (placement, output) = lake.open().await;
    for epoch in 1..=2 {
        committed(
            &output,
            &commit("main", epoch, prepare(&placement, rows(0..3))),
        )
        .await;
    }
    committed(
        &output,
        &commit("other", 1, prepare(&placement, rows(9..10))),
    )
    .await;
    let ids = snapshot_ids(&lake).await;
    change(&lake, |b| b.remove_snapshots(&ids[1..])).await;
    let state = output.state("orders", "main").await.expect("a state");
    assert_eq!(state.held, Some((Epoch(2), "d2".to_owned())));
    committed(&output, &commit("main", 3, prepare(&placement, rows(3..4)))).await;
    assert_eq!(lake.ids().await, [0, 0, 1, 1, 2, 2, 3, 9]);
}

#[tokio::test]
async fn cleaning_spares_what_is_referred_to_prepared_or_young() {
    let lake = Lake::new(&["region"]);
    let (placement, output) = lake.open().await;
    for epoch in 1..=2 {
        let first = epoch as i64 * 10;
        committed(
            &output,
            &commit("main", epoch, prepare(&placement, rows(first..first + 6))),
        )
        .await;
    }
    let catalog = &lake.config.catalog;
    let none = HashSet::new();
    let nothing = clean(catalog, "shop.orders", NOW, &none, false)
        .await
        .expect("cleaned");
    assert_eq!(
        nothing.names,
        Vec::<String>::new(),
        "everything is referred to"
    );

    let prepared = prepare(&placement, rows(50..53));
    let files = content_files(&prepared.content).expect("files");
    assert_eq!(files.len(), 3);
    let live: HashSet<String> = files[..2].iter().cloned().collect();
    let young = Duration::from_hours(1);
    let cleaned = clean(catalog, "shop.orders", young, &none, false)
        .await
        .expect("cleaned");
    assert_eq!(cleaned.files, 0, "all files are young");
    let dry = clean(catalog, "shop.orders", NOW, &live, true)
        .await
        .expect("cleaned");
    let real = clean(catalog, "shop.orders", NOW, &live, false)
        .await
        .expect("cleaned");
    assert_eq!(dry, real);
    assert_eq!(real.names, [files[2].trim_start_matches("file://")]);
    assert_eq!(lake.ids().await.len(), 12);

    let details = show(catalog, "shop.orders").await.expect("details");
    let location = details
        .info
        .location
        .trim_start_matches("file://")
        .to_owned();
    let manifests: Vec<_> = std::fs::read_dir(format!("{location}/metadata"))
        .expect("a folder")
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "avro"))
        .collect();
    std::fs::write(&manifests[0], b"not avro").expect("written");
    let error = clean(catalog, "shop.orders", NOW, &none, false)
        .await
        .expect_err("doubt");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(std::path::Path::new(files[0].trim_start_matches("file://")).exists());
}
