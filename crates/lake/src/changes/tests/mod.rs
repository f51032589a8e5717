//! Changes into a real table, against a map that applies them one by one: over epochs, restarts, lost
//! indexes, compactions and writers that come in between.

mod conflicts;
mod log;
mod others;
mod soft;
mod truncates;
mod upkeep;
mod world;

use std::{sync::Arc, time::Duration};

use super::Settle;
use crate::iceberg::{self, CompactOptions, Tiers};
use arrow::array::{Int64Array, RecordBatch};
use world::{Change, Golden, World, batch};

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn changes(
    random: &mut Random,
    count: u64,
    keys: u64,
    next: &mut i64,
    ordered: bool,
) -> Vec<Change> {
    (0..count)
        .map(|_| {
            *next += 1;
            let late = if ordered { random.below(40) as i64 } else { 0 };
            Change {
                op: match random.below(300) {
                    0 => "t",
                    1..60 => "d",
                    60..150 => "c",
                    _ => "u",
                },
                id: random.below(keys) as i64,
                seq: *next - late,
                region: ["eu", "us", "apac"][random.below(3) as usize],
                n: *next,
            }
        })
        .collect()
}

/// Merges whatever can be merged.
const EAGER: Tiers = Tiers {
    target_file_size: 1 << 20,
    min_files: 2,
    deleted_share: 0.1,
};

/// Leaves no deletes.
const ALL: Settle = Settle {
    target_file_size: 1 << 20,
    bytes: 1 << 40,
};

/// Random changes; between epochs something happens to the table, the index or the process.
async fn run(seed: u64, ordered: bool, deletes: &str) {
    let mut random = Random(seed);
    let order: &[&str] = if ordered { &["_seq"] } else { &[] };
    let config = serde_json::json!({
        "key": ["id"], "op_column": "op", "order_by": order,
        "deletes": deletes,
    });
    let version = if deletes == "vector" { 3 } else { 2 };
    let chunk_bytes = [2_000, 20_000, 10_000_000][random.below(3) as usize];
    let mut world = World::new(config, version, chunk_bytes);
    let mut golden = Golden {
        ordered,
        floor: i64::MIN,
        ..Golden::default()
    };
    world.upkeep.tiers = seed.is_multiple_of(2).then_some(EAGER);
    world.upkeep.settle = Some(ALL);
    let mut next = 1000;
    for epoch in 0..12 {
        let batches: Vec<Vec<Change>> = (0..=random.below(3))
            .map(|_| {
                let count = 1 + random.below(120);
                changes(&mut random, count, 60, &mut next, ordered)
            })
            .collect();
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
            2 if version == 2 && epoch > 0 => {
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
            world.check(&golden, &at).await;
            let found = iceberg::verify(&world.config.catalog, &world.config.table, &[]).await;
            let found = found.expect("it is verified");
            assert!(found.is_empty(), "{at}: {found:?}");
        }
    }
    if version == 3 {
        // The crate's own scan does not read vectors; a compaction applies them.
        world.compacted().await;
        world.check(&golden, &format!("seed={seed} vectors")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_change_of_each_key_wins() {
    for seed in 0..8 {
        run(seed, true, "position").await;
        run(100 + seed, false, "position").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_delete_the_same_rows() {
    for seed in 0..4 {
        run(200 + seed, true, "vector").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_written_again_without_the_same_rows() {
    for seed in 0..4 {
        run(300 + seed, true, "copy_on_write").await;
        run(400 + seed, false, "copy_on_write").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_delete_the_same_rows() {
    for seed in 0..4 {
        run(500 + seed, true, "equality").await;
        run(600 + seed, false, "equality").await;
    }
}

#[tokio::test]
async fn a_late_update_does_not_bring_a_row_back() {
    let config = serde_json::json!({"key": ["id"], "op_column": "op", "order_by": ["_seq"]});
    let mut world = World::new(config, 2, 1 << 20);
    let change = |op, seq, n| {
        vec![Change {
            op,
            id: 1,
            seq,
            region: "eu",
            n,
        }]
    };
    for (batch, rows) in [
        (change("c", 10, 1), 1),
        (change("d", 20, 2), 0),
        (change("u", 15, 3), 0),
    ] {
        let commit = world.prepare(&[batch]).await;
        // The order of a deleted key is not in the table: it comes back from the runs.
        world.open = None;
        let _ = std::fs::remove_dir_all(world.index());
        world.commit(&commit).await;
        assert_eq!(world.rows().await.len(), rows);
    }
    let commit = world.prepare(&[change("u", 21, 4)]).await;
    world.commit(&commit).await;
    assert_eq!(world.rows().await[&1].1, 4);
}

#[tokio::test]
async fn keys_must_be_there_and_operations_known() {
    let config = serde_json::json!({"key": ["id"], "op_column": "op"});
    let mut world = World::new(config, 2, 1 << 20);
    let (writer, _) = world.open().await;
    let mut splitter = writer.splitter();
    let mut split = |op: &'static str, null: bool| {
        let rows = batch(&[Change {
            op,
            id: 1,
            seq: 1,
            region: "eu",
            n: 1,
        }]);
        let mut columns = rows.columns().to_vec();
        if null {
            columns[1] = Arc::new(Int64Array::from(vec![None]));
        }
        let rows = RecordBatch::try_new(rows.schema(), columns).expect("a batch");
        splitter.split(rows).map(drop).map_err(|e| e.to_string())
    };
    assert!(
        split("c", true)
            .expect_err("a null key")
            .contains("key is null")
    );
    assert!(split("x", false).expect_err("unknown").contains("unknown"));
    split("DELETE", false).expect("a known operation");
    split("t", true).expect("a truncate has no key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upkeep_keeps_files_few_and_the_index_follows() {
    for deletes in ["position", "vector", "copy_on_write", "equality"] {
        let config = serde_json::json!({
            "key": ["id"], "op_column": "op", "order_by": ["_seq"], "deletes": deletes,
        });
        let version = if deletes == "vector" { 3 } else { 2 };
        let mut world = World::new(config, version, 1 << 20);
        world.upkeep.tiers = Some(Tiers {
            min_files: 4,
            deleted_share: 0.3,
            ..EAGER
        });
        let mut golden = Golden {
            ordered: true,
            floor: i64::MIN,
            ..Golden::default()
        };
        let mut random = Random(7);
        let (mut steps, mut most) = (0, 0);
        for epoch in 0..40_i64 {
            let count = if epoch == 0 { 600 } else { 20 };
            let changes: Vec<Change> = (0..count)
                .map(|n| Change {
                    op: if random.below(9) == 0 { "d" } else { "u" },
                    id: if epoch == 0 {
                        n
                    } else {
                        random.below(600) as i64
                    },
                    seq: epoch * 1000 + n,
                    region: "eu",
                    n: epoch,
                })
                .collect();
            for change in &changes {
                golden.apply(change);
            }
            let commit = world.prepare(&[changes]).await;
            world.commit(&commit).await;
            steps += usize::from(world.tend().await);
            let (data, marks) = world.files().await;
            most = most.max(data + marks);
            assert!(marks <= data, "{deletes} {epoch}: {data} {marks}");
            if epoch % 10 == 3 {
                // The index was kept at the snapshot that the step made: nothing is read anew.
                world.open = None;
                let table = std::fs::read_dir(world.index().join("orders"));
                let folder = table.expect("indexes").next().expect("one").expect("one");
                let (index, reflects) =
                    super::index::KeyIndex::open(&folder.path(), 1 << 20).expect("an index");
                index.close();
                let at = reflects.expect("it was kept").snapshot;
                assert_eq!(at, world.snapshot().await, "{deletes} {epoch}");
            }
        }
        assert!((5..=30).contains(&steps), "{deletes}: {steps}");
        assert!(most <= 20, "{deletes}: {most}");
        if version == 2 {
            world.check(&golden, deletes).await;
        }
        let found = iceberg::verify(&world.config.catalog, &world.config.table, &[]).await;
        assert_eq!(found.expect("verified"), Vec::new(), "{deletes}");
    }
}

/// As `calve table compact` without options, for small files.
const AT_TIMES: CompactOptions = CompactOptions {
    target_file_size: 1 << 20,
    min_files: 5,
    all_deletes: false,
    sort: false,
    memory_bytes: 1 << 20,
    dry_run: false,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upkeep_at_times_is_whole_and_waits_for_its_turn() {
    // Five small files become one, and that one with four more.
    let hour = Duration::from_hours(1);
    for (every, steps) in [(Duration::ZERO, &[4, 8][..]), (hour, &[])] {
        let config = serde_json::json!({
            "key": ["id"], "op_column": "op", "order_by": ["_seq"], "deletes": "vector",
        });
        let mut world = World::new(config, 3, 1 << 20);
        world.upkeep.every = Some((every, AT_TIMES));
        let mut made = Vec::new();
        for n in 0..9_i64 {
            let change = Change {
                op: "u",
                id: n,
                seq: n,
                region: "eu",
                n,
            };
            let commit = world.prepare(&[vec![change]]).await;
            world.commit(&commit).await;
            if world.tend().await {
                made.push(n);
            }
        }
        assert_eq!(made, steps, "{every:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upkeep_at_times_comes_to_an_end_whatever_is_committed_meanwhile() {
    let config = serde_json::json!({
        "key": ["id"], "op_column": "op", "order_by": ["_seq"], "deletes": "vector",
    });
    let mut world = World::new(config, 3, 1 << 20);
    world.upkeep.every = Some((Duration::ZERO, AT_TIMES));
    let mut made = Vec::new();
    for n in 0..7_i64 {
        // Each commit deletes half of the rows of the file before: enough to rewrite that at once.
        let changes = (0..10).map(|id| Change {
            op: "u",
            id: if n == 0 { id } else { id % 5 },
            seq: n,
            region: "eu",
            n,
        });
        let commit = world.prepare(&[changes.collect()]).await;
        world.commit(&commit).await;
        if world.tend().await {
            made.push(n);
        }
    }
    // After a turn's step there is one that finds nothing: what came meanwhile is for the next turn.
    assert_eq!(made, [1, 3, 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upkeep_leaves_a_table_alone_that_others_have_changed() {
    let config = serde_json::json!({"key": ["id"], "op_column": "op", "order_by": ["_seq"]});
    let mut world = World::new(config, 2, 1 << 20);
    world.upkeep.tiers = Some(EAGER);
    let upsert = |id, seq| {
        vec![Change {
            op: "u",
            id,
            seq,
            region: "eu",
            n: seq,
        }]
    };
    for n in 0..3 {
        let commit = world.prepare(&[upsert(n, n)]).await;
        world.commit(&commit).await;
    }
    // Somebody else compacts: the index does not know where the rows are.
    assert_eq!(world.compacted().await.files_after, 1);
    assert!(!world.tend().await);
    // With the next commit it has taken that in.
    let commit = world.prepare(&[upsert(1, 10)]).await;
    world.commit(&commit).await;
    assert!(world.tend().await);
    let commit = world.prepare(&[upsert(1, 11)]).await;
    world.commit(&commit).await;
    let rows = world.rows().await;
    assert_eq!(
        rows.values().map(|(_, n)| *n).collect::<Vec<_>>(),
        [0, 11, 2]
    );
}

#[tokio::test]
async fn verification_misses_files_of_changes_that_are_prepared() {
    let config = serde_json::json!({"key": ["id"], "op_column": "op"});
    let mut world = World::new(config, 2, 1 << 20);
    let change = Change {
        op: "u",
        id: 1,
        seq: 1,
        region: "eu",
        n: 1,
    };
    let prepared = world.prepare(&[vec![change]]).await;
    let part = |missing: &[&str]| iceberg::RecordPart {
        pipeline: prepared.pipeline.to_string(),
        shard: prepared.shard.to_string(),
        epoch: prepared.epoch.0,
        digest: prepared.digest.clone(),
        content: prepared.prepared.content.clone(),
        missing_runs: missing.iter().map(|run| (*run).to_owned()).collect(),
    };
    let found = async |part: iceberg::RecordPart| {
        let found = iceberg::verify(&world.config.catalog, &world.config.table, &[part]).await;
        let found = found.expect("a check").into_iter();
        found.map(|finding| finding.what).collect::<Vec<_>>()
    };
    assert_eq!(found(part(&[])).await, Vec::<String>::new());
    let rows = found(part(&["a run"])).await;
    assert!(rows[0].contains("keys that are missing"), "{rows:?}");
    let files = iceberg::content_files(&prepared.prepared.content).expect("files");
    let path = files[0].strip_prefix("file://").expect("a local file");
    std::fs::remove_file(path).expect("removed");
    let gone = found(part(&[])).await;
    let refers = |what: &String| what.contains("a record refers to a file that is missing");
    assert!(gone.iter().any(refers), "{gone:?}");
}
