//! Debezium's changes of a real table become that table: in every order, however often, whatever is
//! killed, and as PyIceberg and DuckDB read it.

use std::{collections::BTreeMap, os::unix::process::ExitStatusExt, path::Path, process::Command};

use calve_e2e::command;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::orders::{COLUMNS, LAST, Orders, changes};

const POSITIONS: (&str, &str) = ("order_by: [source.lsn]", "");
const VECTORS: (&str, &str) = (
    "order_by: [source.lsn], deletes: vector",
    "format_version: 3,",
);
const BY_ARRIVAL: (&str, &str) = ("deletes: position", "");
const AGAIN: (&str, &str) = ("order_by: [source.lsn], deletes: copy_on_write", "");
const PARTITIONED: (&str, &str) = ("order_by: [source.lsn]", "partition_by: [status],");

#[test]
fn the_table_equals_the_source_s_in_one_batch_and_in_many() {
    let Some(lines) = changes() else { return };
    let root = tempfile::tempdir().expect("a folder");
    let mut digests = Vec::new();
    for (n, (changes, table)) in [POSITIONS, VECTORS, AGAIN, BY_ARRIVAL, PARTITIONED]
        .iter()
        .enumerate()
    {
        // All lines in one commit; in a commit for each batch of 40; a batch each, and so 8 rows in a commit
        // at most.
        for (rows, pieces, commits) in [(830, 830, 1..=1), (1, 40, 21..=21), (8, 1, 100..=830)] {
            let dir = root.path().join(format!("{n}-{pieces}"));
            let mut orders = Orders::new(dir, changes, table);
            if pieces == 1 {
                orders.add(&lines);
                orders = orders.in_epochs_of(rows, 1);
            } else {
                lines.chunks(pieces).for_each(|chunk| orders.add(chunk));
                orders = orders.in_epochs_of(rows, 1 << 20);
            }
            orders.runs();
            let what = format!("{changes} {table} in pieces of {pieces}");
            digests.push(orders.is_last_state(&what));
            let found = orders.commits();
            assert!(commits.contains(&found), "{what}: {found} commits");
            orders.verify();
        }
    }
    assert!(
        digests.iter().all(|digest| *digest == digests[0]),
        "{digests:?}"
    );
}

#[test]
fn the_order_of_events_and_repeats_change_nothing() {
    let Some(lines) = changes() else { return };
    let root = tempfile::tempdir().expect("a folder");
    let mut random = ChaCha8Rng::seed_from_u64(4);
    for (n, (changes, table)) in [POSITIONS, VECTORS, AGAIN, PARTITIONED].iter().enumerate() {
        let mut lines = [&lines[..], &lines[..]].concat();
        lines.shuffle(&mut random);
        let mut orders = Orders::new(root.path().join(n.to_string()), changes, table);
        for chunk in lines.chunks(60) {
            orders.add(chunk);
        }
        orders.runs();
        orders.is_last_state(changes);
        orders.verify();
    }
}

#[test]
fn each_event_twice_changes_nothing() {
    let Some(lines) = changes() else { return };
    let root = tempfile::tempdir().expect("a folder");
    let all = [POSITIONS, VECTORS, AGAIN, BY_ARRIVAL];
    for (n, (changes, table)) in all.iter().enumerate() {
        let twice: Vec<String> = lines
            .iter()
            .flat_map(|line| [line.clone(), line.clone()])
            .collect();
        let mut orders = Orders::new(root.path().join(n.to_string()), changes, table);
        // An odd number: now and then the two are in different commits.
        twice.chunks(333).for_each(|chunk| orders.add(chunk));
        let orders = orders.in_epochs_of(1, 1 << 20);
        orders.runs();
        orders.is_last_state(changes);
        assert_eq!(orders.commits(), 5, "{changes}");
        orders.verify();
    }
}

#[test]
fn a_lost_index_is_made_anew() {
    let Some(lines) = changes() else { return };
    let root = tempfile::tempdir().expect("a folder");
    let mut random = ChaCha8Rng::seed_from_u64(9);
    for (n, (changes, table)) in [POSITIONS, VECTORS, AGAIN].iter().enumerate() {
        let mut lines = lines.clone();
        // Within keys, too: what was deleted is found by the runs of deleted keys alone.
        lines.shuffle(&mut random);
        let mut orders = Orders::new(root.path().join(n.to_string()), changes, table);
        for chunk in lines.chunks(100) {
            orders.add(chunk);
            orders.runs();
            orders.lose_index();
        }
        orders.is_last_state(changes);
    }
}

const KILLS: &[&str] = &[
    "start.before_claim=kill",
    "start.after_claim=kill",
    "write.finish.before_fsync=kill@2",
    "changes.before_run=kill",
    "changes.before_run=kill@3",
    "changes.after_run=kill@2",
    "prepare.after_files=kill@3",
    "checkpoint.before_create=kill@3",
    "checkpoint.after_create=kill@3",
    "commit.before=kill@2",
    "changes.resolved=kill",
    "changes.resolved=kill@4",
    "changes.deletes_written=kill@2",
    "iceberg.commit.before_manifest=kill@3",
    "iceberg.commit.before_metadata=kill@3",
    "iceberg.commit.before_cas=kill@3",
    "iceberg.commit.after_cas=kill@3",
    "iceberg.commit.after_cas=lost@3",
    "iceberg.compact.before_commit=kill",
    "iceberg.compact.before_commit=kill@3",
    "changes.merged=kill",
    "changes.merged=kill@2",
    "changes.merged=error",
    "commit.after=kill@2",
    "commit.between_outputs=kill@3",
    "rejects.before_publish=kill@2",
    "rejects.after_publish=kill@2",
    "checkpoint.retire.after_floor=kill",
    "checkpoint.retire.each=kill",
];

/// Whatever is killed, the table is the source's in the end, and each reject is there once.
fn the_same_whatever_is_killed((changes_as, table): (&str, &str), upkeep: &str) {
    let Some(mut lines) = changes() else { return };
    let root = tempfile::tempdir().expect("a folder");
    // A reject in every other epoch or so.
    let unknown = lines[0].replace("\"op\":\"c\"", "\"op\":\"q\"");
    assert_ne!(unknown, lines[0]);
    let rejects = 8;
    for n in 1..=rejects {
        lines.insert(n * 100, unknown.clone());
    }
    let mut digest = None;
    for (n, fault) in KILLS.iter().enumerate() {
        let mut orders = Orders::new(root.path().join(n.to_string()), changes_as, table);
        orders.add(&lines);
        let orders = orders.in_epochs_of(50, 4096).upkeep(upkeep);
        let (status, log) = (orders.run(fault), orders.log());
        if fault.contains("=kill") {
            assert_eq!(status.signal(), Some(9), "{fault}: not reached: {log}");
            orders.runs();
        } else {
            assert!(status.success(), "{fault}: {log}");
        }
        let found = orders.is_last_state(fault);
        let first = digest.get_or_insert_with(|| found.clone());
        assert_eq!(*first, found, "{fault}");
        assert_eq!(orders.rejects().len(), rejects, "{fault}");
        orders.verify();
    }
}

#[test]
fn the_table_is_the_same_whatever_is_killed_with_positions() {
    the_same_whatever_is_killed(POSITIONS, "settle: 0");
}

#[test]
fn the_table_is_the_same_whatever_is_killed_with_vectors() {
    // At the end, files are written again without the rows that they mark.
    the_same_whatever_is_killed(VECTORS, "settle: 1GiB");
}

#[test]
fn the_table_is_the_same_whatever_is_killed_with_copies() {
    // Commits write files again themselves, so there is less to merge.
    the_same_whatever_is_killed(AGAIN, "min_files: 2");
}

#[test]
fn keys_in_the_place_of_positions() {
    let Some(lines) = changes() else { return };
    let root = tempfile::tempdir().expect("a folder");
    let equality = "order_by: [source.lsn], deletes: equality";
    let tables = ["", "partition_by: [status],", "format_version: 3,"];
    for (n, table) in tables.iter().enumerate() {
        // What is merged has no deletes any more, and PyIceberg would read it.
        let orders = Orders::new(root.path().join(n.to_string()), equality, table);
        let mut orders = orders.upkeep("compact: off");
        let mut lines = lines.clone();
        lines.shuffle(&mut ChaCha8Rng::seed_from_u64(n as u64));
        for chunk in lines.chunks(200) {
            orders.add(chunk);
            orders.runs();
            if n == 1 {
                orders.lose_index();
            }
        }
        orders.is_last_state(table);
        orders.verify();
        // Compaction applies them; then everybody reads the table.
        let catalog = orders.dir.join("lake/catalog.db");
        let done = command(&[
            "table",
            "compact",
            "--catalog",
            &catalog.to_string_lossy(),
            "--all",
            "--min-files",
            "1",
            "shop.orders",
        ]);
        assert!(done.status.success(), "{done:?}");
        orders.by_key = false;
        orders.is_last_state(table);
    }
}

#[test]
fn rows_that_somebody_deletes_by_a_filter_stay_away() {
    let Some(lines) = changes() else { return };
    let root = tempfile::tempdir().expect("a folder");
    let mut orders = Orders::new(root.path().join("filter"), POSITIONS.0, POSITIONS.1);
    for chunk in lines.chunks(200) {
        orders.add(chunk);
    }
    orders.runs();
    let before = orders.read(&["SELECT count(*) FROM t WHERE status = 'Shipped' OR quantity > 4"]);
    let meant = before["queries"][0][0][0].as_u64().expect("a count");
    let catalog = orders.dir.join("lake/catalog.db");
    let done = command(&[
        "table",
        "delete",
        "--catalog",
        &catalog.to_string_lossy(),
        "--where",
        "status = 'Shipped' OR quantity > 4",
        "shop.orders",
    ]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
    assert!(said.contains(&format!("deleted rows={meant},")), "{said}");
    let after = orders.read(&["SELECT count(*) FROM t WHERE status = 'Shipped' OR quantity > 4"]);
    assert_eq!(after["queries"][0], json!([[0]]));
    assert_eq!(after["rows"].as_u64(), Some(LAST.0 - meant));
    orders.verify();
    // The same changes once more: what is there is not older, so the table is the source's again.
    orders.add(&lines);
    orders.runs();
    orders.verify();
    let found = orders.read(&[]);
    assert_eq!(found["rows"], found["keys"], "{found}");
    assert_eq!(found["rows"], LAST.0, "{found}");
}

#[test]
fn files_stay_few_whatever_the_number_of_commits() {
    let Some(lines) = changes() else { return };
    let root = tempfile::tempdir().expect("a folder");
    for (n, (changes, table)) in [POSITIONS, VECTORS].iter().enumerate() {
        // With upkeep, and without.
        let mut files = [0, 0];
        for (off, files) in files.iter_mut().enumerate() {
            let mut orders = Orders::new(root.path().join(format!("{n}-{off}")), changes, table);
            if off == 1 {
                orders = orders.upkeep("compact: off");
            }
            // A run is a commit, at least: the index must be found as it was left.
            for chunk in lines.chunks(42) {
                orders.add(chunk);
                orders.runs();
            }
            orders.is_last_state(changes);
            orders.verify();
            let log = orders.log();
            assert!(!log.contains("anew=true"), "{log}");
            *files = orders.live_files().0;
        }
        assert!(files[0] <= 4 && files[0] < files[1], "{changes}: {files:?}");
    }
}

#[test]
fn a_log_of_changes_and_flags_in_the_place_of_deletes() {
    let Some(lines) = changes() else { return };
    let root = tempfile::tempdir().expect("a folder");
    let mut log = Orders::new(
        root.path().join("log"),
        "mode: append, order_by: [source.lsn]",
        "",
    );
    for chunk in lines.chunks(100) {
        log.add(chunk);
    }
    log.runs();
    let ops = "SELECT _op, count(*) FROM t GROUP BY 1 ORDER BY 1";
    let found = log.read(&[ops, "SELECT count(DISTINCT _order) FROM t"]);
    assert_eq!(found["rows"], 830);
    assert_eq!(
        found["queries"][0],
        json!([["delete", 23], ["insert", 582], ["update", 225]])
    );
    let mut last: BTreeMap<String, Value> = BTreeMap::new();
    let mut deleted = Vec::new();
    let mut changes = Vec::new();
    for line in &lines {
        let mut change: Value = serde_json::from_str(line).expect("a change");
        if change["op"] == "d" {
            // As Postgres sends it where a table's replica identity is the default.
            let id = change["before"]["id"].clone();
            let of_row = |name: &&str| last[&id.to_string()][*name].clone();
            deleted.push(COLUMNS.iter().map(of_row).collect::<Vec<Value>>());
            change["before"] = json!({ "id": id });
        } else {
            let row = change["after"].clone();
            last.insert(row["id"].to_string(), row);
        }
        changes.push(change.to_string());
    }
    deleted.sort_by_key(|row| row[0].as_i64());
    for (n, how) in ["position", "copy_on_write"].iter().enumerate() {
        let mut soft = Orders::new(
            root.path().join(format!("soft-{n}")),
            &format!("mode: soft_delete, order_by: [source.lsn], deletes: {how}"),
            "",
        );
        for chunk in changes.chunks(100) {
            soft.add(chunk);
        }
        // Killed behind the files that hold flagged rows: they are written anew.
        soft.run("changes.deletes_written=kill@3");
        soft.runs();
        let flags =
            "SELECT is_deleted, count(*), sum(quantity)::BIGINT FROM t GROUP BY 1 ORDER BY 1";
        let rows = format!(
            "SELECT {} FROM t WHERE is_deleted ORDER BY id",
            COLUMNS.join(", ")
        );
        let found = soft.read(&[flags, &rows]);
        let live = json!([false, LAST.0, LAST.1]);
        assert_eq!(found["queries"][0][0], live, "{found}");
        assert_eq!(found["queries"][0][1][1], 23, "{found}");
        assert_eq!(found["queries"][1], json!(deleted), "{found}");
        soft.verify();
    }
}

#[test]
fn a_change_without_a_key_is_a_reject() {
    let Some(mut lines) = changes() else { return };
    let root = tempfile::tempdir().expect("a folder");
    let mut orders = Orders::new(root.path().join("rejects"), POSITIONS.0, POSITIONS.1);
    let event = lines[0].replace("\"id\":3107,", "");
    lines.insert(5, event);
    lines.insert(9, lines[0].replace("\"op\":\"c\"", "\"op\":\"q\""));
    orders.add(&lines);
    orders.runs();
    orders.is_last_state("with rejects");
    let log = orders.log();
    assert!(log.contains("rejected     2"), "{log}");
    let found = orders.rejects();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found
            .iter()
            .any(|line| line.contains("the key is null: column=id")),
        "{found:?}"
    );
}

#[test]
fn the_key_is_taken_from_the_messages() {
    let Some(lines) = changes() else { return };
    let root = tempfile::tempdir().expect("a folder");
    let schema = json!({ "type": "struct", "fields": [{ "type": "int32", "field": "id" }] });
    let pair = |(n, line): (usize, &String)| {
        let value: Value = serde_json::from_str(line).expect("a change");
        let of = [&value["after"]["id"], &value["before"]["id"]];
        let id = of.iter().find(|id| id.is_number()).expect("an id");
        let mut key = json!({ "id": id });
        if n % 2 == 0 {
            key = json!({ "schema": schema, "payload": key });
        }
        // The key comes first.
        format!("{{\"key\":{key},\"value\":{line}}}")
    };
    let keyed: Vec<String> = lines.iter().enumerate().map(pair).collect();
    let mut orders = Orders::new(root.path().join("keys"), POSITIONS.0, POSITIONS.1).without_key();
    for chunk in keyed.chunks(300) {
        orders.add(chunk);
        // The later ones know the key from the checkpoints: the index is made anew by it.
        orders.runs();
        orders.lose_index();
    }
    orders.is_last_state("keys of messages");
    assert_eq!(orders.log().matches("key of the changes").count(), 1);

    let mut orders = Orders::new(root.path().join("none"), POSITIONS.0, POSITIONS.1).without_key();
    orders.add(&lines);
    assert_eq!(orders.run("").code(), Some(2));
    let log = orders.log();
    assert!(log.contains("the changes carry no key"), "{log}");
    assert!(log.contains("key: [id]"), "{log}");
}

/// Reads with Spark: all rows of each table, by the first column.
fn spark(specs: &[Value]) -> Value {
    let python = std::env::var("CALVE_SPARK_PYTHON")
        .or_else(|_| std::env::var("CALVE_PYTHON"))
        .expect("run it by `make test-spark`");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("py/spark.py");
    let done = Command::new(python)
        .arg(script)
        .arg(json!(specs).to_string())
        .output()
        .expect("run Python");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "Spark failed: {said}");
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let last = text.lines().last().expect("Spark prints JSON");
    serde_json::from_str(last).expect("Spark prints JSON")
}

#[test]
#[ignore = "needs Java and a large download: make test-spark"]
fn spark_reads_the_same_rows_in_each_delete_mode() {
    let Some(lines) = changes() else { return };
    let root = tempfile::tempdir().expect("a folder");
    let mut tables = Vec::new();
    for (n, (changes, table)) in [POSITIONS, VECTORS, AGAIN].iter().enumerate() {
        // With deletes of every kind left in it.
        let orders = Orders::new(root.path().join(n.to_string()), changes, table);
        let mut orders = orders.upkeep("compact: off");
        for chunk in lines.chunks(60) {
            orders.add(chunk);
        }
        orders.runs();
        orders.is_last_state(changes);
        tables.push(orders);
    }
    let specs: Vec<Value> = tables
        .iter()
        .map(|orders| json!({ "dir": orders.dir, "columns": COLUMNS }))
        .collect();
    let found = spark(&specs);
    let columns = COLUMNS.join(", ");
    for (orders, theirs) in tables
        .iter()
        .zip(found["tables"].as_array().expect("tables"))
    {
        let ours = orders.read(&[&format!("SELECT {columns} FROM t ORDER BY id")]);
        assert_eq!(ours["queries"][0], *theirs, "{}", orders.dir.display());
        assert_eq!(theirs.as_array().map(Vec::len), Some(LAST.0 as usize));
    }
}
