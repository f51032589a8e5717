//! What is merged after commits, when some files cannot be.

use std::time::Duration;

use super::{
    super::Upkeep,
    AT_TIMES, EAGER,
    world::{Change, World},
};
use crate::iceberg;

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
        let upkeep = Upkeep { every, tiers: None };
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
        let upkeep = Upkeep { tiers, every: None };
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
