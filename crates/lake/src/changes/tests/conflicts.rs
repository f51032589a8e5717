//! Commits that somebody else was faster than.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use calve_engine::seams::Outcome;

use super::world::{Change, World};

/// From now on the catalog changes no table: whoever tries finds that another was faster.
pub(super) const OTHERS_ARE_FASTER: &str = "CREATE TRIGGER faster BEFORE UPDATE ON iceberg_tables \
                                 BEGIN SELECT RAISE(IGNORE); END";

impl World {
    /// Tells the catalog's database.
    pub(super) async fn catalog_does(&self, statement: &'static str) {
        let file = self.config.catalog.sqlite.as_ref().expect("a file");
        let url = format!("sqlite://{}", file.display());
        let pool = sqlx::SqlitePool::connect(&url).await.expect("a database");
        let done = sqlx::query(statement).execute(&pool).await;
        done.expect("it does it");
        pool.close().await;
    }

    /// Files of rows and of deletes, whether the table refers to them or not.
    pub(super) fn written(&self) -> BTreeSet<PathBuf> {
        fn walk(folder: &Path, found: &mut BTreeSet<PathBuf>) {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    walk(&path, found);
                } else if path
                    .extension()
                    .is_some_and(|of| of == "parquet" || of == "puffin")
                {
                    found.insert(path);
                }
            }
        }
        let mut found = BTreeSet::new();
        walk(&self.lake.dir.path().join("lake"), &mut found);
        found
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_leaves_nothing_but_what_was_prepared() {
    for (deletes, version) in [("position", 2), ("vector", 3), ("copy_on_write", 2)] {
        let config = serde_json::json!({
            "key": ["id"], "op_column": "op", "order_by": ["_seq"], "deletes": deletes,
        });
        let mut world = World::new(config, version, 1 << 20);
        let changes = |op: &'static str, ids: std::ops::Range<i64>, seq: i64| {
            let change = |id| Change {
                op,
                id,
                seq,
                region: "eu",
                n: seq,
            };
            ids.map(change).collect::<Vec<_>>()
        };
        let first = world.prepare(&[changes("c", 0..10, 1)]).await;
        world.commit(&first).await;
        let second = [changes("d", 0..3, 2), changes("u", 3..5, 2)];
        let second = world.prepare(&second).await;
        let before = world.written();
        world.catalog_does(OTHERS_ARE_FASTER).await;
        for _ in 0..2 {
            let (_, output) = world.open().await;
            let outcome = output.commit(&second).await.expect("an outcome");
            assert_eq!(outcome, Outcome::Conflict);
            assert_eq!(world.written(), before, "{deletes}");
        }
        world.catalog_does("DROP TRIGGER faster").await;
        world.commit(&second).await;
        assert!(world.written().len() > before.len(), "{deletes}");
        if version == 2 {
            assert_eq!(world.rows().await.len(), 7, "{deletes}");
        }
    }
}
