//! The suite for stores over a folder and an object store in memory, and records.

use super::{conformance::base, *};
use crate::stores::ObjectFolder;

async fn stores() -> Vec<(Arc<dyn RecordStore>, Option<tempfile::TempDir>)> {
    let dir = tempfile::tempdir().expect("a folder");
    let local: Arc<dyn RecordStore> = Arc::new(LocalRecords::new(dir.path()));
    let memory = ObjectRecords::probed(ObjectFolder::in_memory().sub("p").expect("a place"));
    vec![
        (local, Some(dir)),
        (
            Arc::new(memory.await.expect("memory creates if absent")),
            None,
        ),
    ]
}

#[tokio::test]
async fn stores_keep_their_promises() {
    for (store, _dir) in stores().await {
        conformance::store(Arc::clone(&store)).await;
        conformance::owners(store).await;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let local = || Arc::new(LocalRecords::new(dir.path()));
    conformance::survives(local(), local).await;
}

#[tokio::test]
async fn our_own_record_is_recognised_after_a_lost_answer() {
    for (store, _dir) in stores().await {
        let owner = Checkpoints::new(Arc::clone(&store), "orders", "main");
        let (claim, _) = owner.claim(None, base()).await.expect("claim");
        let record = claim.following();
        let first = owner.create(&record).await.expect("create");
        assert_eq!(owner.create(&record).await.expect("the same again"), first);
    }
}

#[test]
fn what_an_output_held_is_carried_from_record_to_record() {
    let checkpoints = Checkpoints::new(Arc::new(LocalRecords::new("unused")), "orders", "main");
    let claim = Record::claim(&checkpoints, None, base());
    let mut one = claim.following();
    one.outputs.get_mut("table").expect("the table").prepared = Some(crate::Prepared::default());
    let two = one.following();
    assert_eq!(two.outputs["table"].previous, one.epoch);
    assert_eq!(two.following().outputs["table"].previous, one.epoch);
    assert_eq!(Record::parse(&two.to_bytes()).expect("parse"), two);
}
