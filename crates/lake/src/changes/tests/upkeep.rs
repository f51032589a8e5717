//! What is merged after commits, when some files cannot be.

use std::time::Duration;

use ::iceberg::spec::ManifestContentType;

use super::{
    super::{Settle, Upkeep},
    ALL, AT_TIMES, EAGER,
    world::{Change, World},
};
use crate::iceberg::{self, tests::edits::delete_positions};

/// The path of some data file of the region.
async fn a_file_of(world: &World, region: &str) -> String {
    let handle = world.lake.handle().await;
    let (_, live) = iceberg::tests::edits::live(&handle).await;
    let of_region = |path: &&str| path.contains(&format!("region={region}"));
    let path = live.files().map(|file| &*file.path).find(of_region);
    let path = path.and_then(|path| path.strip_prefix("file://"));
    path.expect("a file of the region").to_owned()
}

/// Five files of each of two regions, one file of which is broken: its path, and what was in it.
async fn one_broken(region: &str, upkeep: Upkeep) -> (World, String, Vec<u8>) {
    let config = serde_json::json!({"key": ["id"], "op_column": "op", "order_by": ["_seq"]});
    let mut world = World::new(config, 2, 1 << 20);
    world.upkeep = upkeep;
    for n in 0..5_i64 {
        let changes = ["eu", "us"].iter().zip(0..).map(|(region, at)| Change {
            op: "u",
            id: 2 * n + at,
            seq: n,
            region,
            n,
        });
        let commit = world.prepare(&[changes.collect()]).await;
        world.commit(&commit).await;
    }
    assert_eq!(world.files().await, (10, 0));
    let path = a_file_of(&world, region).await;
    let whole = std::fs::read(&path).expect("a file");
    std::fs::write(&path, "no Parquet").expect("written");
    (world, path, whole)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_goes_on_behind_a_file_that_cannot_be_read() {
    let every = Some((Duration::ZERO, AT_TIMES));
    for broken in ["eu", "us"] {
        let upkeep = Upkeep {
            every,
            ..Upkeep::default()
        };
        let (mut world, _, _) = one_broken(broken, upkeep).await;
        for _ in 0..3 {
            world.tend().await;
        }
        assert_eq!(world.files().await, (6, 0), "{broken}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_cannot_be_merged_are_tried_again_behind_the_others() {
    let tiers = Some(EAGER);
    for broken in ["eu", "us"] {
        let upkeep = Upkeep {
            tiers,
            ..Upkeep::default()
        };
        let (mut world, path, whole) = one_broken(broken, upkeep).await;
        for _ in 0..3 {
            world.tend().await;
        }
        assert_eq!(world.files().await, (6, 0), "{broken}");
        // They are not forgotten.
        std::fs::write(&path, whole).expect("written");
        let mut steps = 0;
        while !world.tend().await {
            steps += 1;
            assert!(steps < 20, "{broken}");
        }
        assert!(steps > 10, "{broken}: {steps}");
        assert_eq!(world.files().await, (2, 0), "{broken}");
        assert_eq!(world.rows().await.len(), 10, "{broken}");
    }
}

/// Rows of three regions, of which a few, many and some are updated; `bytes` is what is settled at least.
async fn some_deleted(deletes: &str, bytes: u64) -> World {
    let config = serde_json::json!({
        "key": ["id"], "op_column": "op", "order_by": ["_seq"], "deletes": deletes,
    });
    let mut world = World::new(config, 2, 1 << 20);
    let settle = Some(Settle { bytes, ..ALL });
    world.upkeep = Upkeep {
        settle,
        ..Upkeep::default()
    };
    for (seq, counts) in [(1, [50_000; 3]), (2, [10, 1000, 100])] {
        let regions = ["eu", "us", "apac"].iter().zip(counts).zip(0..);
        let changes = regions.flat_map(|((region, count), at)| {
            (0..count).map(move |n| Change {
                op: "u",
                id: 1_000_000 * at + n,
                seq,
                region,
                // Not small when it is encoded.
                n: (n * n).wrapping_mul(0x1E37_79B9_7F4A_7C15),
            })
        });
        let commit = world.prepare(&[changes.collect()]).await;
        world.commit(&commit).await;
        if seq == 1 {
            assert_eq!(world.settle().await, 0);
        }
    }
    assert_eq!(world.files().await, (6, 3));
    world
}

/// Bytes of the largest file of the region, and how many delete files are about it.
async fn largest_of(world: &World, region: &str) -> (u64, usize) {
    let handle = world.lake.handle().await;
    let (_, live) = iceberg::tests::edits::live(&handle).await;
    let of_region = live
        .files()
        .filter(|file| file.path.contains(&format!("region={region}")));
    let file = of_region.max_by_key(|file| file.bytes).expect("a file");
    (file.bytes, live.deletes_of(file).len())
}

/// Whether the table has a manifest of deletes.
async fn of_deletes(world: &World) -> bool {
    let handle = world.lake.handle().await;
    let known = handle.load_existing().await.expect("the table");
    let manifests = handle.manifests(&known).await.expect("manifests");
    let mut contents = manifests.iter().map(|manifest| manifest.content);
    contents.any(|content| content == ManifestContentType::Deletes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_lost_most_are_settled_first_and_what_is_too_much_is_left() {
    // Four times what came is not enough for any of them.
    let mut world = some_deleted("position", 1).await;
    assert_eq!(world.settle().await, 0);
    let (size, _) = largest_of(&world, "eu").await;
    let regions = ["us", "apac", "eu"];
    for settled in 1..=3 {
        let mut world = some_deleted("position", size * settled + size / 2).await;
        let before = world.rows().await;
        assert!(world.settle().await > 0);
        for (region, n) in regions.iter().zip(1..) {
            let left = usize::from(n > settled);
            assert_eq!(
                largest_of(&world, region).await.1,
                left,
                "{settled} {region}"
            );
        }
        assert_eq!(world.rows().await, before);
        // DuckDB counts by metadata where there is no manifest of deletes.
        assert_eq!(of_deletes(&world).await, settled < 3);
        // Nothing came since.
        assert_eq!(world.settle().await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_settled_in_a_table_that_others_have_changed_until_the_next_commit() {
    let mut world = some_deleted("position", 1 << 40).await;
    // Somebody else deletes a row of a file that has no deletes yet: the index does not know.
    let handle = world.lake.handle().await;
    let (known, live) = iceberg::tests::edits::live(&handle).await;
    let untouched = live.files().find(|file| live.deletes_of(file).is_empty());
    let file = untouched.expect("a file of updates").clone();
    let edit = delete_positions(&handle, &known, &live, &file, &[0]).await;
    let built = handle.build(&known, edit).await.expect("built");
    handle.apply(&known, built).await.expect("applied");
    let before = (world.snapshot().await, world.rows().await);
    assert_eq!(world.files().await, (6, 4));
    assert_eq!(world.settle().await, 0);
    assert_eq!((world.snapshot().await, world.rows().await), before);
    let change = Change {
        op: "u",
        id: 7,
        seq: 3,
        region: "eu",
        n: 3,
    };
    let commit = world.prepare(&[vec![change]]).await;
    world.commit(&commit).await;
    assert!(world.settle().await > 0);
    assert_eq!(world.files().await.1, 0);
    assert!(!of_deletes(&world).await);
    assert_eq!(world.rows().await.len(), before.1.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_compacted_by_others_has_no_manifest_of_deletes() {
    let world = some_deleted("position", 1).await;
    assert!(of_deletes(&world).await);
    assert_eq!(world.compacted().await.deletes_removed, 3);
    assert!(!of_deletes(&world).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_earned_and_is_too_little_counts_the_next_time() {
    let mut world = some_deleted("position", 1).await;
    let (size, _) = largest_of(&world, "us").await;
    let mut commits = 0;
    while world.settle().await == 0 {
        let (region, id) = ("apac", 1_000_000 * 2 + 200 + commits);
        let change = Change {
            op: "u",
            id,
            seq: 3,
            region,
            n: commits,
        };
        let commit = world.prepare(&[vec![change]]).await;
        world.commit(&commit).await;
        commits += 1;
        assert!(commits < 200, "{size}");
    }
    assert!(commits > 1);
    assert_eq!(largest_of(&world, "us").await.1, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_by_key_are_applied_when_there_is_enough_for_all_that_they_are_about() {
    let (size, _) = largest_of(&some_deleted("equality", 1).await, "eu").await;
    for (bytes, done) in [(2 * size, false), (4 * size, true)] {
        let mut world = some_deleted("equality", bytes).await;
        let (snapshot, rows) = (world.snapshot().await, world.rows().await);
        assert_eq!(world.settle().await > 0, done);
        assert_eq!(world.snapshot().await != snapshot, done);
        assert_eq!(world.files().await.1, if done { 0 } else { 3 });
        assert_eq!(world.rows().await, rows);
    }
}
