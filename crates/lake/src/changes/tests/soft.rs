//! Deleted rows that stay, with a flag: their values are the last that the table had.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, AsArray},
    datatypes::{DataType, Int64Type},
};
use calve_engine::seams::Outcome;

use super::{
    EAGER, Random, changes,
    conflicts::OTHERS_ARE_FASTER,
    others::{others_append, others_rows},
    world::{Change, World},
};
use crate::iceberg::{
    self,
    tests::edits::{delete_positions, live},
};

/// Region, number and flag of each key.
type Rows = BTreeMap<i64, (String, i64, bool)>;

/// What the table should hold.
#[derive(Default)]
struct Flagged {
    rows: Rows,
    orders: BTreeMap<i64, i64>,
    floor: i64,
    ordered: bool,
}

impl Flagged {
    fn apply(&mut self, change: &Change) {
        let order = if self.ordered { change.seq } else { 0 };
        if change.op == "t" {
            for (id, row) in &mut self.rows {
                row.2 |= self.orders[id] <= order;
            }
            self.floor = self.floor.max(order);
            return;
        }
        let held = self.orders.get(&change.id);
        if order < self.floor || held.is_some_and(|held| *held > order) {
            return;
        }
        self.orders.insert(change.id, order);
        if change.op != "d" {
            let row = (change.region.to_owned(), change.n, false);
            self.rows.insert(change.id, row);
        } else if let Some(row) = self.rows.get_mut(&change.id) {
            row.2 = true;
        }
    }
}

async fn rows(world: &World) -> Rows {
    let mut rows = BTreeMap::new();
    for batch in world.scan().await {
        let column = |name: &str| batch.column_by_name(name).expect("a column").clone();
        let number = |name: &str| column(name).as_primitive::<Int64Type>().clone();
        let (ids, n, flags) = (number("id"), number("n"), column("is_deleted"));
        let flags = flags.as_boolean();
        let regions = arrow::compute::cast(&column("region"), &DataType::Utf8).expect("text");
        for row in 0..batch.num_rows() {
            assert!(n.is_valid(row) && flags.is_valid(row));
            let region = regions.as_string::<i32>().value(row).to_owned();
            let value = (region, n.value(row), flags.value(row));
            let twice = rows.insert(ids.value(row), value);
            assert_eq!(twice, None, "key {} is there twice", ids.value(row));
        }
    }
    rows
}

fn config(ordered: bool, deletes: &str) -> serde_json::Value {
    let order: &[&str] = if ordered { &["_seq"] } else { &[] };
    serde_json::json!({
        "key": ["id"], "op_column": "op", "order_by": order, "mode": "soft_delete",
        "deletes": deletes, "deleted_column": "is_deleted",
    })
}

/// Random changes; between epochs something happens to the table, the index or the process.
async fn run(seed: u64, ordered: bool, deletes: &str) {
    let mut random = Random(seed);
    let version = if deletes == "vector" { 3 } else { 2 };
    let chunk_bytes = [2_000, 20_000, 10_000_000][random.below(3) as usize];
    let mut world = World::new(config(ordered, deletes), version, chunk_bytes);
    world.upkeep.tiers = seed.is_multiple_of(2).then_some(EAGER);
    world.upkeep.settle = Some(super::ALL);
    let mut golden = Flagged {
        ordered,
        floor: i64::MIN,
        ..Flagged::default()
    };
    let mut next = 1000;
    for epoch in 0..12 {
        let mut batches = Vec::new();
        for _ in 0..=random.below(3) {
            let count = 1 + random.below(120);
            batches.push(changes(&mut random, count, 60, &mut next, ordered));
        }
        for change in batches.iter().flatten() {
            golden.apply(change);
        }
        let commit = world.prepare(&batches).await;
        let event = random.below(6);
        match event {
            0 => world.open = None,
            1 => {
                world.open = None;
                let _ = std::fs::remove_dir_all(world.index());
            }
            2 => {
                world.catalog_does(OTHERS_ARE_FASTER).await;
                let before = world.written();
                let (_, output) = world.open().await;
                let outcome = output.commit(&commit).await.expect("an outcome");
                assert_eq!(outcome, Outcome::Conflict);
                assert_eq!(world.written(), before);
                world.catalog_does("DROP TRIGGER faster").await;
            }
            3 if epoch > 0 => {
                world.compacted().await;
            }
            _ => {}
        }
        world.commit(&commit).await;
        world.tend().await;
        let at =
            format!("seed={seed} ordered={ordered} deletes={deletes} epoch={epoch} event={event}");
        if epoch % 4 == 3 {
            world.settle().await;
            assert_eq!(world.files().await.1, 0, "{at}");
        }
        if version == 2 {
            assert_eq!(rows(&world).await, golden.rows, "{at}");
        }
        let found = iceberg::verify(&world.config.catalog, &world.config.table, &[]).await;
        assert_eq!(found.expect("it is verified"), Vec::new(), "{at}");
    }
    if version == 3 {
        // The crate's own scan does not read vectors; a compaction applies them.
        world.compacted().await;
        assert_eq!(rows(&world).await, golden.rows, "seed={seed} vectors");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_rows_keep_their_last_values() {
    for seed in 0..4 {
        run(seed, true, "position").await;
        run(100 + seed, false, "position").await;
        run(200 + seed, true, "vector").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_do_those_of_files_that_are_written_again_and_those_deleted_by_key() {
    for seed in 0..3 {
        run(300 + seed, true, "copy_on_write").await;
        run(400 + seed, false, "copy_on_write").await;
        run(500 + seed, true, "equality").await;
        run(600 + seed, false, "equality").await;
    }
}

#[tokio::test]
async fn a_flag_is_all_that_a_delete_changes() {
    let change = |op, id, seq, n| Change {
        op,
        id,
        seq,
        region: if op == "d" { "us" } else { "eu" },
        n,
    };
    let mut world = World::new(config(true, "position"), 2, 1 << 20);
    let row = |n, deleted| ("eu".to_owned(), n, deleted);
    for (changes, wanted) in [
        // Rows of this commit; a key that the table does not have leaves nothing.
        (
            vec![
                change("c", 1, 10, 1),
                change("c", 2, 11, 2),
                change("d", 2, 12, 0),
                change("d", 3, 13, 0),
            ],
            vec![(1, row(1, false)), (2, row(2, true))],
        ),
        // A row of an earlier commit; one too late; one that comes back; one deleted twice.
        (
            vec![change("d", 1, 20, 0), change("u", 3, 12, 9)],
            vec![(1, row(1, true)), (2, row(2, true))],
        ),
        (
            vec![change("u", 2, 30, 3), change("d", 1, 31, 0)],
            vec![(1, row(1, true)), (2, row(3, false))],
        ),
        (
            vec![change("u", 1, 25, 9), change("c", 3, 32, 4)],
            vec![(1, row(1, true)), (2, row(3, false)), (3, row(4, false))],
        ),
        // A TRUNCATE is about what was there, also in this commit.
        (
            vec![
                change("u", 2, 40, 5),
                change("c", 4, 41, 6),
                change("t", 0, 42, 0),
                change("c", 5, 43, 7),
                change("u", 3, 44, 8),
            ],
            vec![
                (1, row(1, true)),
                (2, row(5, true)),
                (3, row(8, false)),
                (4, row(6, true)),
                (5, row(7, false)),
            ],
        ),
    ] {
        let commit = world.prepare(&[changes]).await;
        world.commit(&commit).await;
        let wanted: Rows = wanted.into_iter().collect();
        assert_eq!(rows(&world).await, wanted);
        // Its order is that of the delete: the table tells it, when the index is lost.
        world.open = None;
        std::fs::remove_dir_all(world.index()).expect("an index");
    }
}

#[tokio::test]
async fn a_row_that_others_have_deleted_does_not_come_back() {
    let mut world = World::new(config(true, "position"), 2, 1 << 20);
    let change = |op, id, seq| Change {
        op,
        id,
        seq,
        region: "eu",
        n: id,
    };
    let both = vec![change("c", 1, 10), change("c", 2, 11)];
    let commit = world.prepare(&[both]).await;
    world.commit(&commit).await;
    let handle = world.lake.handle().await;
    let (known, files) = live(&handle).await;
    let file = files.files().next().expect("a file").clone();
    let edit = delete_positions(&handle, &known, &files, &file, &[0]).await;
    let built = handle.build(&known, edit).await.expect("built");
    handle.apply(&known, built).await.expect("applied");
    assert_eq!(rows(&world).await.into_keys().collect::<Vec<_>>(), [2]);
    let both = vec![change("d", 1, 20), change("d", 2, 21)];
    let commit = world.prepare(&[both]).await;
    world.commit(&commit).await;
    let flagged = (2, ("eu".to_owned(), 2, true));
    assert_eq!(rows(&world).await, BTreeMap::from([flagged]));
}

#[tokio::test]
async fn the_first_epoch_of_a_table_that_was_there_may_have_deletes_alone() {
    for ordered in [false, true] {
        let mut world = World::new(config(ordered, "position"), 2, 1 << 20);
        world.config.evolution.add = true;
        others_append(&world, 1, others_rows(&[1, 2])).await;
        let change = |op: &'static str, seq: i64| {
            let (id, region, n) = (1, "eu", 100);
            vec![Change {
                op,
                id,
                seq,
                region,
                n,
            }]
        };
        let first = world.prepare(&[change("d", 5)]).await;
        world.commit(&first).await;
        if ordered {
            // The order of the delete is in the table, and there alone.
            world.open = None;
            std::fs::remove_dir_all(world.index()).expect("an index");
            let late = world.prepare(&[change("u", 3)]).await;
            world.commit(&late).await;
        }
        let found: Vec<(i64, i64)> = world
            .rows()
            .await
            .iter()
            .map(|(id, (_, n))| (*id, *n))
            .collect();
        assert_eq!(found, [(1, 1), (2, 2)], "{ordered}");
        let mut flagged = Vec::new();
        for batch in world.scan().await {
            let column = |name: &str| batch.column_by_name(name).expect("a column").clone();
            let (ids, flags) = (column("id"), column("is_deleted"));
            let ids = ids.as_primitive::<Int64Type>();
            let flags = flags.as_boolean();
            let set = (0..batch.num_rows()).filter(|row| flags.is_valid(*row) && flags.value(*row));
            flagged.extend(set.map(|row| ids.value(row)));
        }
        assert_eq!(flagged, [1], "{ordered}");
    }
}
