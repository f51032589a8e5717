//! What a killed process, a failing disk, a power cut and a flipped bit leave behind is the state of
//! a commit, or is noticed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::super::files::HOOK;
use super::super::{Keys, Store};
use super::{Map, Random, TINY, all, change, key};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        // Runs are never changed, unless by a test, which takes care.
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "run")
        {
            fs::hard_link(entry.path(), to.join(entry.file_name())).unwrap();
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// States by the meta of their commit; `None` is the empty store.
type States = BTreeMap<Option<u32>, Map>;

#[derive(Debug)]
struct Damaged;

/// What the folder holds: a state that must equal one of `states`, which it names, or damage.
fn opened(folder: &Path, states: &States) -> Result<Option<u32>, Damaged> {
    let store = match Store::open(folder, TINY) {
        Err(error) if error.kind() == ErrorKind::InvalidData => return Err(Damaged),
        store => store.unwrap(),
    };
    let meta = store
        .meta()
        .map(|meta| u32::from_le_bytes(meta.try_into().unwrap()));
    let expected = states.get(&meta).expect("a commit that was asked for");
    assert!(
        all(&store).unwrap() == *expected,
        "the state of commit {meta:?} is another"
    );
    Ok(meta)
}

/// What a load has done so far.
#[derive(Default, Clone)]
struct History {
    states: States,
    /// The last commit that has returned, and the one under way, if there is one.
    before: Option<u32>,
    after: Option<u32>,
}

impl History {
    fn check(&self, folder: &Path) {
        let found = opened(folder, &self.states).expect("no damage by killing");
        assert!(
            found == self.before || found == self.after,
            "{found:?}, not {:?} or {:?}",
            self.before,
            self.after
        );
    }
}

/// Runs a load of some commits that writes runs, merges them, and clears the store twice. Ends at the
/// first error.
fn load(folder: &Path, history: &RefCell<History>, commits: u32) -> io::Result<()> {
    let mut random = Random(11);
    let mut map = Map::new();
    history.borrow_mut().states.insert(None, Map::new());
    let mut store = Store::open(folder, TINY)?;
    for commit in 0..commits {
        let count = [3, 40, 900, 150][commit as usize % 4];
        change(&mut store, &mut map, &mut random, count, 1_500)?;
        let clear = commit == 5 || commit == 10;
        let after = if clear { None } else { Some(commit) };
        history.borrow_mut().after = after;
        if clear {
            store.clear()?;
            map.clear();
        } else {
            history.borrow_mut().states.insert(after, map.clone());
            store.commit(&commit.to_le_bytes())?;
        }
        history.borrow_mut().before = after;
    }
    Ok(())
}

struct Unhook;

impl Drop for Unhook {
    fn drop(&mut self) {
        HOOK.set(None);
    }
}

#[test]
fn killed_before_any_change_of_a_file_it_finds_the_last_commit_or_the_one_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let history = Rc::new(RefCell::new(History::default()));
    let (seen, source) = (history.clone(), folder.path().to_path_buf());
    let mut random = Random(5);
    let steps_seen = Rc::new(RefCell::new(BTreeMap::new()));
    let kinds = steps_seen.clone();
    let _unhook = Unhook;
    HOOK.set(Some(Box::new(move |what, _| {
        *kinds.borrow_mut().entry(what.to_owned()).or_insert(0) += 1;
        if random.below(30) > 0 && what != "truncate" {
            return Ok(());
        }
        let copied = tempfile::tempdir().unwrap();
        copy(&source, copied.path());
        let history = seen.borrow().clone();
        let seed = random.next();
        // Another thread: the hook is this thread's.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                history.check(copied.path());
                goes_on(copied.path(), seed);
            });
        });
        Ok(())
    })));
    load(folder.path(), &history, 40).unwrap();
    let kinds = steps_seen.borrow();
    for what in ["create", "write", "truncate", "rename", "remove"] {
        assert!(
            kinds.get(what).is_some_and(|times| *times > 5),
            "too little of {what}: {kinds:?}"
        );
    }
}

/// The folder, reopened, goes on working after a kill.
fn goes_on(folder: &Path, seed: u64) {
    let mut store = Store::open(folder, TINY).unwrap();
    let mut map = all(&store).unwrap();
    change(&mut store, &mut map, &mut Random(seed), 300, 1_500).unwrap();
    store.commit(b"on").unwrap();
    assert_eq!(all(&store).unwrap(), map);
    drop(store);
    assert_eq!(all(&Store::open(folder, TINY).unwrap()).unwrap(), map);
}

#[test]
fn a_failing_disk_leaves_a_store_that_refuses_and_opens_again() {
    for fail_at in (0..1_200_u64).step_by(31) {
        let folder = tempfile::tempdir().unwrap();
        let history = RefCell::new(History::default());
        let mut left = fail_at;
        let unhook = Unhook;
        HOOK.set(Some(Box::new(move |_, _| {
            left = left
                .checked_sub(1)
                .ok_or_else(|| io::Error::from(ErrorKind::StorageFull))?;
            Ok(())
        })));
        let result = load(folder.path(), &history, 24);
        drop(unhook);
        if result.is_ok() {
            assert!(fail_at > 100, "the load has too few steps");
            break;
        }
        assert_eq!(result.unwrap_err().kind(), ErrorKind::StorageFull);
        history.into_inner().check(folder.path());
    }
}

#[test]
fn after_an_error_everything_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), TINY).unwrap();
    store.put(b"a", b"1").unwrap();
    store.commit(b"first").unwrap();
    store.put(b"a", b"2").unwrap();
    let unhook = Unhook;
    HOOK.set(Some(Box::new(|_, _| Err(ErrorKind::StorageFull.into()))));
    assert_eq!(
        store.commit(b"second").unwrap_err().kind(),
        ErrorKind::StorageFull
    );
    drop(unhook);
    assert!(
        store.put(b"b", b"1").is_err()
            && store.commit(b"third").is_err()
            && store.get(&Keys::new()).is_err()
    );
    drop(store);
    let store = Store::open(folder.path(), TINY).unwrap();
    assert_eq!(
        (store.meta(), all(&store).unwrap()[&b"a"[..]].as_slice()),
        (Some(&b"first"[..]), &b"1"[..])
    );
}

#[test]
fn any_lost_suffix_of_any_file_gives_an_earlier_commit_or_damage() {
    let folder = tempfile::tempdir().unwrap();
    let history = RefCell::new(History::default());
    load(folder.path(), &history, 30).unwrap();
    let states = history.into_inner().states;
    let mut random = Random(3);
    let (mut found_earlier, mut damaged) = (0, 0);
    let files: Vec<PathBuf> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(files.len() > 20, "too few runs for a test: {}", files.len());
    for file in &files {
        let bytes = fs::metadata(file).unwrap().len();
        let is_log = file.extension().is_some_and(|extension| extension == "log");
        // Manifest and log at every byte of their beginning and end; of runs some.
        let some: Vec<u64> = if is_log || file.ends_with("manifest") {
            (0..bytes.min(500))
                .chain(bytes.saturating_sub(100).max(500)..bytes)
                .collect()
        } else {
            (0..4)
                .map(|_| random.below(bytes.max(1)))
                .filter(|length| *length < bytes)
                .collect()
        };
        for length in some {
            let copied = tempfile::tempdir().unwrap();
            copy(folder.path(), copied.path());
            let torn = copied.path().join(file.file_name().unwrap());
            fs::remove_file(&torn).unwrap();
            fs::write(&torn, &fs::read(file).unwrap()[..length as usize]).unwrap();
            match opened(copied.path(), &states) {
                Ok(_) => found_earlier += 1,
                Err(Damaged) => damaged += 1,
            }
        }
    }
    // And several files at once, as a power cut may have it.
    for _ in 0..30 {
        let copied = tempfile::tempdir().unwrap();
        copy(folder.path(), copied.path());
        for file in &files {
            let bytes = fs::read(file).unwrap();
            let is_run = file.extension().is_some_and(|extension| extension == "run");
            if random.below(if is_run { 60 } else { 3 }) == 0 {
                let torn = copied.path().join(file.file_name().unwrap());
                fs::remove_file(&torn).unwrap();
                let left = random.below(bytes.len() as u64 + 1) as usize;
                fs::write(&torn, &bytes[..left]).unwrap();
            }
        }
        match opened(copied.path(), &states) {
            Ok(_) => found_earlier += 1,
            Err(Damaged) => damaged += 1,
        }
    }
    assert!(
        found_earlier > 10 && damaged > 100,
        "{found_earlier} {damaged}"
    );
}

#[test]
fn a_flipped_bit_in_a_run_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let history = RefCell::new(History::default());
    load(folder.path(), &history, 20).unwrap();
    let mut random = Random(9);
    let mut at_reading = 0;
    let runs = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    for run in runs.filter(|path| path.extension().is_some_and(|extension| extension == "run")) {
        let good = fs::read(&run).unwrap();
        for _ in 0..6 {
            let mut bad = good.clone();
            bad[random.below(good.len() as u64) as usize] ^= 1 << random.below(8);
            fs::write(&run, &bad).unwrap();
            let result = Store::open(folder.path(), TINY).and_then(|store| {
                at_reading += 1;
                let mut batch = Keys::new();
                (0..1_500).for_each(|n| batch.push(&key(n)));
                let scanned = all(&store).unwrap_err();
                assert_eq!(scanned.kind(), ErrorKind::InvalidData);
                store.get(&batch)
            });
            // A look-up may never come to the block; a scan does.
            assert!(result.is_ok() || result.unwrap_err().kind() == ErrorKind::InvalidData);
        }
        fs::write(&run, &good).unwrap();
    }
    assert!(at_reading > 10);
    opened(folder.path(), &history.into_inner().states).expect("whole again");
}
