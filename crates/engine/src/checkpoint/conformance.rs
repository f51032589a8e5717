//! What every [`RecordStore`] must do: a suite for the tests of each implementation, in whichever
//! crate that is. It writes below the folders `suite` and `orders`.

use std::{collections::BTreeMap, sync::Arc};

use calve_model::{Epoch, Offsets, Watermarks};
use futures::future::join_all;

use super::{Checkpoints, RecordBase, RecordStore};
use crate::{durable::Created, error::ErrorKind};

/// A base without anything in it.
pub fn base() -> RecordBase {
    RecordBase {
        fingerprints: BTreeMap::new(),
        identities: BTreeMap::from([("table".to_owned(), None)]),
        offsets: Offsets::default(),
        watermarks: Watermarks::new(0),
        previous: BTreeMap::new(),
        floor: Epoch::NONE,
    }
}

async fn read(store: &Arc<dyn RecordStore>, name: &str) -> Option<Vec<u8>> {
    store.get(name).await.expect("get")
}

/// Create-if-absent, read, list, replace, delete.
///
/// # Panics
/// When the store does not keep a promise.
pub async fn store(store: Arc<dyn RecordStore>) {
    let create = async |name: &str, bytes: &[u8]| store.create(name, bytes.to_vec()).await;
    assert_eq!(read(&store, "suite/b").await, None);
    assert!(store.list("suite").await.expect("list").is_empty());
    let first = create("suite/b", b"1").await.expect("create");
    let second = create("suite/b", b"2").await.expect("create again");
    assert_eq!((first, second), (Created::Yes, Created::Exists));
    assert_eq!(read(&store, "suite/b").await.as_deref(), Some(&b"1"[..]));
    store.put("suite/b", b"3".to_vec()).await.expect("replace");
    store.put("suite/a", Vec::new()).await.expect("put anew");
    assert_eq!(read(&store, "suite/b").await.as_deref(), Some(&b"3"[..]));
    assert_eq!(read(&store, "suite/a").await.as_deref(), Some(&b""[..]));

    // A record may be large, and a neighbour's name may begin with ours.
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    create("suite/c", &large).await.expect("a large one");
    assert_eq!(read(&store, "suite/c").await, Some(large));
    create("suites/d", b"x").await.expect("a neighbour");
    let mut names = store.list("suite").await.expect("list");
    names.sort();
    assert_eq!(names, ["a", "b", "c"]);
    let folders = store.folders("").await.expect("folders");
    let found = |name: &str| folders.iter().filter(|folder| *folder == name).count();
    assert_eq!((found("suite"), found("suites"), found("a")), (1, 1, 0));

    for name in ["suite/b", "suite/b", "suite/c", "suites/d", "suite/a"] {
        store.delete(name).await.expect("delete");
    }
    assert_eq!(read(&store, "suite/b").await, None);
    assert!(store.list("suite").await.expect("list").is_empty());

    // Of many that create one name at once, one is told that it is its own.
    let tries = (0..8_u8).map(|n| store.create("suite/race", vec![n]));
    let outcomes = join_all(tries).await;
    let won: Vec<usize> = (0..8)
        .filter(|n| matches!(outcomes[*n], Ok(Created::Yes)))
        .collect();
    assert_eq!(won.len(), 1, "{outcomes:?}");
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(read(&store, "suite/race").await, Some(vec![won[0] as u8]));
    store.delete("suite/race").await.expect("delete");
}

/// The fence between two owners, and an answer that was lost.
///
/// # Panics
/// When the older owner is not fenced.
pub async fn owners(store: Arc<dyn RecordStore>) {
    let old = Checkpoints::new(Arc::clone(&store), "orders", "main");
    let (claim, _) = old.claim(None, base()).await.expect("the first claim");
    let first = claim.following();
    let digest = old.create(&first).await.expect("the owner prepares");
    assert_eq!(old.create(&first).await.expect("the same again"), digest);

    let new = Checkpoints::new(Arc::clone(&store), "orders", "main");
    let loaded = new.load().await.expect("load");
    assert_eq!(loaded.newest().expect("a record").epoch, Epoch(2));
    let (taken, _) = new
        .claim(loaded.newest(), base())
        .await
        .expect("the takeover");
    assert_eq!(taken.epoch, Epoch(3));
    let next = first.following();
    let fenced = async || old.create(&next).await.expect_err("the old owner").kind();
    assert_eq!(fenced().await, ErrorKind::Fenced);

    // Asleep for long: its epoch was taken, committed and deleted meanwhile.
    let later = taken.following();
    new.create(&later).await.expect("the new owner goes on");
    new.retire(later.epoch).await.expect("retire");
    assert_eq!(fenced().await, ErrorKind::Fenced);

    // It could take the name, since that was free; nobody minds the record.
    let loaded = new.load().await.expect("load");
    let epochs: Vec<Epoch> = loaded.records.iter().map(|(r, _)| r.epoch).collect();
    assert_eq!((epochs, loaded.floor), (vec![later.epoch], taken.epoch));
    new.reset().await.expect("reset");
    let left = new.load().await.expect("load");
    assert!(left.records.is_empty());
    assert_eq!(left.floor, later.epoch, "the floor stays");
}

/// What was written is there for who opens the store anew.
///
/// # Panics
/// When it is not.
pub async fn survives<S: RecordStore + 'static>(store: Arc<S>, again: impl Fn() -> Arc<S>) {
    store.put("suite/kept", b"1".to_vec()).await.expect("put");
    drop(store);
    let again = again();
    let found = again.get("suite/kept").await.expect("get");
    assert_eq!(found.as_deref(), Some(&b"1"[..]));
    let outcome = again.create("suite/kept", b"2".to_vec()).await;
    assert_eq!(outcome.expect("create"), Created::Exists);
    again.delete("suite/kept").await.expect("delete");
}
