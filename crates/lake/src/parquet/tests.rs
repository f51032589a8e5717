//! Layouts, hostile values, and publication that was interrupted anywhere.

use std::{collections::HashSet, fs::File, path::Path, sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit},
};
use calve_engine::{
    error::ErrorKind,
    opaque::Opaque,
    seams::{Outcome, Output, TableWriter},
};
use calve_model::Epoch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{
    testing::{commit, prepare, published},
    *,
};

const HOUR: i64 = 3_600_000_000;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, None), true),
        Field::new("region", DataType::Utf8, true),
        Field::new("n", DataType::Int64, false),
    ]))
}

fn rows(of: &[(Option<i64>, Option<&str>)]) -> RecordBatch {
    let ts: TimestampMicrosecondArray = of.iter().map(|(ts, _)| *ts).collect();
    let region: StringArray = of.iter().map(|(_, region)| *region).collect();
    let n: Int64Array = (0..of.len() as i64).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(ts), Arc::new(region), Arc::new(n)];
    RecordBatch::try_new(schema(), columns).expect("a batch")
}

fn config(path: &Path, layout: &str) -> ParquetConfig {
    ParquetConfig {
        path: path.display().to_string(),
        layout: Some(layout.to_owned()),
        time_column: Some("ts".into()),
        type_column: Some("region".into()),
        keep_columns: false,
    }
}

type Table = (Box<dyn TableWriter>, Arc<dyn Output>);

fn open(path: &Path, layout: &str) -> Table {
    let pool = Arc::new(
        rayon::ThreadPoolBuilder::new()
            .num_threads(2)
            .build()
            .expect("a pool"),
    );
    let config = config(path, layout);
    ParquetTable::open(
        &config,
        &WriteOptions::default(),
        schema(),
        "orders",
        "main",
        pool,
    )
    .expect("open")
}

fn numbers(path: &Path) -> (Vec<i64>, Vec<String>) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).expect("a file"));
    let reader = reader.expect("parquet").build().expect("a reader");
    let mut numbers = Vec::new();
    let mut names = Vec::new();
    for batch in reader {
        let batch = batch.expect("a batch");
        names = batch
            .schema()
            .fields()
            .iter()
            .map(|f| f.name().clone())
            .collect();
        numbers.extend(batch["n"].as_primitive::<Int64Type>().values());
    }
    (numbers, names)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_where_the_template_says() {
    let dir = tempfile::tempdir().expect("a folder");
    let layout = "region={region}/events-{ts:%Y-%m-%d-%H}-{seq}.parquet";
    let mut table = open(dir.path(), layout);
    let batch = rows(&[
        (Some(0), Some("eu")),
        (Some(HOUR), Some("eu")),
        (Some(1), Some("eu")),
        (None, Some("us")),
        (Some(-1), None),
        (Some(5), Some("../..")),
    ]);
    let prepared = prepare(&mut table.0, batch, 1).await;
    let outcome = table
        .1
        .commit(&commit(1, 0, &prepared))
        .await
        .expect("commit");
    assert!(matches!(outcome, Outcome::Committed { .. }));
    let mut found: Vec<(String, Vec<i64>)> = published(&prepared)
        .iter()
        .map(|file| {
            let (numbers, names) = numbers(&dir.path().join(&file.path));
            assert_eq!(names, ["ts", "n"], "the hive column is in the path only");
            let end = file
                .path
                .find("-00001-000-")
                .expect("epoch and number in the name");
            (file.path[..end].to_owned(), numbers)
        })
        .collect();
    found.sort();
    let null = format::NULL;
    let at = |path: &str, numbers: &[i64]| (path.to_owned(), numbers.to_vec());
    assert_eq!(
        found,
        [
            at("region=%2E%2E%2F%2E%2E/events-1970-01-01-00", &[5]),
            at(&format!("region={null}/events-1969-12-31-23"), &[4]),
            at("region=eu/events-1970-01-01-00", &[0, 2]),
            at("region=eu/events-1970-01-01-01", &[1]),
            at(&format!("region=us/events-{null}"), &[3]),
        ]
        .map(|(path, numbers)| (path.replace("%2E%2E%2F%2E%2E", "..%2F.."), numbers))
    );
    assert_eq!(
        std::fs::read_dir(dir.path().join(STAGED))
            .expect("staged")
            .count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn presets_make_hive_folders() {
    let paths = |layout: &'static str| async move {
        let dir = tempfile::tempdir().expect("a folder");
        let mut table = open(dir.path(), layout);
        let day = 24 * HOUR;
        let batch = rows(&[
            (Some(20_000 * day + 5 * HOUR), Some("a")),
            (Some(0), Some("b")),
        ]);
        let prepared = prepare(&mut table.0, batch, 3).await;
        let folder = |path: &str| path.rsplit_once('/').map_or("", |p| p.0).to_owned();
        published(&prepared)
            .iter()
            .map(|f| folder(&f.path))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        paths("date").await,
        ["year=1970/month=01/day=01", "year=2024/month=10/day=04"]
    );
    assert_eq!(
        paths("date_hour").await,
        [
            "year=1970/month=01/day=01/hour=00",
            "year=2024/month=10/day=04/hour=05"
        ]
    );
    assert_eq!(
        paths("date_hour_type").await,
        [
            "year=1970/month=01/day=01/hour=00/event_type=b",
            "year=2024/month=10/day=04/hour=05/event_type=a"
        ]
    );
    assert_eq!(paths("{ts:%H}/x.parquet").await, ["00", "05"]);
    assert_eq!(paths("").await, [""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn table_partitions_of_one_path_get_different_names() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut table = open(dir.path(), "{ts:%H}/x.parquet");
    let batch = rows(&[
        (Some(0), None),
        (Some(24 * HOUR), None),
        (Some(48 * HOUR), None),
    ]);
    let prepared = prepare(&mut table.0, batch, 1).await;
    let names: HashSet<String> = published(&prepared).into_iter().map(|f| f.path).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_values_stay_in_the_folder() {
    let dir = tempfile::tempdir().expect("a folder");
    let long = "/".repeat(300);
    let hostile = [
        "/",
        "..",
        ".",
        "../../../etc/passwd",
        "a/b",
        "%2F",
        "\n",
        "",
        "_calve",
        "x=y",
        &long,
    ];
    for layout in ["{region}/{region}.parquet", "region={region}", "{region}"] {
        let root = dir.path().join(format!("table-{}", layout.len()));
        let mut table = open(&root, layout);
        let batch: Vec<_> = hostile
            .iter()
            .map(|value| (Some(0), Some(*value)))
            .collect();
        let prepared = prepare(&mut table.0, rows(&batch), 1).await;
        table
            .1
            .commit(&commit(1, 0, &prepared))
            .await
            .expect("commit");
        let mut all = Vec::new();
        for file in published(&prepared) {
            assert!(
                !file.path.starts_with('_') || file.path.starts_with("__HIVE"),
                "{}",
                file.path
            );
            let path = root.join(&file.path).canonicalize().expect("a path");
            assert!(
                path.starts_with(root.canonicalize().expect("root")),
                "{}",
                path.display()
            );
            all.extend(numbers(&path).0);
        }
        all.sort_unstable();
        assert_eq!(all, (0..hostile.len() as i64).collect::<Vec<_>>());
    }
    let names: HashSet<String> = std::fs::read_dir(dir.path())
        .expect("the folder")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    assert!(
        names.iter().all(|name| name.starts_with("table-")),
        "{names:?}"
    );
}

/// Every state that a crash in the middle of a commit can leave behind.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_commit_is_completed() {
    let batch = rows(&[
        (Some(0), Some("a")),
        (Some(0), Some("b")),
        (Some(0), Some("c")),
    ]);
    for published_before in 0..=3usize {
        for unstaged in 0..=published_before {
            let dir = tempfile::tempdir().expect("a folder");
            let mut table = open(dir.path(), "region={region}");
            let prepared = prepare(&mut table.0, batch.clone(), 1).await;
            let files = published(&prepared);
            for (at, file) in files.iter().enumerate().take(published_before) {
                let (from, to) = (dir.path().join(&file.staged), dir.path().join(&file.path));
                std::fs::create_dir_all(to.parent().expect("a folder")).expect("folders");
                std::fs::hard_link(&from, &to).expect("link");
                if at < unstaged {
                    std::fs::remove_file(from).expect("remove");
                }
            }
            let one = commit(1, 0, &prepared);
            let outcome = table.1.commit(&one).await.expect("commit");
            assert!(matches!(outcome, Outcome::Committed { .. }));
            assert_eq!(
                table.1.commit(&one).await.expect("again"),
                Outcome::AlreadyCommitted
            );
            let count: usize = files
                .iter()
                .map(|f| numbers(&dir.path().join(&f.path)).0.len())
                .sum();
            assert_eq!(count, 3);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn epochs_come_in_order_and_only_from_their_owner() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut table = open(dir.path(), "region={region}");
    let batch = rows(&[(Some(0), Some("a"))]);
    let one = prepare(&mut table.0, batch.clone(), 1).await;
    let three = prepare(&mut table.0, batch.clone(), 3).await;
    let state = |table: &Table| {
        let output = table.1.clone();
        async move { output.state("orders", "main").await.expect("state") }
    };
    let before = state(&table).await;
    assert!(before.held.is_none() && before.identity.is_some());
    let early = table
        .1
        .commit(&commit(3, 1, &three))
        .await
        .expect_err("1 is missing");
    assert_eq!(early.kind(), ErrorKind::Corrupt);
    table.1.commit(&commit(1, 0, &one)).await.expect("commit");
    let stale = table
        .1
        .commit(&commit(3, 0, &three))
        .await
        .expect_err("1 is held");
    assert_eq!(stale.kind(), ErrorKind::Corrupt);
    table.1.commit(&commit(3, 1, &three)).await.expect("commit");
    assert_eq!(
        table
            .1
            .commit(&commit(1, 0, &one))
            .await
            .expect("an old epoch"),
        Outcome::AlreadyCommitted
    );
    for (epoch, previous, prepared) in [(1, 0, &one), (3, 1, &three)] {
        let mut other = commit(epoch, previous, prepared);
        other.digest = "other".into();
        assert_eq!(
            table.1.commit(&other).await.expect("another owner"),
            Outcome::Fenced
        );
    }
    let after = state(&table).await;
    assert_eq!(after.held, Some((Epoch(3), "digest3".into())));
    assert_eq!(after.identity, before.identity);
    assert_eq!(
        state(&open(dir.path(), "")).await,
        after,
        "the same after a restart"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_gone_or_taken_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut table = open(dir.path(), "region={region}");
    let batch = rows(&[(Some(0), Some("a"))]);
    let prepared = prepare(&mut table.0, batch, 1).await;
    let file = &published(&prepared)[0];
    let (staged, path) = (dir.path().join(&file.staged), dir.path().join(&file.path));
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
    std::fs::write(&path, b"somebody else's").expect("a file");
    let one = commit(1, 0, &prepared);
    let taken = table.1.commit(&one).await.expect_err("the name is taken");
    assert_eq!(taken.kind(), ErrorKind::Corrupt);
    assert_eq!(
        std::fs::read(&path).expect("a file"),
        b"somebody else's",
        "never replaced"
    );
    std::fs::remove_file(&path).expect("remove");
    std::fs::remove_file(&staged).expect("remove");
    let gone = table.1.commit(&one).await.expect_err("both are gone");
    assert_eq!(gone.kind(), ErrorKind::Corrupt);
    assert!(
        table
            .1
            .state("orders", "main")
            .await
            .expect("state")
            .held
            .is_none()
    );
    let mut outside = commit(1, 0, &prepared);
    let mut files: serde_json::Value = outside.prepared.content.parse().expect("files");
    files[0]["path"] = "../x.parquet".into();
    outside.prepared.content = Opaque::of(&files).expect("plain data");
    assert_eq!(
        table.1.commit(&outside).await.expect_err("outside").kind(),
        ErrorKind::Corrupt
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clean_removes_what_nothing_refers_to() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut table = open(dir.path(), "region={region}");
    let batch = rows(&[(Some(0), Some("a")), (Some(0), Some("b"))]);
    let prepared = prepare(&mut table.0, batch, 1).await;
    let files = published(&prepared);
    let live = HashSet::from([files[0].staged.clone()]);
    // As they stay of a process that dies while it writes the commit of an epoch; and the commit itself.
    let commits = dir.path().join("_calve/commits/orders/main");
    std::fs::create_dir_all(&commits).expect("a folder");
    let half = "_calve/commits/orders/main/.00000000000000000002.json.17-4.tmp";
    std::fs::write(dir.path().join(half), "{").expect("half a commit");
    std::fs::write(commits.join("00000000000000000001.json"), "{}").expect("a commit");
    let path = dir.path().display().to_string();
    let young = clean(&path, Duration::from_hours(1), &live, false)
        .await
        .expect("clean");
    assert_eq!(young, Cleaned::default());
    for dry_run in [true, false] {
        let cleaned = clean(&path, Duration::ZERO, &live, dry_run)
            .await
            .expect("clean");
        assert_eq!(cleaned.files, [half, &files[1].staged]);
        for gone in &cleaned.files {
            assert_eq!(dir.path().join(gone).exists(), dry_run, "{gone}");
        }
    }
    for stays in [
        files[0].staged.as_str(),
        "_calve/commits/orders/main/00000000000000000001.json",
        "_calve/id",
    ] {
        assert!(dir.path().join(stays).exists(), "{stays}");
    }
}

#[test]
fn a_layout_that_does_not_fit_is_a_config_error() {
    let dir = tempfile::tempdir().expect("a folder");
    for bad in ["{nope}", "{n:%Y}", "{region:%Y}", "{ts:%Q}"] {
        let error = ParquetLayout::new(&config(dir.path(), bad), schema(), "main").expect_err(bad);
        assert_eq!(error.kind(), ErrorKind::Config, "{bad}");
    }
    let mut without = config(dir.path(), "date");
    without.time_column = None;
    let error = ParquetLayout::new(&without, schema(), "main").expect_err("no time column");
    assert!(
        error
            .hint_text()
            .is_some_and(|hint| hint.contains("time_column"))
    );
    let s3 = ParquetConfig {
        path: "s3://bucket/x".into(),
        ..config(dir.path(), "")
    };
    assert_eq!(
        local_root(&s3.path).expect_err("no object store").kind(),
        ErrorKind::Config
    );
}
