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
    let held = shard.as_ref().map(|s| (Epoch(s.epoch), s.digest.clone()));
    Now {
        table: OutputFacts {
            identity: Some("uuid".into()),
            held,
        },
        rejects: OutputFacts {
            identity: None,
            held: rejects.map(|epoch| (Epoch(epoch), "r".into())),
        },
        in_history: shard.as_ref().map_or(Epoch::NONE, |s| Epoch(s.epoch)),
        shard,
    }
}

fn decided(records: Vec<recovery::RecordFacts>, floor: Epoch, now: &Now) -> Decision {
    recovery::decide(&Facts {
        records,
        floor,
        outputs: BTreeMap::from([
            (TABLE.to_owned(), now.table.clone()),
            (REJECTS.to_owned(), now.rejects.clone()),
        ]),
        fingerprints: BTreeMap::from([("sql".to_owned(), "another".to_owned())]),
    })
}

fn table_plan(loaded: &Loaded, now: &Now) -> FromTable {
    match plan(loaded, now).expect("a plan") {
        Plan::Table(from) => from,
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
    now.in_history = Epoch(3);
    let from = table_plan(&Loaded::default(), &now);
    assert!(from.forget);
    assert_eq!((from.epoch, &from.offsets), (Epoch(3), &offsets(4)));
    let record = from_table(PIPELINE, now.highest().next(), &from, &now, 0);
    assert_eq!(record.epoch, Epoch(8));
    now.table.held = None;
    let decision = decided(vec![record.facts("new")], Epoch::NONE, &now);
    assert!(matches!(decision, Decision::Resume { .. }), "{decision:?}");
}

#[test]
fn what_is_not_known_is_refused() {
    let refused = |now: &Now| {
        plan(&Loaded::default(), now)
            .expect_err("refused")
            .to_string()
    };
    assert!(refused(&now(None, None)).contains("holds nothing"));
    let mut parquet = now(None, None);
    parquet.table.held = Some((Epoch(2), "d".into()));
    assert!(refused(&parquet).contains("does not keep offsets"));
    let mut expired = shard(7, 10);
    expired.offsets = None;
    assert!(refused(&now(Some(expired), None)).contains("expired"));
    let mut other = shard(7, 10);
    other.offsets = Some(offsets(9));
    assert!(refused(&now(Some(other), None)).contains("not those of the last epoch"));
}

#[tokio::test]
async fn whole_records_say_where_to_go_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Arc::new(LocalRecords::new(dir.path()));
    let checkpoints = Checkpoints::new(store, PIPELINE, "main");
    let base = RecordBase {
        fingerprints: BTreeMap::from([("sql".into(), "old".into())]),
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
    let digest = checkpoints.create(&record).await.expect("a record");
    let loaded = checkpoints.load().await.expect("records");

    let error = plan(&loaded, &now(None, None)).expect_err("epoch 2 is not committed");
    assert!(error.message().contains("not committed"), "{error}");

    let mut held = shard(2, 10);
    held.digest = digest;
    let now = now(Some(held), None);
    let Plan::Record(newest) = plan(&loaded, &now).expect("a plan") else {
        panic!("the records are whole");
    };
    let after = newest.following();
    let (epoch, offsets, marks) = (after.epoch, after.offsets, after.watermarks);
    let record = starting_point(PIPELINE, epoch, offsets, marks, after.outputs);
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
