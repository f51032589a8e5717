//! What came before a TRUNCATE stays away, whatever becomes of snapshots and index.

use super::{
    others::{others_append, others_rows},
    world::{Change, World},
};
use crate::iceberg::{
    forget,
    held::truncated_property,
    tests::commits::{change, snapshot_ids},
};

fn one(op: &'static str, id: i64, seq: i64) -> Vec<Change> {
    let (region, n) = ("eu", seq);
    vec![Change {
        op,
        id,
        seq,
        region,
        n,
    }]
}

/// What happens before the late change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    Restart,
    LostIndex,
    /// The table has no property, as older versions leave it.
    LostProperty,
}

#[tokio::test]
async fn a_late_change_stays_dropped_though_the_snapshots_expire() {
    let all = [
        Then::Nothing,
        Then::Restart,
        Then::LostIndex,
        Then::LostProperty,
    ];
    // The second TRUNCATE of the second case finds nothing, and makes no snapshot.
    let truncates: [&[i64]; 2] = [&[20], &[20, 30]];
    for (then, truncates) in all.iter().flat_map(|then| truncates.map(|of| (*then, of))) {
        let config = serde_json::json!({"key": ["id"], "op_column": "op", "order_by": ["_seq"]});
        let mut world = World::new(config, 2, 1 << 20);
        let first = world.prepare(&[one("c", 1, 10)]).await;
        world.commit(&first).await;
        for order in truncates {
            let truncate = world.prepare(&[one("t", 0, *order)]).await;
            world.commit(&truncate).await;
        }
        assert_eq!(snapshot_ids(&world.lake).await.len(), 2);
        others_append(&world, 1, others_rows(&[100])).await;
        let ids = snapshot_ids(&world.lake).await;
        change(&world.lake, |table| table.remove_snapshots(&ids[1..])).await;
        if then != Then::Nothing {
            world.open = None;
        }
        if then == Then::LostIndex {
            std::fs::remove_dir_all(world.index()).expect("an index");
        }
        if then == Then::LostProperty {
            let name = [truncated_property("orders", "main")];
            let without = change(&world.lake, |table| {
                table.remove_properties(&name).expect("it can go")
            });
            without.await;
        }
        let last = *truncates.last().expect("one");
        let late = [one("u", 1, last - 5), one("c", 2, last + 5)];
        let late = world.prepare(&late).await;
        world.commit(&late).await;
        let ids: Vec<i64> = world.rows().await.into_keys().collect();
        assert_eq!(ids, [2, 100], "{then:?} {truncates:?}");
    }
}

#[tokio::test]
async fn an_index_that_was_not_told_of_a_truncate_learns_it_from_the_table() {
    let config = serde_json::json!({"key": ["id"], "op_column": "op", "order_by": ["_seq"]});
    let mut world = World::new(config, 2, 1 << 20);
    for changes in [one("c", 1, 10), one("t", 0, 20)] {
        let commit = world.prepare(&[changes]).await;
        world.commit(&commit).await;
    }
    // Killed behind the next commit, before the index was told: the snapshot is the same.
    world.open = None;
    let before = world.lake.dir.path().join("before");
    std::fs::rename(world.index(), &before).expect("an index");
    let commit = world.prepare(&[one("t", 0, 30)]).await;
    world.commit(&commit).await;
    world.open = None;
    std::fs::remove_dir_all(world.index()).expect("an index");
    std::fs::rename(&before, world.index()).expect("renamed");
    for changes in [one("u", 1, 25), one("c", 2, 35)] {
        let commit = world.prepare(&[changes]).await;
        world.commit(&commit).await;
    }
    let ids: Vec<i64> = world.rows().await.into_keys().collect();
    assert_eq!(ids, [2]);
}

#[tokio::test]
async fn one_that_starts_over_takes_orders_from_before() {
    let config = serde_json::json!({"key": ["id"], "op_column": "op", "order_by": ["_seq"]});
    let mut world = World::new(config, 2, 1 << 20);
    for changes in [one("c", 1, 1000), one("t", 0, 2000), one("d", 2, 3000)] {
        let commit = world.prepare(&[changes]).await;
        world.commit(&commit).await;
    }
    // As `calve checkpoint reset` does it; the index stays where it is.
    let forgotten = forget(&world.config.catalog, &world.config.table, "orders").await;
    assert_eq!(forgotten.expect("forgotten"), 1);
    std::fs::remove_dir_all(world.lake.dir.path().join("checkpoints")).expect("records");
    (world.open, world.epoch, world.runs) = (None, 0, Vec::new());
    let commit = world.prepare(&[one("c", 1, 5), one("c", 2, 6)]).await;
    world.commit(&commit).await;
    let ids: Vec<i64> = world.rows().await.into_keys().collect();
    assert_eq!(ids, [1, 2]);
}
