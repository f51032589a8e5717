//! The catalog in a real PostgreSQL: the same tables, the same promises.

use calve_engine::{Secret, error::ErrorKind, seams::Outcome};

use super::{
    super::{Catalog, CatalogConfig, handle::TableHandle, ls, show_if_there},
    Lake, commit, committed, prepare, rows,
};
use crate::postgres_server::Server;

fn lake(server: &Server) -> Lake {
    let mut lake = Lake::new(&["region"]);
    lake.config.catalog.sqlite = None;
    lake.config.catalog.sql = Some(Secret::new(server.url("right password")));
    lake
}

#[tokio::test]
async fn tables_are_created_committed_to_and_listed() {
    let server = Server::start();
    let lake = lake(&server);
    let config = &lake.config.catalog;
    let none = show_if_there(config, "shop.orders").await;
    assert!(none.expect("asked").is_none(), "looking laid nothing out");
    // Several at once lay the catalog out, and create the table.
    let opened = futures::future::join_all((0..4).map(|_| lake.open())).await;
    let uuids: Vec<_> = opened
        .iter()
        .map(|(_, output)| output.handle.uuid)
        .collect();
    assert!(uuids.windows(2).all(|pair| pair[0] == pair[1]), "{uuids:?}");

    let (placement, output) = &opened[0];
    committed(output, &commit("main", 1, prepare(placement, rows(0..30)))).await;
    // The other knows an older state; it loads the table before it commits.
    let (placement, other) = &opened[1];
    let again = commit("main", 1, prepare(placement, rows(0..30)));
    use calve_engine::seams::Output as _;
    let outcome = other.commit(&again).await.expect("an outcome");
    assert_eq!(outcome, Outcome::AlreadyCommitted);
    committed(other, &commit("main", 2, prepare(placement, rows(30..60)))).await;
    assert_eq!(lake.ids().await, (0..60).collect::<Vec<_>>());
    let listed = ls(config).await.expect("listed");
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].totals.rows, Some(60));

    // A swap of a row that has moved on changes nothing.
    let catalog = Catalog::open(config).await.expect("a catalog");
    let handle = TableHandle::open(catalog.clone(), "shop.orders").await;
    let known = handle
        .expect("a table")
        .load_existing()
        .await
        .expect("known");
    let swapped = catalog
        .sql()
        .swap(&lake.table(), "file:///nowhere", &known.location)
        .await;
    assert!(!swapped.expect("an answer"));
    let located = catalog.sql().locate(&lake.table()).await.expect("located");
    assert_eq!(located.as_deref(), Some(known.location.as_str()));

    let wrong = CatalogConfig {
        sql: Some(Secret::new(server.url("wrong SEEN"))),
        ..config.clone()
    };
    let error = Catalog::open(&wrong).await.expect_err("a wrong password");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(
        !format!("{error:?} {wrong:?}").contains("SEEN"),
        "{error:?}"
    );

    drop(server);
    let error = Catalog::open(config).await.expect_err("no server");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let lost = commit("main", 3, prepare(placement, rows(60..61)));
    let lost = other.commit(&lost).await.expect_err("no server");
    assert_eq!(lost.kind(), ErrorKind::Unavailable, "{lost}");
    assert!(
        !format!("{error:?} {lost:?}").contains("password"),
        "{error:?}"
    );
}
