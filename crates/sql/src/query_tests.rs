//! Queries over several tables; what is refused; the memory limit.

use arrow::{
    array::{AsArray, Int64Array},
    datatypes::{DataType, Field, Int64Type, Schema},
};
use datafusion::datasource::MemTable;

use super::*;

fn table(values: Vec<i64>) -> Arc<dyn TableProvider> {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
    let column = Arc::new(Int64Array::from(values));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap();
    Arc::new(MemTable::try_new(schema, vec![vec![batch]]).unwrap())
}

fn tables() -> Vec<(String, Arc<dyn TableProvider>)> {
    vec![
        ("shop.orders".into(), table(vec![3, 1, 2])),
        ("shop.users".into(), table(vec![1])),
        ("plain".into(), table(vec![9])),
    ]
}

async fn run(sql: &str) -> Result<Vec<RecordBatch>> {
    query(sql, tables(), &QueryOptions::default())
        .await?
        .collect()
        .await
}

#[tokio::test]
async fn tables_are_found_by_schema_and_name() {
    let sql = "SELECT sum(o.n) + max(p.n) FROM shop.orders o, plain p WHERE o.n NOT IN (SELECT n FROM shop.users)";
    let rows = run(sql).await.unwrap();
    let sum = rows[0].column(0).as_primitive::<Int64Type>();
    assert_eq!(sum.value(0), 5 + 9);
    let names = "SELECT table_schema FROM information_schema.tables WHERE table_name = 'orders'";
    let rows = run(names).await.unwrap();
    assert_eq!(rows[0].column(0).as_string::<i32>().value(0), "shop");
    for sql in [
        "SHOW TABLES",
        "DESCRIBE shop.orders",
        "EXPLAIN SELECT * FROM plain",
        "SELECT now()",
    ] {
        run(sql).await.expect(sql);
    }
}

#[tokio::test]
async fn all_but_reading_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out.csv");
    let refused = [
        "CREATE TABLE t AS SELECT 1".to_owned(),
        "CREATE VIEW v AS SELECT 1".to_owned(),
        "DROP TABLE plain".to_owned(),
        "INSERT INTO plain VALUES (1)".to_owned(),
        "UPDATE plain SET n = 1".to_owned(),
        "DELETE FROM plain".to_owned(),
        "SET datafusion.execution.batch_size = 1".to_owned(),
        format!("COPY plain TO '{}'", file.display()),
        format!("EXPLAIN ANALYZE COPY plain TO '{}'", file.display()),
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'".to_owned(),
        "SELECT * FROM '/etc/passwd'".to_owned(),
        "SELECT * FROM read_csv('/etc/passwd')".to_owned(),
        "SELECT 1; SELECT 2".to_owned(),
        "BEGIN".to_owned(),
    ];
    for sql in refused {
        let error = query(&sql, tables(), &QueryOptions::default())
            .await
            .map(|_| ())
            .expect_err(&sql);
        assert_eq!(error.kind(), ErrorKind::Config, "{sql}: {error}");
    }
    assert!(!file.exists());
}

#[tokio::test]
async fn wrong_names_are_pointed_at() {
    let error = run("SELECT m\nFROM shop.ordrs").await.unwrap_err();
    assert_eq!(
        error.message(),
        "unknown table: table=shop.ordrs\n  2 | FROM shop.ordrs\n    |      ^^^^^^^^^^"
    );
    assert_eq!(error.hint_text(), Some("did you mean `shop.orders`?"));
    let error = run("SELECT m FROM shop.orders").await.unwrap_err();
    assert!(
        error
            .message()
            .ends_with("  1 | SELECT m FROM shop.orders\n    |        ^"),
        "{error}"
    );
}

#[tokio::test]
async fn a_query_stays_within_its_memory() {
    let tables = vec![("t".to_owned(), table((0..500_000).collect()))];
    let options = QueryOptions {
        memory_bytes: 1 << 20,
        ..QueryOptions::default()
    };
    let sql = "SELECT count(*) FROM t a JOIN t b ON a.n = b.n";
    let result = query(sql, tables, &options).await.unwrap().collect().await;
    let error = result.unwrap_err();
    assert!(error.message().contains("more memory"), "{error}");
}
