//! The suite for stores, over databases; and what is special about them.

use std::sync::Arc;

use calve_engine::{
    checkpoint::{RecordStore, conformance},
    error::ErrorKind,
};

use super::{SqlRecords, shown};

fn sqlite(dir: &tempfile::TempDir) -> Arc<SqlRecords> {
    let path = dir.path().join("deep/er/checkpoints.db");
    SqlRecords::new(&format!("sqlite:{}", path.display())).expect("a URL")
}

#[tokio::test]
async fn sqlite_keeps_the_promises_of_a_store() {
    let dir = tempfile::tempdir().expect("a folder");
    assert!(sqlite(&dir).list("a").await.expect("list").is_empty());
    assert!(
        !dir.path().join("deep").exists(),
        "reading created something"
    );
    conformance::store(sqlite(&dir)).await;
    conformance::owners(sqlite(&dir)).await;
    // Another connection, as another process has it.
    conformance::survives(sqlite(&dir), || sqlite(&dir)).await;
}

#[tokio::test]
async fn postgresql_keeps_the_promises_of_a_store() {
    let server = crate::postgres_server::Server::start();
    let url = server.url("right password");
    let open = || SqlRecords::new(&url).expect("a URL");
    assert!(open().list("a").await.expect("list").is_empty());
    conformance::store(open()).await;
    conformance::owners(open()).await;
    conformance::survives(open(), open).await;

    // Two that lay the table out at once.
    let stores: Vec<_> = (0..8).map(|_| open()).collect();
    let puts = stores.iter().map(|store| store.put("x/y", vec![1]));
    for put in futures::future::join_all(puts).await {
        put.expect("put");
    }

    let wrong = SqlRecords::new(&server.url("wrong secret")).expect("a URL");
    let error = wrong.get("a/b").await.expect_err("a wrong password");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");

    drop(server);
    let error = open().get("a/b").await.expect_err("no server");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(!format!("{error:?}").contains("password"), "{error:?}");
}

#[test]
fn what_is_shown_holds_no_secret() {
    for (url, expected) in [
        ("sqlite:a/b.db?mode=rwc", "sqlite:a/b.db"),
        ("sqlite:///a/b.db", "sqlite:///a/b.db"),
        (
            "postgres://u:p@ss@host:5432/db?password=x",
            "postgres://host:5432/db",
        ),
        ("postgresql:///db?host=/run&password=x", "postgresql:///db"),
        ("s3://bucket/a", "s3://bucket/a"),
    ] {
        assert_eq!(shown(url), expected);
    }
    for bad in [
        "sqlite:",
        "sqlite::memory:",
        "postgres://user:hidden@host:port/",
    ] {
        let error = SqlRecords::new(bad).expect_err(bad);
        assert_eq!(error.kind(), ErrorKind::Config, "{bad}");
        assert!(!format!("{error:?}").contains("hidden"), "{error:?}");
    }
}
