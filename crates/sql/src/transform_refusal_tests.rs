//! SQL that is refused, and where the errors point.

use super::*;

#[test]
fn what_would_work_per_batch_is_refused() {
    let refused = [
        ("SELECT count(*) FROM events", "aggregates"),
        (
            "SELECT region, max(amount) FROM events GROUP BY region",
            "GROUP BY",
        ),
        ("SELECT DISTINCT region FROM events", "DISTINCT"),
        (
            "SELECT region FROM events UNION SELECT sku FROM events",
            "DISTINCT",
        ),
        ("SELECT user_id FROM events ORDER BY amount", "ORDER BY"),
        ("SELECT user_id FROM events LIMIT 5", "LIMIT"),
        (
            "SELECT row_number() OVER (PARTITION BY region) FROM events",
            "window functions",
        ),
        (
            "SELECT a.ts FROM events a JOIN events b ON a.ts = b.ts",
            "events with events",
        ),
        (
            "SELECT ts FROM events WHERE amount > (SELECT avg(amount) FROM events)",
            "subquery",
        ),
        (
            "SELECT code FROM events RIGHT JOIN regions ON region = code",
            "repeat",
        ),
        (
            "SELECT sku FROM events UNION ALL SELECT code FROM regions",
            "UNION",
        ),
        ("SELECT code FROM regions", "does not read"),
        ("SELECT 1", "does not read"),
        ("SELECT random() AS r FROM events", "random"),
        ("SELECT uuid() AS r FROM events", "uuid"),
        ("SELECT now() AS r FROM events", "now"),
        (
            "SELECT ts FROM events WHERE ts > (SELECT random() FROM regions)",
            "random",
        ),
        ("SELECT current_date AS r FROM events", "current_date"),
        (
            "SELECT ts FROM events; SELECT ts FROM events",
            "more than one",
        ),
        ("", "empty"),
        ("CREATE TABLE t AS SELECT * FROM events", "CREATE"),
        ("DROP TABLE events", "DROP"),
        ("INSERT INTO events SELECT * FROM events", "INSERT"),
        ("DELETE FROM events", "DELETE"),
        ("COPY events TO 'x.parquet'", "COPY"),
        ("SET datafusion.execution.batch_size = 1", "SET"),
        ("EXPLAIN SELECT * FROM events", "EXPLAIN"),
        (
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
            "CREATE",
        ),
        ("SELECT * FROM '/etc/passwd'", "unknown table"),
        ("SELECT * FROM other.events", "unknown table"),
        ("SELECT * FROM information_schema.tables", "unknown table"),
        ("SELECT * FROM generate_series(1, 3)", "cannot be planned"),
        (
            "WITH RECURSIVE r AS (SELECT ts FROM events UNION ALL SELECT ts FROM r) SELECT * FROM r",
            "ecursive",
        ),
        ("SELECT user_id AS a, ts AS a FROM events", "one name"),
        (
            "SELECT e.ts, f.ts FROM (SELECT ts FROM events) AS e JOIN (SELECT 1 AS ts FROM regions) AS f ON true",
            "one name",
        ),
        ("SELECT NULL AS x FROM events", "no type"),
        ("SELECT ts FROM events WHERE sku = $1", "planned"),
    ];
    for (sql, why) in refused {
        let error = error(sql);
        assert_eq!(error.kind(), ErrorKind::Config, "{sql}: {error}");
        assert!(error.message().contains(why), "{sql}: {error}");
    }
}

#[test]
fn errors_point_at_the_place() {
    let shown = |sql: &str| {
        let error = error(sql);
        format!(
            "{}\nhint: {}",
            error.message(),
            error.hint_text().unwrap_or("none")
        )
    };
    assert_eq!(
        shown("SELECT user_id,\n  regoin\nFROM events"),
        "unknown column: column=regoin\n  2 |   regoin\n    |   ^^^^^^\nhint: did you mean `region`?"
    );
    assert_eq!(
        shown("SELECT ts FROM evnts"),
        "unknown table: table=evnts\n  1 | SELECT ts FROM evnts\n    |                ^^^^^\n\
         hint: did you mean `events`?"
    );
    assert_eq!(
        shown("SELECT rond(amount, 2) FROM events"),
        "unknown function: function=rond\n  1 | SELECT rond(amount, 2) FROM events\n    |        ^^^^\n\
         hint: did you mean `round`?"
    );
    assert_eq!(
        shown("SELECT ts\nFROM events\nGROUP  BY ts")
            .split("\nhint")
            .next()
            .unwrap(),
        "aggregates and GROUP BY would work on one batch at a time, not on all events\n  \
         3 | GROUP  BY ts\n    | ^^^^^^^^^"
    );
    assert_eq!(
        shown("SELECT ts FROM events WHERE")
            .split("\nhint")
            .next()
            .unwrap(),
        "the SQL does not parse: expected: an expression, found: EOF"
    );
    assert_eq!(
        shown("SELECT ts,\n\tamount amount amount FROM events")
            .split("\nhint")
            .next()
            .unwrap(),
        "the SQL does not parse: expected: end of statement, found: amount\n  \
         2 | \tamount amount amount FROM events\n    | \t              ^"
    );
}
