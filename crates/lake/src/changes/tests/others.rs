//! Tables that somebody else has made, or changes meanwhile.

use std::{collections::BTreeMap, sync::Arc};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use calve_engine::seams::Commit;
use calve_model::Epoch;

use super::{
    EAGER,
    world::{Change, World, batch, schema},
};
use crate::{
    iceberg::{self, IcebergConfig, tests::commit},
    write::WriteOptions,
};

/// Rows of these keys, in columns that any table here has.
pub(super) fn others_rows(ids: &[i64]) -> RecordBatch {
    let rows: Vec<Change> = ids
        .iter()
        .map(|id| Change {
            op: "c",
            id: *id,
            seq: 0,
            region: "eu",
            n: *id,
        })
        .collect();
    let names = ["id", "region", "n"].iter();
    let places: Vec<usize> = names
        .map(|name| schema().index_of(name).expect("a column"))
        .collect();
    batch(&rows).project(&places).expect("columns")
}

/// Somebody else appends rows, and brings the columns that the table needs for them.
pub(super) async fn others_append(world: &World, epoch: u64, rows: RecordBatch) {
    let mut plain = IcebergConfig {
        changes: None,
        ..world.config.clone()
    };
    plain.evolution.add = true;
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().build().expect("a pool"));
    let (options, others) = (WriteOptions::default(), ("others", "main"));
    let opened = iceberg::open(&plain, &options, rows.schema(), others, pool, None);
    let (mut writer, output) = opened.await.expect("it opens");
    let split = writer.splitter().split(rows).expect("it splits");
    writer.append(split).await.expect("it takes them");
    let prepared = writer.seal(Epoch(epoch)).finish().await;
    let mut theirs = commit("main", epoch, prepared.expect("it prepares"));
    theirs.pipeline = "others".into();
    output.commit(&theirs).await.expect("committed");
}

/// A table that was there before: rows without an order, written by somebody else.
async fn taken_over(ids: &[i64]) -> (World, Commit) {
    let config = serde_json::json!({"key": ["id"], "op_column": "op", "order_by": ["n"]});
    let mut world = World::new(config, 2, 1 << 20);
    others_append(&world, 1, others_rows(ids)).await;
    // The changes have no column beyond those of the table.
    world.columns = Some(vec![0, 1, 3, 4]);
    let changes = vec![
        Change {
            op: "u",
            id: 1,
            seq: 0,
            region: "us",
            n: 50,
        },
        Change {
            op: "d",
            id: 2,
            seq: 0,
            region: "eu",
            n: 60,
        },
        Change {
            op: "c",
            id: 9,
            seq: 0,
            region: "eu",
            n: 70,
        },
    ];
    let commit = world.prepare(&[changes]).await;
    (world, commit)
}

#[tokio::test]
async fn a_table_that_is_there_is_taken_over() {
    let (mut world, commit) = taken_over(&[1, 2, 3]).await;
    world.commit(&commit).await;
    let found: Vec<(i64, i64)> = world
        .rows()
        .await
        .iter()
        .map(|(id, (_, n))| (*id, *n))
        .collect();
    assert_eq!(found, [(1, 50), (3, 3), (9, 70)]);
}

#[tokio::test]
async fn a_table_with_two_rows_of_a_key_is_refused() {
    let (mut world, commit) = taken_over(&[1, 2, 3, 3]).await;
    let (_, output) = world.open().await;
    let error = output
        .commit(&commit)
        .await
        .expect_err("two rows of one key");
    assert!(error.to_string().contains("have the same key"), "{error}");
}

#[tokio::test]
async fn an_order_is_read_where_it_is_though_others_take_its_field_id() {
    let config = serde_json::json!({"key": ["id"], "op_column": "op", "order_by": ["_seq"]});
    let mut world = World::new(config, 2, 1 << 20);
    world.config.evolution.add = true;
    world.upkeep.tiers = Some(EAGER);
    others_append(&world, 1, others_rows(&[1, 2])).await;
    let change = |id: i64, seq: i64| {
        let (op, region) = ("u", "eu");
        let n = seq;
        vec![Change {
            op,
            id,
            seq,
            region,
            n,
        }]
    };
    // The column of the order is to be the table's fourth: somebody adds another one before it comes.
    let mut first = change(1, 10);
    first.extend(change(2, 20).into_iter().map(|of| Change { op: "d", ..of }));
    let first = world.prepare(&[first]).await;
    let rows = others_rows(&[3, 4]);
    let high: ArrayRef = Arc::new(Int64Array::from(vec![1000, 1000]));
    let columns = ["id", "region", "n"].iter().zip(rows.columns().to_vec());
    let columns = columns.chain([(&"high", high)]);
    let rows = RecordBatch::try_from_iter(columns).expect("a batch");
    others_append(&world, 2, rows).await;
    world.commit(&first).await;
    // Their rows have no order, whatever they have under that id.
    let commit = world.prepare(&[change(3, 5)]).await;
    world.commit(&commit).await;
    // Where files are merged the orders are read from them.
    assert!(world.tend().await);
    let late = world
        .prepare(&[change(1, 8), change(2, 19), change(3, 4), change(4, 2)])
        .await;
    world.commit(&late).await;
    let found = |rows: BTreeMap<i64, (String, i64)>| -> Vec<(i64, i64)> {
        rows.iter().map(|(id, (_, n))| (*id, *n)).collect()
    };
    let wanted = [(1, 10), (3, 5), (4, 2)];
    assert_eq!(found(world.rows().await), wanted);
    // A process that starts now reads the same, also of the deleted key: its run was written under the id
    // that others took.
    world.open = None;
    std::fs::remove_dir_all(world.index()).expect("an index");
    let late = world
        .prepare(&[change(1, 9), change(2, 18), change(3, 3), change(4, 1)])
        .await;
    world.commit(&late).await;
    assert_eq!(found(world.rows().await), wanted);
}
