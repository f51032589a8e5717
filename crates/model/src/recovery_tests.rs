//! The decision table, and an adversary that kills anywhere: a model of the protocol whose states
//! are all reachable by crashes must never be refused, and must end with every epoch held once.

use super::*;
use proptest::prelude::*;

fn digest(epoch: u64) -> String {
    format!("d{epoch}")
}

fn record(epoch: u64, previous: u64, has_content: bool) -> RecordFacts {
    let part = RecordOutputFacts {
        identity: Some("t1".into()),
        previous: Epoch(previous),
        has_content,
    };
    RecordFacts {
        epoch: Epoch(epoch),
        digest: digest(epoch),
        fingerprints: BTreeMap::from([("sql".to_owned(), "a".to_owned())]),
        outputs: BTreeMap::from([("table".to_owned(), part)]),
    }
}

fn facts(records: Vec<RecordFacts>, held: Option<u64>) -> Facts {
    let output = OutputFacts {
        identity: Some("t1".into()),
        held: held.map(|epoch| (Epoch(epoch), digest(epoch))),
    };
    Facts {
        records,
        floor: Epoch::NONE,
        outputs: BTreeMap::from([("table".to_owned(), output)]),
        fingerprints: BTreeMap::from([("sql".to_owned(), "a".to_owned())]),
    }
}

fn resume(newest: u64, commit: &[u64]) -> Decision {
    let commit = commit
        .iter()
        .map(|epoch| (Epoch(*epoch), "table".to_owned()))
        .collect();
    Decision::Resume {
        newest: Epoch(newest),
        commit,
    }
}

#[test]
fn nothing_anywhere_starts() {
    assert_eq!(decide(&facts(vec![], None)), Decision::Start);
}

#[test]
fn prepared_epochs_are_committed_in_order() {
    let records = vec![
        record(1, 0, false),
        record(2, 0, true),
        record(3, 2, false),
        record(4, 2, true),
    ];
    assert_eq!(decide(&facts(records.clone(), None)), resume(4, &[2, 4]));
    assert_eq!(decide(&facts(records.clone(), Some(2))), resume(4, &[4]));
    assert_eq!(decide(&facts(records, Some(4))), resume(4, &[]));
}

#[test]
fn what_is_prepared_for_an_output_that_is_gone_is_not_forgotten() {
    let mut with_late = record(2, 0, true);
    let late = RecordOutputFacts {
        has_content: true,
        ..RecordOutputFacts::default()
    };
    with_late.outputs.insert("late".to_owned(), late);
    let decision = decide(&facts(vec![with_late.clone()], Some(2)));
    let Decision::Refuse(Refusal::OutputNotConfigured { output, epoch }) = decision else {
        panic!("{decision:?}");
    };
    assert_eq!((output.as_str(), epoch), ("late", Epoch(2)));
    // Where it held nothing for it, the output may go.
    with_late.outputs.get_mut("late").unwrap().has_content = false;
    assert_eq!(decide(&facts(vec![with_late], Some(2))), resume(2, &[]));
}

#[test]
fn an_empty_store_behind_a_table_is_refused() {
    let decision = decide(&facts(vec![], Some(3)));
    assert!(matches!(
        decision,
        Decision::Refuse(Refusal::StoreBehind {
            held: Epoch(3),
            newest: Epoch(0),
            ..
        })
    ));
}

#[test]
fn an_old_copy_of_the_store_is_refused() {
    let decision = decide(&facts(vec![record(2, 1, true)], Some(3)));
    assert!(matches!(
        decision,
        Decision::Refuse(Refusal::StoreBehind {
            held: Epoch(3),
            newest: Epoch(2),
            ..
        })
    ));
}

#[test]
fn a_rolled_back_table_is_refused_unless_its_records_are_there() {
    let records = vec![record(4, 3, true), record(5, 4, true)];
    assert_eq!(decide(&facts(records.clone(), Some(3))), resume(5, &[4, 5]));
    let decision = decide(&facts(records.clone(), Some(2)));
    assert!(matches!(
        decision,
        Decision::Refuse(Refusal::OutputBehind {
            held: Epoch(2),
            needed: Epoch(3),
            ..
        })
    ));
    assert!(matches!(
        decide(&facts(records, None)),
        Decision::Refuse(Refusal::OutputBehind { .. })
    ));
    let claims_only = vec![record(5, 4, false)];
    assert!(matches!(
        decide(&facts(claims_only, Some(3))),
        Decision::Refuse(Refusal::OutputBehind { .. })
    ));
}

#[test]
fn a_gap_in_the_records_is_refused() {
    let decision = decide(&facts(
        vec![record(1, 0, true), record(3, 1, true)],
        Some(1),
    ));
    assert_eq!(decision, Decision::Refuse(Refusal::MissingRecord(Epoch(2))));
}

#[test]
fn a_floor_without_records_is_refused() {
    let mut facts = facts(vec![], None);
    facts.floor = Epoch(4);
    assert_eq!(
        decide(&facts),
        Decision::Refuse(Refusal::MissingRecord(Epoch(5)))
    );
}

#[test]
fn another_table_of_the_same_name_is_refused() {
    let mut facts = facts(vec![record(1, 0, true)], None);
    facts.outputs.get_mut("table").expect("the table").identity = Some("t2".into());
    assert!(matches!(
        decide(&facts),
        Decision::Refuse(Refusal::OtherIdentity { .. })
    ));
    facts.outputs.get_mut("table").expect("the table").identity = None;
    assert!(matches!(
        decide(&facts),
        Decision::Refuse(Refusal::OtherIdentity { now: None, .. })
    ));
}

#[test]
fn another_digest_is_refused() {
    let mut facts = facts(vec![record(1, 0, true)], Some(1));
    facts.outputs.get_mut("table").expect("the table").held = Some((Epoch(1), "other".into()));
    assert!(matches!(
        decide(&facts),
        Decision::Refuse(Refusal::DigestDiffers { .. })
    ));
}

#[test]
fn a_changed_fingerprint_is_refused_by_name() {
    let mut facts = facts(vec![record(1, 0, true)], Some(1));
    facts.fingerprints.insert("sql".into(), "b".into());
    facts.fingerprints.insert("new".into(), "x".into());
    assert_eq!(
        decide(&facts),
        Decision::Refuse(Refusal::Changed {
            what: vec!["sql".into()]
        })
    );
}

proptest! {
    /// Any mix of claims, checkpoints, commits, deletions of old records and crashes: a start is
    /// never refused, and commits each content epoch exactly once, in order.
    #[test]
    fn an_adversary_that_kills_changes_nothing(steps in proptest::collection::vec(0u8..5, 1..80)) {
        let mut records: Vec<RecordFacts> = Vec::new();
        let mut held: Vec<u64> = Vec::new();
        let mut contents: Vec<u64> = Vec::new();
        for step in steps {
            let newest = records.last().map_or(0, |r| r.epoch.0);
            let last_content = contents.last().copied().unwrap_or(0);
            match step {
                0 => records.push(record(newest + 1, last_content, false)),
                1 | 2 => {
                    records.push(record(newest + 1, last_content, true));
                    contents.push(newest + 1);
                }
                3 => {
                    // The committer gets one further, or dies before it does.
                    if let Some(next) = contents.iter().find(|c| Some(*c) > held.last()) {
                        held.push(*next);
                    }
                }
                _ => {
                    // Records that are held, but for the newest, may be deleted, oldest first.
                    while records.len() > 1
                        && contents.iter().all(|c| *c > records[0].epoch.0 || held.contains(c))
                    {
                        records.remove(0);
                    }
                }
            }
            let decision = decide(&facts(records.clone(), held.last().copied()));
            match decision {
                Decision::Start => prop_assert!(records.is_empty() && held.is_empty()),
                Decision::Refuse(refusal) => prop_assert!(false, "refused: {refusal}"),
                Decision::Resume { newest, commit } => {
                    prop_assert_eq!(newest, records.last().expect("a record").epoch);
                    let mut after = held.clone();
                    after.extend(commit.iter().map(|(epoch, _)| epoch.0));
                    prop_assert_eq!(&after, &contents);
                }
            }
        }
    }
}
