//! Other writers on the same table and catalog.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use calve_engine::{
    error::ErrorKind,
    seams::{Outcome, Output},
};
use iceberg::{
    Catalog as _, CatalogBuilder, TableIdent,
    io::LocalFsStorageFactory,
    transaction::{ApplyTransactionAction, Transaction},
};
use iceberg_catalog_sql::{SqlBindStyle, SqlCatalog, SqlCatalogBuilder};
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};

use super::{Lake, commit, committed, prepare, rows, schema};
use crate::iceberg::{IcebergConfig, clean, create, files::Content};

/// iceberg-rust's own catalog on the same file.
async fn foreign(lake: &Lake) -> SqlCatalog {
    let file = lake.config.catalog.sqlite.as_ref().expect("a file");
    SqlCatalogBuilder::default()
        .uri(format!("sqlite://{}", file.display()))
        .warehouse_location(format!("file://{}", lake.dir.path().display()))
        .sql_bind_style(SqlBindStyle::QMark)
        .with_storage_factory(Arc::new(LocalFsStorageFactory))
        .load("default", HashMap::new())
        .await
        .expect("a catalog")
}

fn ident() -> TableIdent {
    TableIdent::from_strs(["shop", "orders"]).expect("a name")
}

/// Files that nothing refers to.
async fn unreferenced(lake: &Lake) -> Vec<String> {
    let none = HashSet::new();
    let cleaned = clean(
        &lake.config.catalog,
        "shop.orders",
        Duration::ZERO,
        &none,
        true,
    )
    .await;
    cleaned.expect("cleaned").names
}

#[tokio::test]
async fn a_foreign_append_is_carried_on_and_keeps_our_property() {
    let lake = Lake::new(&["region"]);
    let (placement, output) = lake.open().await;
    committed(&output, &commit("main", 1, prepare(&placement, rows(0..5)))).await;

    let catalog = foreign(&lake).await;
    let table = catalog.load_table(&ident()).await.expect("it reads ours");
    let theirs = prepare(&placement, rows(100..105));
    let files = Content::from_json(&theirs.content)
        .and_then(|content| content.data_files(table.metadata()))
        .expect("files");
    let tx = Transaction::new(&table);
    let tx = tx
        .fast_append()
        .add_data_files(files)
        .apply(tx)
        .expect("an append");
    tx.commit(&catalog).await.expect("their commit");

    committed(&output, &commit("main", 2, prepare(&placement, rows(5..7)))).await;
    let expected: Vec<i64> = (0..7).chain(100..105).collect();
    assert_eq!(lake.ids().await, expected);
    assert_eq!(unreferenced(&lake).await, Vec::<String>::new());
    assert_eq!(
        foreign(&lake)
            .await
            .list_tables(ident().namespace())
            .await
            .expect("a list"),
        [ident()]
    );
}

#[tokio::test]
async fn two_shards_at_once_conflict_and_lose_nothing() {
    let lake = Lake::new(&["region"]);
    let (placement, a) = lake.open().await;
    let (_, b) = lake.open().await;
    let mut conflicts = 0;
    for epoch in 1..=12 {
        let id = epoch as i64 * 2;
        let one = commit("a", epoch, prepare(&placement, rows(id..id + 1)));
        let two = commit("b", epoch, prepare(&placement, rows(id + 1..id + 2)));
        let (first, second) = tokio::join!(a.commit(&one), b.commit(&two));
        for (outcome, output, commit) in [(first, &a, &one), (second, &b, &two)] {
            match outcome.expect("an outcome") {
                Outcome::Committed { .. } => {}
                Outcome::Conflict => {
                    conflicts += 1;
                    committed(output, commit).await;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(conflicts > 0, "the two never met");
    assert_eq!(lake.ids().await, (2..26).collect::<Vec<_>>());
    assert_eq!(
        unreferenced(&lake).await,
        Vec::<String>::new(),
        "a lost race leaves nothing"
    );
}

#[tokio::test]
async fn a_table_dropped_and_created_again_is_another() {
    let lake = Lake::new(&[]);
    let (placement, old) = lake.open().await;
    committed(&old, &commit("main", 1, prepare(&placement, rows(0..5)))).await;
    let before = old.state("orders", "main").await.expect("a state").identity;
    foreign(&lake)
        .await
        .drop_table(&ident())
        .await
        .expect("dropped");
    assert_eq!(
        old.state("orders", "main").await.expect("a state").identity,
        None
    );
    let next = commit("main", 2, prepare(&placement, rows(5..6)));
    assert_eq!(
        old.commit(&next).await.expect_err("no table").kind(),
        ErrorKind::Corrupt
    );
    let (_, new) = lake.open().await;
    let after = old.state("orders", "main").await.expect("a state");
    assert_eq!(after, new.state("orders", "main").await.expect("a state"));
    assert!(after.identity.is_some() && after.identity != before && after.held.is_none());
    assert_eq!(
        old.commit(&next).await.expect_err("another table").kind(),
        ErrorKind::Corrupt
    );
}

#[tokio::test]
async fn a_table_that_does_not_fit_shows_how() {
    let mut lake = Lake::new(&["day(ts)", "region"]);
    lake.open().await;
    lake.config.partition_by = vec!["hour(ts)".into(), "region".into()];
    let narrow = schema().project(&[0, 1]).expect("columns");
    let error =
        create::create_or_check(&lake.catalog().await, &lake.config, &lake.table(), &narrow)
            .await
            .expect_err("it does not fit");
    assert_eq!(error.kind(), ErrorKind::Schema);
    let lines: Vec<&str> = error.message().lines().skip(1).collect();
    assert_eq!(
        lines,
        [
            "columns:",
            "- id long",
            "partition_by:",
            "- day(ts)",
            "+ hour(ts)"
        ]
    );
}

#[tokio::test]
async fn what_cannot_be_created_is_refused_before_anything_is_written() {
    for (terms, sort, version) in [
        (vec!["hour(region)"], vec![], 2),
        (vec!["nothing"], vec![], 2),
        (vec!["ts", "ts"], vec![], 2),
        (vec![], vec!["nothing desc"], 2),
        (vec![], vec![], 1),
    ] {
        let mut lake = Lake::new(&terms);
        lake.config.sort_by = sort.into_iter().map(str::to_owned).collect();
        lake.config.format_version = version;
        let catalog = lake.catalog().await;
        let error = create::create_or_check(&catalog, &lake.config, &lake.table(), &schema())
            .await
            .expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(!lake.dir.path().join("lake/shop").exists());
    }
}

#[tokio::test]
async fn version_three_keeps_row_ids_apart() {
    let mut lake = Lake::new(&["region"]);
    lake.config.format_version = 3;
    lake.config.sort_by = vec!["day(ts)".into(), "id desc".into()];
    let (placement, output) = lake.open().await;
    committed(&output, &commit("main", 1, prepare(&placement, rows(0..5)))).await;
    committed(&output, &commit("main", 2, prepare(&placement, rows(5..9)))).await;
    let table = foreign(&lake)
        .await
        .load_table(&ident())
        .await
        .expect("a table");
    assert_eq!(table.metadata().next_row_id(), 9);
    assert_eq!(lake.ids().await, (0..9).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_locked_catalog_is_told_with_what_to_do() {
    let lake = Lake::new(&["region"]);
    let (placement, output) = lake.open().await;
    let file = lake.config.catalog.sqlite.as_ref().expect("a file");
    let options = SqliteConnectOptions::new().filename(file);
    let mut other = options.connect().await.expect("a connection");
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut other)
        .await
        .expect("the lock");

    let first = commit("main", 1, prepare(&placement, rows(0..5)));
    let error = output.commit(&first).await.expect_err("locked");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let hint = error.hint_text().unwrap_or_default();
    assert!(hint.contains("stopped inside a transaction"), "{hint}");

    other.close().await.expect("the lock is let go");
    committed(&output, &first).await;
}

#[tokio::test]
async fn settings_that_a_table_was_not_created_with_are_told() {
    let lake = Lake::new(&["region"]);
    lake.open().await;
    let known = lake.handle().await.load_existing().await.expect("there");
    assert_eq!(
        create::unlike(&known.metadata, &lake.config),
        Vec::<String>::new()
    );
    let mut config = lake.config.clone();
    config.sort_by = vec!["id".into()];
    config.properties = [("owner".into(), "shop".into())].into();
    config.format_version = 3;
    let told = create::unlike(&known.metadata, &config);
    assert_eq!(told, ["sort_by", "properties.owner", "format_version"]);
    // As it is created with them.
    let mut lake = Lake::new(&["region"]);
    lake.config = IcebergConfig {
        catalog: lake.config.catalog,
        ..config
    };
    lake.open().await;
    let known = lake.handle().await.load_existing().await.expect("there");
    assert_eq!(
        create::unlike(&known.metadata, &lake.config),
        Vec::<String>::new()
    );
}
