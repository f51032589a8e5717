//! Publication in an object store that was interrupted anywhere, and what `clean` may remove.

use std::{sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use calve_engine::{
    error::ErrorKind,
    seams::{Prepared, TableWriter},
};

use super::*;
use crate::{
    parquet::{
        ParquetConfig, ParquetTable,
        testing::{self, commit, published},
    },
    write::WriteOptions,
};

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("region", DataType::Utf8, true),
        Field::new("n", DataType::Int64, false),
    ]))
}

fn config(layout: &str) -> ParquetConfig {
    ParquetConfig {
        path: String::new(),
        layout: Some(layout.to_owned()),
        time_column: None,
        type_column: None,
        keep_columns: false,
    }
}

type Table = (Box<dyn TableWriter>, Arc<dyn Output>);

async fn try_open(folder: &ObjectFolder, layout: &str) -> Result<Table> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
    let (options, pool) = (WriteOptions::default(), Arc::new(pool.expect("a pool")));
    let (folder, name) = (folder.clone(), ("orders", "main"));
    ParquetTable::open_remote(&config(layout), folder, &options, schema(), name, pool).await
}

async fn open(folder: &ObjectFolder) -> Table {
    let layout = "region={region}/{seq}.parquet";
    try_open(folder, layout).await.expect("open")
}

async fn prepare(table: &mut Table, epoch: u64) -> Prepared {
    let regions: StringArray = [Some("eu"), Some("../.."), None].into_iter().collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(regions), Arc::new(Int64Array::from(vec![1, 2, 3]))];
    let batch = RecordBatch::try_new(schema(), columns).expect("a batch");
    testing::prepare(&mut table.0, batch, epoch).await
}

async fn data(folder: &ObjectFolder) -> Vec<String> {
    let all = folder.list("", None).await.expect("list");
    let names = all.into_iter().map(|one| one.name);
    names.filter(|name| !name.starts_with("_calve/")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_is_published_once_whatever_happened_before() {
    let folder = ObjectFolder::in_memory().sub("t").expect("a place");
    let mut table = open(&folder).await;
    let prepared = prepare(&mut table, 2).await;
    assert!(data(&folder).await.is_empty(), "nothing is visible yet");
    // An earlier try completed one upload, and died.
    let first = &published(&prepared)[0];
    let upload = first.upload.as_ref().expect("an upload");
    let done = Uploads::complete(&folder, &first.path, upload).await;
    assert_eq!(done.expect("complete"), Completed::Yes);
    let one = commit(2, 0, &prepared);
    let outcome = table.1.commit(&one).await.expect("commit");
    assert!(matches!(outcome, Outcome::Committed { .. }));
    let names = data(&folder).await;
    assert_eq!(names.len(), 3, "{names:?}");
    let folders = names.iter().map(|name| name.split('/').count());
    assert!(folders.max() == Some(2), "{names:?}");
    for file in published(&prepared) {
        let there = folder.head(&file.path).await.expect("look").expect("there");
        assert_eq!(there.size, file.bytes);
    }
    let again = table.1.commit(&one).await.expect("again");
    assert_eq!(again, Outcome::AlreadyCommitted);
    let state = table.1.state("orders", "main").await.expect("state");
    assert_eq!(state.held, Some((Epoch(2), "digest2".to_owned())));

    // Another process sees the same; one with another record of that epoch is fenced.
    let other = open(&folder).await;
    let mut foreign = commit(2, 0, &prepared);
    foreign.digest = "another".to_owned();
    assert_eq!(
        other.1.commit(&foreign).await.expect("look"),
        Outcome::Fenced
    );
    let next = prepare(&mut table, 3).await;
    let wrong = other.1.commit(&commit(3, 1, &next)).await;
    assert_eq!(
        wrong.expect_err("not the epoch before").kind(),
        ErrorKind::Corrupt
    );
    let right = other.1.commit(&commit(3, 2, &next)).await.expect("commit");
    assert!(matches!(right, Outcome::Committed { .. }));
    let late = table.1.commit(&commit(3, 2, &next)).await.expect("late");
    assert_eq!(late, Outcome::AlreadyCommitted);
    assert_eq!(data(&folder).await.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_or_changed_is_refused() {
    let folder = ObjectFolder::in_memory().sub("t").expect("a place");
    let mut table = open(&folder).await;
    let prepared = prepare(&mut table, 2).await;
    let file = published(&prepared).remove(0);
    let upload = file.upload.expect("an upload");
    let multipart = folder.multipart().expect("uploads");
    let path = folder.path(&file.path).expect("a path");
    multipart
        .abort_multipart(&path, &upload.id)
        .await
        .expect("abort");
    let error = table.1.commit(&commit(2, 0, &prepared)).await;
    let error = error.expect_err("the upload is gone");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error
            .hint_text()
            .is_some_and(|h| h.contains("checkpoint reset")),
        "{error}"
    );
    folder
        .put(&file.path, "of another size")
        .await
        .expect("put");
    let error = table.1.commit(&commit(2, 0, &prepared)).await;
    let error = error.expect_err("not what was prepared");
    assert!(error.message().contains("was changed"), "{error}");
    let state = table.1.state("orders", "main").await.expect("state");
    assert_eq!(state.held, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn clean_removes_only_what_is_ours_and_nothing_refers_to() {
    let folder = ObjectFolder::in_memory().sub("t").expect("a place");
    let mut table = open(&folder).await;
    for epoch in [2, 3] {
        let prepared = prepare(&mut table, epoch).await;
        let commit = commit(epoch, if epoch == 2 { 0 } else { 2 }, &prepared);
        table.1.commit(&commit).await.expect("commit");
    }
    let before = data(&folder).await;
    // A reset keeps the files of the entries that it moves.
    let to = folder.set_aside(
        "_calve/commits/orders/main",
        "_calve/before-reset/orders",
        |n| n.contains("02"),
    );
    assert_eq!(
        to.await.expect("move").as_deref(),
        Some("_calve/before-reset/orders-1")
    );
    let ours = format!(
        "region=eu/orders-main-{}-00007.parquet",
        "0123456789abcdef".repeat(2)
    );
    let live = ours.replace("00007", "00008");
    for name in [
        ours.as_str(),
        live.as_str(),
        "region=eu/foreign-00001.parquet",
        "notes.txt",
    ] {
        folder.put(name, "x").await.expect("put");
    }
    let known = RemoteLive {
        paths: HashSet::from([live.clone()]),
        ..RemoteLive::default()
    };
    let output = ObjectOutput::of(folder.clone());
    let hour = Duration::from_hours(1);
    let young = output.clean(hour, &known, false).await.expect("clean");
    assert_eq!(young.files, Vec::<String>::new());
    let now = Duration::ZERO;
    let shown = output.clean(now, &known, true).await.expect("a dry run");
    assert_eq!(shown.files, [ours.as_str()]);
    assert!(
        folder.head(&ours).await.expect("look").is_some(),
        "only shown"
    );
    output.clean(now, &known, false).await.expect("clean");
    let mut after = before;
    after.extend([
        live,
        "region=eu/foreign-00001.parquet".into(),
        "notes.txt".into(),
    ]);
    after.sort();
    assert_eq!(data(&folder).await, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_with_the_epoch_is_refused() {
    let folder = ObjectFolder::in_memory();
    let error = try_open(&folder, "{epoch}/{seq}.parquet").await.err();
    assert_eq!(error.expect("refused").kind(), ErrorKind::Config);
}
