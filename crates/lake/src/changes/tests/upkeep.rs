//! What is merged after commits, when some files cannot be.

use super::{
    EAGER,
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_cannot_be_merged_are_tried_again_behind_the_others() {
    for broken in ["eu", "us"] {
        let config = serde_json::json!({"key": ["id"], "op_column": "op", "order_by": ["_seq"]});
        let mut world = World::new(config, 2, 1 << 20);
        world.upkeep.tiers = Some(EAGER);
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
        let path = a_file_of(&world, broken).await;
        let whole = std::fs::read(&path).expect("a file");
        std::fs::write(&path, "no Parquet").expect("written");
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
