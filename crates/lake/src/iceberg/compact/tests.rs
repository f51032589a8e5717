//! What happens when others change the files of a group while it is rewritten.

use super::{
    super::tests::{
        Lake, commit as epoch, committed,
        edits::{delete_positions, live},
        prepare, rows,
    },
    *,
};
use crate::iceberg::access::local;

const OPTIONS: CompactOptions = CompactOptions {
    target_file_size: 64 << 20,
    min_files: 2,
    all_deletes: true,
    sort: false,
    memory_bytes: 64 << 20,
    dry_run: false,
};

fn pool() -> Arc<rayon::ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    Arc::new(pool.expect("a pool"))
}

#[tokio::test]
async fn a_group_that_others_changed_is_left_out_and_brings_nothing_back() {
    let lake = Lake::new(&["region"]);
    let (placement, output) = lake.open().await;
    for n in 1..=3 {
        let first = n as i64 * 30;
        let rows = prepare(&placement, rows(first..first + 30));
        committed(&output, &epoch("main", n, rows)).await;
    }
    let handle = lake.handle().await;
    let (known, mut now) = live(&handle).await;
    let groups = plan::groups(&now, &OPTIONS);
    assert_eq!(groups.len(), 3);
    let mut rewriter =
        Rewriter::new(&handle, &known.metadata, false, &OPTIONS, pool()).expect("a rewriter");
    let mut batch = Vec::new();
    for group in groups {
        batch.push(rewriter.rewrite(group).await.expect("rewritten"));
    }
    // Meanwhile the pipeline commits, rows of the first group's file are deleted, and a file of the
    // second group is taken away.
    committed(&output, &epoch("main", 4, prepare(&placement, rows(0..30)))).await;
    let (one, two) = (
        batch[0].group.files[0].file.clone(),
        batch[1].group.files[0].file.clone(),
    );
    let (known, files) = live(&handle).await;
    let mut edit = delete_positions(&handle, &known, &files, &one, &[0, 1, 2]).await;
    edit.removed.push(RemovedFile::data(&two));
    let built = handle.build(&known, edit).await.expect("built");
    handle.apply(&known, built).await.expect("applied");
    let before = lake.ids().await;
    assert_eq!(before.len(), 120 - 3 - 10);

    let outputs: Vec<Vec<String>> = batch.iter().map(|b| b.locations().collect()).collect();
    let mut done = Compacted::default();
    let fits = commit(&handle, &mut now, &batch, &mut done).await;
    assert_eq!(fits.expect("committed"), [false, false, true]);
    assert_eq!((done.groups, done.files_before), (1, 3));
    assert_eq!(lake.ids().await, before);
    let there = |group: &Vec<String>| {
        let exists = |l: &String| std::path::Path::new(local(l).expect("local")).exists();
        group.iter().all(exists)
    };
    let there: Vec<bool> = outputs.iter().map(there).collect();
    assert_eq!(there, [false, false, true]);

    let again = compact(&lake.config.catalog, "shop.orders", &OPTIONS, pool()).await;
    assert_eq!(again.expect("compacted").rows_deleted, 3);
    assert_eq!(lake.ids().await, before);
}

#[tokio::test]
async fn a_group_of_which_nothing_is_left_goes() {
    let lake = Lake::new(&[]);
    let (placement, output) = lake.open().await;
    committed(&output, &epoch("main", 1, prepare(&placement, rows(0..3)))).await;
    committed(&output, &epoch("main", 2, prepare(&placement, rows(3..9)))).await;
    let handle = lake.handle().await;
    let (known, files) = live(&handle).await;
    let small = files.files().find(|f| f.rows == 3).expect("a file").clone();
    let edit = delete_positions(&handle, &known, &files, &small, &[0, 1, 2]).await;
    let built = handle.build(&known, edit).await.expect("built");
    handle.apply(&known, built).await.expect("applied");
    let alone = CompactOptions {
        min_files: 5,
        all_deletes: false,
        target_file_size: 10,
        ..OPTIONS
    };
    let done = compact(&lake.config.catalog, "shop.orders", &alone, pool()).await;
    let done = done.expect("compacted");
    assert_eq!((done.files_before, done.files_after), (1, 0));
    assert_eq!((done.rows_deleted, done.deletes_removed), (3, 1));
    assert_eq!(lake.ids().await, (3..9).collect::<Vec<_>>());
}

/// A pipeline may look after its own table in a task.
#[test]
fn upkeep_may_be_a_task() {
    use super::super::{ExpireOptions, expire, verify};
    fn a_task<T: Send>(_: &T) {}
    let config = CatalogConfig::default();
    a_task(&compact(&config, "shop.orders", &OPTIONS, pool()));
    a_task(&verify(&config, "shop.orders", &[]));
    let (live, old) = (
        std::collections::HashSet::<String>::new(),
        ExpireOptions {
            older_than: std::time::Duration::ZERO,
            keep: 1,
            dry_run: true,
        },
    );
    a_task(&expire(&config, "shop.orders", &old, &live));
}
