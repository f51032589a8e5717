//! The starting point that is rebuilt must be one that recovery accepts, at the same offsets.

use std::sync::Arc;

use calve_engine::{
    Prepared,
    checkpoint::{Checkpoints, LocalRecords, RecordBase},
};
use calve_lake::iceberg::ShardInfo;
use calve_model::{Position, SourcePartition, recovery::OutputFacts, watermark::END_OF_TIME};

use super::*;

const PIPELINE: &str = "orders";

fn offsets(at: u64) -> Offsets {
    let position = Position {
        offset: at,
        ..Position::default()
    };
    Offsets(BTreeMap::from([(
        SourcePartition::new("a.ndjson"),
        position,
    )]))
}

fn shard(epoch: u64, at: u64) -> ShardInfo {
    ShardInfo {
        pipeline: PIPELINE.into(),
        shard: "main".into(),
        epoch,
        digest: "d".into(),
        offsets_digest: offsets_digest(&offsets(at)),
        watermark: Some(1_000),
        windows_complete: None,
        offsets: Some(offsets(at)),
        record: None,
        snapshot: Some(1),
        trouble: None,
    }
}

fn now(shard: Option<ShardInfo>, rejects: Option<u64>) -> Now {
    Now {
        table: table(shard),
        late: None,
        rejects: OutputFacts {
            identity: None,
            held: rejects.map(|epoch| (Epoch(epoch), "r".into())),
        },
    }
}

fn table(shard: Option<ShardInfo>) -> TableNow {
    TableNow {
        facts: OutputFacts {
            identity: Some("uuid".into()),
            held: shard.as_ref().map(|s| (Epoch(s.epoch), s.digest.clone())),
        },
        in_history: shard.as_ref().map_or(Epoch::NONE, |s| Epoch(s.epoch)),
        shard,
    }
}

/// The pipeline file has no windows.
const NONE: Windows = Windows {
    allowed_lateness: None,
    lose: false,
};
/// It has windows that close 600 us after their end, and what is open may be lost.
const LOSE: Windows = Windows {
    allowed_lateness: Some(600),
    lose: true,
};

fn decided(records: Vec<recovery::RecordFacts>, floor: Epoch, now: &Now) -> Decision {
    recovery::decide(&Facts {
        records,
        floor,
        outputs: now.facts(),
        fingerprints: BTreeMap::from([("sql".to_owned(), "another".to_owned())]),
    })
}

fn table_plan(loaded: &Loaded, now: &Now) -> FromTable {
    match plan(loaded, now, &NONE).expect("a plan") {
        Plan::Table(from) => *from,
        Plan::Record(record) => panic!("not from the record of epoch {}", record.epoch),
    }
}

#[test]
fn a_lost_store_is_rebuilt_from_the_table() {
    for rejects in [None, Some(3), Some(7)] {
        let now = now(Some(shard(7, 10)), rejects);
        let from = table_plan(&Loaded::default(), &now);
        let record = from_table(PIPELINE, now.highest().next(), &from, &now, 0);
        assert_eq!(record.offsets, offsets(10));
        assert_eq!(
            record.outputs[TABLE].previous_offsets,
            offsets_digest(&offsets(10))
        );
        let decision = decided(vec![record.facts("new")], Epoch::NONE, &now);
        let resumed = Decision::Resume {
            newest: Epoch(8),
            commit: Vec::new(),
        };
        assert_eq!(decision, resumed, "rejects={rejects:?}");
    }
}

#[test]
fn a_table_that_was_rolled_back_forgets_and_goes_on_where_it_stands() {
    let mut back = shard(7, 10);
    back.offsets = Some(offsets(4));
    back.trouble = Some("rolled back".into());
    let mut now = now(Some(back), None);
    now.table.in_history = Epoch(3);
    let from = table_plan(&Loaded::default(), &now);
    assert!(from.forget);
    assert_eq!((from.epoch, &from.offsets), (Epoch(3), &offsets(4)));
    let record = from_table(PIPELINE, now.highest().next(), &from, &now, 0);
    assert_eq!(record.epoch, Epoch(8));
    now.table.facts.held = None;
    let decision = decided(vec![record.facts("new")], Epoch::NONE, &now);
    assert!(matches!(decision, Decision::Resume { .. }), "{decision:?}");
}

#[test]
fn what_is_not_known_is_refused() {
    let refused = |now: &Now| {
        plan(&Loaded::default(), now, &NONE)
            .expect_err("refused")
            .to_string()
    };
    assert!(refused(&now(None, None)).contains("holds nothing"));
    let mut expired = shard(7, 10);
    expired.offsets = None;
    assert!(refused(&now(Some(expired), None)).contains("expired"));
    let mut other = shard(7, 10);
    other.offsets = Some(offsets(9));
    assert!(refused(&now(Some(other), None)).contains("not those of the last epoch"));
}

/// A record of epoch 2 in a store, and what is loaded from there.
async fn stored(change: impl FnOnce(&mut Record)) -> (tempfile::TempDir, Checkpoints, String) {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Arc::new(LocalRecords::new(dir.path()));
    let checkpoints = Checkpoints::new(store, PIPELINE, "main");
    let prints = ["format", "sql", "window"].map(|name| (name.to_owned(), "old".to_owned()));
    let base = RecordBase {
        fingerprints: BTreeMap::from(prints),
        identities: BTreeMap::from([(TABLE.into(), Some("uuid".into())), (REJECTS.into(), None)]),
        offsets: Offsets::default(),
        watermarks: Watermarks::new(0),
        previous: BTreeMap::new(),
        floor: Epoch::NONE,
    };
    let (claim, _) = checkpoints.claim(None, base).await.expect("a claim");
    let mut record = claim.following();
    record.offsets = offsets(10);
    record.outputs.get_mut(TABLE).expect("the table").prepared = Some(Prepared::default());
    change(&mut record);
    let digest = checkpoints.create(&record).await.expect("a record");
    (dir, checkpoints, digest)
}

#[tokio::test]
async fn whole_records_say_where_to_go_on() {
    let (_dir, checkpoints, digest) = stored(|_| {}).await;
    let loaded = checkpoints.load().await.expect("records");

    let error = plan(&loaded, &now(None, None), &NONE).expect_err("epoch 2 is not committed");
    assert!(error.message().contains("not committed"), "{error}");

    let mut held = shard(2, 10);
    held.digest = digest;
    let now = now(Some(held), None);
    let Plan::Record(newest) = plan(&loaded, &now, &NONE).expect("a plan") else {
        panic!("the records are whole");
    };
    let record = from_record(PIPELINE, Epoch(3), &newest, false);
    checkpoints.create(&record).await.expect("a record");
    checkpoints.retire(record.epoch).await.expect("retired");
    let loaded = checkpoints.load().await.expect("records");
    let decision = decided(loaded.facts(), loaded.floor, &now);
    assert!(
        matches!(&decision, Decision::Resume { newest: Epoch(3), commit } if commit.is_empty()),
        "{decision:?}"
    );
    assert_eq!(
        loaded.newest().map(|r| r.offsets.position("a.ndjson")),
        Some(10)
    );
}

/// What a record says of one open window with 5 rows in one run.
fn open_windows() -> SavedWindows {
    let text = r#"{ "at": 7, "complete": 0, "panes": { "m": 700, "w": [{ "k": "", "s": 0, "e": 1000, "n": 5 }] },
        "runs": [["a.arrow", [5]]], "held": [["", 0, 1000, [[0, 0, 0, 5]]]] }"#;
    serde_json::from_str(text).expect("open windows as a record holds them")
}

#[tokio::test]
async fn open_windows_go_on_with_what_made_their_rows() {
    let (_dir, checkpoints, digest) = stored(|r| r.windows = Some(open_windows())).await;
    let mut held = shard(2, 10);
    held.digest = digest;
    let now = now(Some(held), None);
    let loaded = checkpoints.load().await.expect("records");
    let Plan::Record(newest) = plan(&loaded, &now, &NONE).expect("a plan") else {
        panic!("the records are whole");
    };

    let record = from_record(PIPELINE, Epoch(3), &newest, false);
    assert_eq!(record.windows, Some(open_windows()));
    let kept: Vec<&str> = record.fingerprints.keys().map(String::as_str).collect();
    assert_eq!(kept, ["sql", "window"], "the format may change");
    let decision = decided(vec![record.facts("new")], Epoch::NONE, &now);
    let Decision::Refuse(Refusal::Changed { what }) = decision else {
        panic!("another SQL does not fit the rows that are held: {decision:?}");
    };
    assert_eq!(what, ["sql"]);

    let record = from_record(PIPELINE, Epoch(3), &newest, true);
    let windows = record.windows.as_ref().expect("they keep the watermark");
    assert_eq!((windows.open(), windows.rows()), (0, 0));
    assert_eq!((windows.runs().count(), windows.complete()), (0, Some(0)));
    assert_eq!(*windows, open_windows().emptied());
    let decision = decided(vec![record.facts("new")], Epoch::NONE, &now);
    assert!(matches!(decision, Decision::Resume { .. }), "{decision:?}");
}

#[tokio::test]
async fn late_rows_that_are_prepared_are_not_lost() {
    let prepared = |record: &mut Record| {
        let part = RecordOutput {
            prepared: Some(Prepared::default()),
            ..RecordOutput::default()
        };
        record.outputs.insert(LATE.to_owned(), part);
    };
    let (_dir, checkpoints, digest) = stored(prepared).await;
    let mut held = shard(2, 10);
    held.digest.clone_from(&digest);
    let mut now = now(Some(held), None);
    let loaded = checkpoints.load().await.expect("records");
    let error = plan(&loaded, &now, &NONE).expect_err("the file names no table for them");
    assert!(error.message().contains("output=late"), "{error}");

    now.late = Some(TableNow::default());
    let error = plan(&loaded, &now, &NONE).expect_err("they are not committed");
    assert!(error.message().contains("output=late"), "{error}");

    let mut held = shard(2, 10);
    held.digest = digest;
    now.late = Some(table(Some(held)));
    let plan = plan(&loaded, &now, &NONE).expect("all is committed");
    assert!(matches!(plan, Plan::Record(_)), "{plan:?}");
}

#[test]
fn a_table_s_history_has_no_open_windows() {
    let mut complete = shard(7, 10);
    complete.windows_complete = Some(900);
    let now = now(Some(complete), None);
    let refused = |windows: &Windows| {
        plan(&Loaded::default(), &now, windows).expect_err("rows would be lost")
    };
    let keep = Windows {
        lose: false,
        ..LOSE
    };
    // Also when the section is gone from the file: the history tells.
    for windows in [&keep, &NONE] {
        let error = refused(windows);
        let hint = error.hint_text().unwrap_or_default();
        assert!(hint.contains("--lose-open-windows"), "{error} {hint}");
    }
    let Plan::Table(from) = plan(&Loaded::default(), &now, &LOSE).expect("they may be lost") else {
        panic!("there are no records");
    };
    let record = from_table(PIPELINE, Epoch(8), &from, &now, 0);
    assert_eq!(
        record.windows,
        Some(SavedWindows::empty(Some(1_000), Some(900)))
    );
    assert!(matches!(
        decided(vec![record.facts("new")], Epoch::NONE, &now),
        Decision::Resume { .. }
    ));
}

#[test]
fn at_the_end_of_a_source_what_is_complete_stays_closed() {
    let mut ended = shard(7, 10);
    (ended.watermark, ended.windows_complete) = (Some(END_OF_TIME), Some(900));
    let Plan::Table(from) =
        plan(&Loaded::default(), &now(Some(ended), None), &LOSE).expect("a plan")
    else {
        panic!("there are no records");
    };
    // Windows close 600 us behind their end: those that end by 900 are closed at 1,500.
    assert_eq!(
        from.windows,
        Some(SavedWindows::empty(Some(1_500), Some(900)))
    );
}

#[test]
fn late_rows_of_later_epochs_do_not_come_twice() {
    let mut now = now(Some(shard(7, 10)), None);
    now.late = Some(table(Some(shard(9, 14))));
    let Plan::Table(from) = plan(&Loaded::default(), &now, &LOSE).expect("a plan") else {
        panic!("there are no records");
    };
    assert_eq!((from.epoch, &from.offsets), (Epoch(9), &offsets(14)));
    let record = from_table(PIPELINE, now.highest().next(), &from, &now, 0);
    let expected = [(TABLE, 7, 10), (LATE, 9, 14)];
    for (name, epoch, at) in expected {
        let part = &record.outputs[name];
        assert_eq!(part.previous, Epoch(epoch), "{name}");
        assert_eq!(
            part.previous_offsets,
            offsets_digest(&offsets(at)),
            "{name}"
        );
    }
    assert!(matches!(
        decided(vec![record.facts("new")], Epoch::NONE, &now),
        Decision::Resume { .. }
    ));

    // Where the table was rolled back, the events since are read again, the late ones too.
    let shard = now.table.shard.as_mut().expect("a shard");
    shard.trouble = Some("rolled back".into());
    let error = plan(&Loaded::default(), &now, &LOSE).expect_err("they would come twice");
    assert!(error.message().contains("late rows"), "{error}");
}

#[test]
fn the_watermark_stays_where_it_was() {
    let mut marks = watermarks(500, &offsets(10), Some(1_000));
    assert_eq!(marks.current(), Some(1_000));
    marks.observe(&SourcePartition::new("late.ndjson"), 0);
    assert_eq!(marks.current(), Some(1_000));
    assert_eq!(watermarks(500, &offsets(10), None).current(), None);
    let mut ended = offsets(10);
    ended.0.values_mut().for_each(|at| at.done = true);
    let mut marks = watermarks(500, &ended, Some(END_OF_TIME));
    assert_eq!(marks.current(), Some(END_OF_TIME));
}
