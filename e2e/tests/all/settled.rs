//! Files are written again without their deleted rows when there is time: when a run has ended, and when
//! nothing comes.

use std::{fs, path::PathBuf};

use calve_e2e::{Running, within};

use crate::orders::{Orders, changes};

const DELETES: [(&str, &str); 3] = [
    ("order_by: [source.lsn]", "partition_by: [status],"),
    (
        "order_by: [source.lsn], deletes: vector",
        "format_version: 3,",
    ),
    ("order_by: [source.lsn], deletes: equality", ""),
];
/// Little is merged after a commit.
const SELDOM: &str = "min_files: 99, deleted_share: 1";
const SETTLED: &str = "wrote files again without their deleted rows";

#[test]
fn a_run_that_has_ended_leaves_no_deletes() {
    let Some(lines) = changes() else { return };
    let root = tempfile::tempdir().expect("a folder");
    for (n, (changes, table)) in DELETES.iter().enumerate() {
        for settles in [true, false] {
            let dir = root.path().join(format!("{n} {settles}"));
            let more = if settles { "" } else { ", settle: 0" };
            let orders = Orders::new(dir, changes, table).upkeep(&format!("{SELDOM}{more}"));
            let mut orders = orders.in_epochs_of(50, 4096);
            // Two runs: what the first one has moved is found by the second.
            for half in lines.chunks(415) {
                half.chunks(100).for_each(|chunk| orders.add(chunk));
                orders.runs();
            }
            // Then PyIceberg reads it, too.
            orders.by_key &= !settles;
            let (_, deletes) = orders.live_files();
            assert_eq!(deletes == 0, settles, "{changes}: {}", orders.log());
            assert_eq!(orders.log().contains(SETTLED), settles, "{changes}");
            orders.is_last_state(changes);
            orders.verify();
            assert!(!orders.log().contains("anew=true"), "{}", orders.log());
        }
    }
}

fn followed(dir: PathBuf, changes: &str, table: &str) -> Orders {
    Orders::new(dir, changes, table)
        .in_epochs_of(50, 4096)
        .edit("every: 1h", "every: 100ms")
        .edit("*.jsonl\"", "*.jsonl\", follow: true, poll_interval: 20ms")
        .upkeep(&format!("{SELDOM}, settle_after: 200ms"))
}

#[test]
fn a_source_that_is_quiet_leaves_no_deletes_and_goes_on() {
    let Some(lines) = changes() else { return };
    let root = tempfile::tempdir().expect("a folder");
    for (n, (changes, table)) in DELETES[..2].iter().enumerate() {
        let mut orders = followed(root.path().join(n.to_string()), changes, table);
        let file = orders.dir.join("orders.yaml");
        fs::write(orders.dir.join("log"), "").expect("an empty log");
        let running = Running::start(&orders.dir, &file, "", &[]);
        for (times, half) in lines.chunks(415).enumerate() {
            half.chunks(100).for_each(|chunk| orders.add(chunk));
            let settled = || {
                let log = orders.log();
                let last = log.rfind(SETTLED);
                log.matches(SETTLED).count() > times && last > log.rfind(" committed ")
            };
            assert!(within(settled), "{changes}: {}", orders.log());
            assert!(within(|| orders.live_files().1 == 0), "{}", orders.log());
        }
        assert!(running.terminate().success(), "{}", orders.log());
        orders.is_last_state(changes);
        orders.verify();
        assert!(!orders.log().contains("anew=true"), "{}", orders.log());
    }
}

#[test]
fn a_run_that_is_stopped_while_it_settles_ends_soon() {
    let Some(lines) = changes() else { return };
    let root = tempfile::tempdir().expect("a folder");
    let (changes, table) = DELETES[0];
    // A step for each table partition.
    let mut orders = followed(root.path().join("p"), changes, table)
        .edit("commit: {", "commit: { target_file_size: 1KiB,");
    lines.chunks(100).for_each(|chunk| orders.add(chunk));
    let file = orders.dir.join("orders.yaml");
    let slow = "iceberg.compact.before_commit=stall=1@1+";
    let running = Running::start(&orders.dir, &file, slow, &[]);
    assert!(
        within(|| orders.log().contains(SETTLED)),
        "{}",
        orders.log()
    );
    assert!(running.terminate().success(), "{}", orders.log());
    let steps = orders.log().matches(SETTLED).count();
    assert!(steps <= 2, "{}", orders.log());
    assert!(orders.live_files().1 > 0, "{}", orders.log());
    orders.is_last_state(changes);
    orders.verify();
}
