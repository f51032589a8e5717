//! One suite for every store, and the fence between two owners.

use std::collections::BTreeMap;

use super::*;
use crate::{error::ErrorKind, stores::ObjectFolder};

fn base() -> RecordBase {
    RecordBase {
        fingerprints: BTreeMap::new(),
        identities: BTreeMap::from([("table".to_owned(), None)]),
        offsets: Offsets::default(),
        watermarks: Watermarks::new(0),
        previous: BTreeMap::new(),
        floor: Epoch::NONE,
    }
}

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
async fn a_store_keeps_its_promises() {
    for (store, _dir) in stores().await {
        assert_eq!(store.get("a/b").await.expect("get"), None);
        assert!(store.list("a").await.expect("list").is_empty());
        assert_eq!(
            store.create("a/b", b"1".to_vec()).await.expect("create"),
            Created::Yes
        );
        assert_eq!(
            store.create("a/b", b"2".to_vec()).await.expect("create"),
            Created::Exists
        );
        assert_eq!(
            store.get("a/b").await.expect("get").as_deref(),
            Some(b"1".as_slice())
        );
        store.put("a/b", b"3".to_vec()).await.expect("put");
        assert_eq!(
            store.get("a/b").await.expect("get").as_deref(),
            Some(b"3".as_slice())
        );
        assert_eq!(store.list("a").await.expect("list"), ["b"]);
        assert_eq!(store.folders("").await.expect("folders"), ["a"]);
        store.delete("a/b").await.expect("delete");
        store.delete("a/b").await.expect("delete again");
        assert_eq!(store.get("a/b").await.expect("get"), None);
    }
}

#[tokio::test]
async fn of_two_owners_the_older_is_fenced() {
    for (store, _dir) in stores().await {
        let old = Checkpoints::new(Arc::clone(&store), "orders", "main");
        let (claim, _) = old.claim(None, base()).await.expect("the first claim");
        let first = claim.following();
        old.create(&first).await.expect("the owner prepares");

        let new = Checkpoints::new(Arc::clone(&store), "orders", "main");
        let loaded = new.load().await.expect("load");
        assert_eq!(loaded.newest().expect("a record").epoch, Epoch(2));
        let (taken, _) = new
            .claim(loaded.newest(), base())
            .await
            .expect("the takeover");
        assert_eq!(taken.epoch, Epoch(3));

        let error = old
            .create(&first.following())
            .await
            .expect_err("the old owner is fenced");
        assert_eq!(error.kind(), ErrorKind::Fenced);

        // Asleep for long: its epoch was taken, committed and deleted meanwhile.
        let later = taken.following();
        new.create(&later).await.expect("the new owner goes on");
        new.retire(later.epoch).await.expect("retire");
        let error = old
            .create(&first.following())
            .await
            .expect_err("still fenced");
        assert_eq!(error.kind(), ErrorKind::Fenced);

        // It could take the name, since that was free; nobody minds the record.
        let loaded = new.load().await.expect("load");
        let epochs: Vec<Epoch> = loaded.records.iter().map(|(r, _)| r.epoch).collect();
        assert_eq!((epochs, loaded.floor), (vec![later.epoch], taken.epoch));
    }
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
