//! Rows that a filter means go, and no others, whoever commits meanwhile; others read what is left.

use calve_engine::ErrorKind;

use super::{
    super::tests::{
        Lake, commit as epoch, committed,
        edits::{delete_positions, live},
        prepare, rows,
    },
    *,
};

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

async fn delete(lake: &Lake, filter: &str, options: &CompactOptions) -> Result<Deleted> {
    delete_where(&lake.config.catalog, "shop.orders", filter, options, pool()).await
}

#[tokio::test]
async fn files_go_whole_or_are_written_again_and_others_read_the_rest() {
    let lake = Lake::new(&["region"]);
    let (placement, output) = lake.open().await;
    for n in 1..=2 {
        let first = n as i64 * 30;
        let rows = prepare(&placement, rows(first..first + 30));
        committed(&output, &epoch("main", n, rows)).await;
    }
    // Some rows are deleted by position before: they count for nothing, and do not come back.
    let handle = lake.handle().await;
    let (known, files) = live(&handle).await;
    let one = files.files().min_by_key(|f| (f.sequence, f.path.clone()));
    let one = one.expect("a file").clone();
    let edit = delete_positions(&handle, &known, &files, &one, &[0, 1]).await;
    let built = handle.build(&known, edit).await.expect("built");
    handle.apply(&known, built).await.expect("applied");
    let mut wanted = lake.ids().await;
    assert_eq!(wanted.len(), 58);

    let dry = CompactOptions {
        dry_run: true,
        ..OPTIONS
    };
    let would = delete(&lake, "region = 'us'", &dry).await.expect("a plan");
    assert_eq!(lake.ids().await, wanted);
    let done = delete(&lake, "region = 'us'", &OPTIONS)
        .await
        .expect("done");
    assert_eq!((done.files_removed, done.files_rewritten), (2, 0));
    assert_eq!((would.rows, would.snapshot), (done.rows, None));
    wanted.retain(|id| id % 3 != 2);
    assert_eq!(lake.ids().await, wanted);

    let done = delete(&lake, "id < 40 or id in (61, 62, 1000)", &OPTIONS).await;
    let done = done.expect("done");
    assert!(done.files_rewritten >= 2, "{done:?}");
    let before = wanted.len() as u64;
    wanted.retain(|id| *id >= 40 && *id != 61 && *id != 62);
    assert_eq!(done.rows, before - wanted.len() as u64);
    assert_eq!(lake.read_by_others(), (wanted.clone(), wanted.clone()));
    let found = super::super::verify(&lake.config.catalog, "shop.orders", &[]).await;
    assert_eq!(found.expect("verified"), Vec::new());

    // The pipeline goes on.
    let more = prepare(&placement, rows(200..210));
    committed(&output, &epoch("main", 3, more)).await;
    wanted.extend(200..210);
    assert_eq!(lake.ids().await, wanted);
    let none = delete(&lake, "id > 5000", &OPTIONS).await.expect("nothing");
    assert_eq!(none, Deleted::default());
}

#[tokio::test]
async fn what_others_add_meanwhile_is_looked_at_too() {
    let lake = Lake::new(&[]);
    let (placement, output) = lake.open().await;
    committed(&output, &epoch("main", 1, prepare(&placement, rows(0..9)))).await;
    let handle = lake.handle().await;
    let filter = Filter::parse("id < 100").expect("a filter");
    let mut meant = Meant::default();
    let (known, files) = live(&handle).await;
    let plan = meant
        .plan(&handle, &known, &files, &filter)
        .await
        .expect("a plan");
    let (edit, _) = plan
        .edit(&handle, &known, &files, &OPTIONS, pool())
        .await
        .expect("an edit");
    // Rows that the filter means, and one that it does not, come before the commit.
    committed(
        &output,
        &epoch("main", 2, prepare(&placement, rows(98..101))),
    )
    .await;
    let built = handle.build(&known, edit).await.expect("built");
    let outcome = handle.apply(&known, built).await.expect("an outcome");
    assert_eq!(outcome, calve_engine::seams::Outcome::Conflict);
    let (known, files) = live(&handle).await;
    let plan = meant
        .plan(&handle, &known, &files, &filter)
        .await
        .expect("a plan");
    assert_eq!(plan.done.rows, 11);
    let (edit, _) = plan
        .edit(&handle, &known, &files, &OPTIONS, pool())
        .await
        .expect("an edit");
    let built = handle.build(&known, edit).await.expect("built");
    handle.apply(&known, built).await.expect("applied");
    assert_eq!(lake.ids().await, [100]);
}

#[tokio::test]
async fn a_filter_must_fit_the_table() {
    let lake = Lake::new(&[]);
    let (placement, output) = lake.open().await;
    committed(&output, &epoch("main", 1, prepare(&placement, rows(0..9)))).await;
    for filter in ["nobody = 1", "id = 'a'", "id"] {
        let error = delete(&lake, filter, &OPTIONS).await.expect_err(filter);
        assert_eq!(error.kind(), ErrorKind::Config, "{filter}");
    }
    let done = delete(&lake, "ts >= '1970-01-01T02:00:00'", &OPTIONS).await;
    assert_eq!(done.expect("done").rows, 5);
}
