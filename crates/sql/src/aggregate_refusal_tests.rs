//! What is not an aggregate of windows, and what the errors show.

use arrow::datatypes::{DataType, Field, Schema};
use calve_engine::ErrorKind;

use super::*;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("ts", DataType::Int64, true),
        Field::new("user_id", DataType::Int64, true),
        Field::new("region", DataType::Utf8, true),
        Field::new("amount", DataType::Float64, true),
    ]))
}

fn error(sql: &str) -> Error {
    match WindowedAggregate::plan(sql, schema()) {
        Ok(_) => panic!("accepted: {sql}"),
        Err(error) => error,
    }
}

#[test]
fn what_needs_more_than_one_group_or_the_window_below_is_refused() {
    let by = "GROUP BY window_start, window_end";
    let refused = [
        ("SELECT * FROM events".to_owned(), "does not group by"),
        ("SELECT count(*) FROM events".to_owned(), "does not group by"),
        ("SELECT region, count(*) FROM events GROUP BY region".to_owned(), "does not group by window_start and"),
        ("SELECT count(*) FROM events GROUP BY window_start".to_owned(), "does not group by window_end"),
        ("SELECT count(*) FROM events GROUP BY window_end".to_owned(), "does not group by window_start"),
        ("SELECT count(*) FROM events GROUP BY date_trunc('hour', window_start), window_end".to_owned(), "GROUP BY computes"),
        (format!("SELECT max(window_end) AS m FROM events {by}"), "an aggregate function computes"),
        (format!("SELECT count(*) FILTER (WHERE to_timestamp(ts) < window_end) AS m FROM events {by}"), "an aggregate function computes"),
        (format!("SELECT first_value(amount ORDER BY window_start) AS m FROM events {by}"), "an aggregate function computes"),
        (format!("SELECT count(*) AS n FROM events WHERE window_start > '2026-01-01' {by}"), "WHERE computes"),
        (format!("SELECT h, count(*) AS n FROM (SELECT window_start, window_end, date_trunc('hour', window_start) AS h FROM events) {by}, h"), "GROUP BY computes"),
        ("SELECT window_start, count(*) AS n FROM (SELECT to_timestamp(ts) AS window_start, window_end FROM events) GROUP BY window_start, window_end".to_owned(), "does not group by window_start"),
        (format!("SELECT window_start, count(*) AS n FROM events {by} ORDER BY n"), "ORDER BY"),
        (format!("SELECT window_start, count(*) AS n FROM events {by} LIMIT 3"), "LIMIT"),
        (format!("SELECT DISTINCT count(*) AS n FROM events {by}"), "DISTINCT"),
        (format!("SELECT rank() OVER (ORDER BY count(*)) AS r FROM events {by}"), "window function"),
        (format!("SELECT max(r) AS r FROM (SELECT window_start, window_end, row_number() OVER () AS r FROM events) {by}"), "window function"),
        (format!("SELECT max(n) AS m FROM (SELECT count(*) AS n FROM events {by}) AS t"), "over aggregates"),
        (format!("SELECT window_start, max(n) AS m FROM (SELECT window_start, window_end, count(*) AS n FROM events {by}, region) AS t {by}"), "over aggregates"),
        (format!("SELECT count(*) AS n FROM (SELECT DISTINCT * FROM events) {by}"), "DISTINCT"),
        (format!("SELECT count(*) AS n FROM (SELECT * FROM events LIMIT 10) {by}"), "LIMIT"),
        (format!("SELECT count(*) AS n FROM events {by} UNION ALL SELECT count(*) FROM events {by}"), "exactly once"),
        (format!("SELECT count(*) AS n FROM events a JOIN events b ON a.ts = b.ts {by}"), "mbiguous"),
        ("SELECT count(*) AS n FROM events a JOIN events b ON a.ts = b.ts GROUP BY a.window_start, a.window_end".to_owned(), "exactly once"),
        ("SELECT count(*) AS n FROM events JOIN (VALUES (1)) AS v(x) ON ts = x GROUP BY window_start, window_end".to_owned(), "a join"),
        (format!("SELECT count(*) AS n FROM events WHERE amount > (SELECT avg(amount) FROM events) {by}"), "exactly once"),
        (format!("SELECT count(*) AS n FROM events {by} HAVING count(*) > (SELECT 3)"), "subquery"),
        ("SELECT count(*) AS n FROM events GROUP BY ROLLUP(window_start, window_end)".to_owned(), "GROUPING SETS"),
        ("SELECT count(*) AS n FROM events GROUP BY GROUPING SETS ((window_start, window_end), (window_start, window_end, region))".to_owned(), "GROUPING SETS"),
        (format!("SELECT first_value(amount) AS f FROM events {by}"), "order in which"),
        (format!("SELECT last_value(amount) AS f FROM events {by}"), "order in which"),
        (format!("SELECT array_agg(DISTINCT region) AS f FROM events {by}"), "order in which"),
        (format!("SELECT string_agg(region, ',') AS f FROM events {by}"), "order in which"),
        (format!("SELECT avg(DISTINCT amount) AS f FROM events {by}"), "last digits"),
        (format!("SELECT max(amount * random()) AS r FROM events {by}"), "another result"),
        (format!("SELECT count(*) AS n, now() AS t FROM events {by}"), "another result"),
        (format!("SELECT count(*) AS n FROM events WHERE false {by}"), "needs no event"),
        (format!("SELECT count(*) AS n, count(ts) AS n FROM events {by}"), "one name"),
        (format!("SELECT NULL AS x FROM events {by}"), "no type"),
        (format!("SELECT count(*) AS n FROM other {by}"), "unknown table"),
        (format!("SELECT sum(amuont) AS n FROM events {by}"), "unknown column"),
        ("SELECT 1".to_owned(), "does not read"),
        ("DROP TABLE events".to_owned(), "only SELECT"),
        (String::new(), "empty"),
    ];
    let wrong: Vec<String> = refused
        .iter()
        .filter_map(|(sql, why)| match WindowedAggregate::plan(sql, schema()) {
            Ok(_) => Some(format!("accepted: {sql}")),
            Err(e) if e.kind() == ErrorKind::Config && e.message().contains(why) => None,
            Err(e) => Some(format!("not {why}: {sql}: {e:?}")),
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn errors_point_at_the_place() {
    let shown = |sql: &str| error(sql).message().to_owned();
    assert_eq!(
        shown("SELECT region, count(*) AS n\nFROM events\nGROUP BY region"),
        "the SQL does not group by window_start and window_end\n  3 | GROUP BY region\n    | ^^^^^^^^"
    );
    assert_eq!(
        shown("SELECT count(*) AS n FROM events\nGROUP BY window_start, window_end\nORDER BY n"),
        "ORDER BY cannot be in an aggregate of windows\n  3 | ORDER BY n\n    | ^^^^^^^^"
    );
    assert_eq!(
        shown("SELECT last_value(amount) AS l\nFROM events GROUP BY window_start, window_end"),
        "the result depends on the order in which states are merged: function=last_value\n  \
         1 | SELECT last_value(amount) AS l\n    |        ^^^^^^^^^^"
    );
    assert_eq!(
        shown(
            "SELECT count(*) AS n FROM events\nGROUP BY window_end, date_trunc('day', window_start)"
        ),
        "GROUP BY computes with the window: column=window_start\n  \
         2 | GROUP BY window_end, date_trunc('day', window_start)\n    \
         |                                        ^^^^^^^^^^^^"
    );
}

#[test]
fn events_do_not_have_a_windows_columns() {
    let schema = Arc::new(Schema::new(vec![Field::new(
        "window_end",
        DataType::Int64,
        true,
    )]));
    let error = WindowedAggregate::plan("SELECT 1", schema).unwrap_err();
    assert!(error.message().contains("column=window_end"), "{error}");
}

#[test]
fn a_sessions_key_must_be_grouped_by() {
    let sql = "SELECT window_start, u, region, count(*) AS n
        FROM (SELECT window_start, window_end, user_id AS u, lower(region) AS region FROM events)
        GROUP BY window_start, window_end, u, region";
    let plan = WindowedAggregate::plan(sql, schema()).unwrap();
    assert_eq!(plan.key_columns(&["user_id".to_owned()]).unwrap(), [2]);
    assert_eq!(plan.key_columns(&[]).unwrap(), [0usize; 0]);
    for key in ["region", "u", "amount", "nothing"] {
        let error = plan.key_columns(&[key.to_owned()]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(
            error.message().contains(&format!("column={key}")),
            "{error}"
        );
        assert!(error.message().contains("3 |         GROUP BY"), "{error}");
        assert!(
            error
                .hint_text()
                .is_some_and(|hint| hint.contains("GROUP BY window_start"))
        );
    }
}
