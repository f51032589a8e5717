//! Random histories of pages, runs, evictions and restarts against a map of plain lists.

use std::collections::BTreeMap;

use arrow::{
    array::{ArrayRef, AsArray, Int64Array},
    datatypes::Int64Type,
};
use calve_model::{
    Epoch,
    windows::{Panes, Strategy},
};
use proptest::prelude::*;

use super::*;
use crate::{
    checkpoint::{Checkpoints, LocalRecords},
    windows::SavedWindows,
};

fn of(number: u8) -> Of {
    let start = i64::from(number % 5) * 10;
    let window = Window {
        start,
        end: start + 10,
    };
    (Key::new(&[number / 5]), window)
}

fn batch(numbers: &[i64]) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from(numbers.to_vec()));
    RecordBatch::try_from_iter([("n", column)]).expect("a batch")
}

#[derive(Clone, Debug)]
enum Step {
    /// Rows for windows, some for none: window and rows.
    Add(Vec<(Option<u8>, usize)>),
    Merge(u8, u8),
    Fire(u8),
    Emit(u8),
    Close(u8),
    Seal,
    Squeeze,
    Evict,
    Restart,
}

fn step() -> impl Strategy_<Value = Step> {
    let window = 0u8..10;
    prop_oneof![
        4 => prop::collection::vec((prop::option::weighted(0.9, window.clone()), 1usize..40), 1..6).prop_map(Step::Add),
        1 => prop::collection::vec((window.clone().prop_map(Some), 1500usize..3001), 2..4).prop_map(Step::Add),
        1 => (0u8..2, 0u8..4).prop_map(|(key, at)| Step::Merge(key * 5 + at, key * 5 + at + 1)),
        2 => window.clone().prop_map(Step::Fire),
        1 => window.clone().prop_map(Step::Emit),
        1 => window.prop_map(Step::Close),
        3 => Just(Step::Seal),
        2 => Just(Step::Squeeze),
        2 => Just(Step::Evict),
        1 => Just(Step::Restart),
    ]
}

use proptest::strategy::Strategy as Strategy_;

/// What is there, and what should be.
struct Both {
    contents: Contents,
    runs: Runs,
    checkpoints: Checkpoints,
    held: BTreeMap<u8, Vec<i64>>,
    emitted: BTreeMap<u8, Vec<i64>>,
    next: i64,
    epoch: Epoch,
    saved: Option<String>,
}

impl Both {
    fn new(dir: &std::path::Path) -> Self {
        let store = Arc::new(LocalRecords::new(dir));
        let checkpoints = Checkpoints::new(store, "windows", "main");
        Self {
            contents: Contents::default(),
            runs: Runs::new(checkpoints.clone(), None),
            checkpoints,
            held: BTreeMap::new(),
            emitted: BTreeMap::new(),
            next: 0,
            epoch: Epoch::NONE,
            saved: None,
        }
    }

    async fn read(&mut self, mut pieces: Vec<Piece>) -> Vec<i64> {
        let mut found = Vec::new();
        pieces.reverse();
        while let Some(rows) = self
            .contents
            .next(&mut pieces, &mut self.runs)
            .await
            .expect("rows")
        {
            found.extend(rows.column(0).as_primitive::<Int64Type>().values());
        }
        found
    }

    async fn seal(&mut self) {
        self.epoch = self.epoch.next();
        let name = Checkpoints::run_name(self.epoch);
        let run = self
            .contents
            .seal(name, &mut self.runs)
            .await
            .expect("sealed");
        if let Some(run) = run {
            let bytes = runs::encode(&run.batches).expect("bytes");
            self.checkpoints
                .create_run(&run.name, bytes)
                .await
                .expect("written");
            run.durable.set();
        }
        let panes = Panes::new(Strategy::default());
        let saved = SavedWindows::of((0, false), None, &panes, &self.contents);
        self.saved = Some(serde_json::to_string(&saved).expect("plain data"));
        for dead in self.contents.dead() {
            self.checkpoints.delete_run(&dead).await.expect("deleted");
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Add(parts) => {
                let rows: usize = parts.iter().map(|part| part.1).sum();
                let numbers: Vec<i64> = (self.next..).take(rows).collect();
                self.next += rows as i64;
                let page = self.contents.begin(batch(&numbers));
                let mut at = 0;
                for (window, rows) in parts {
                    if let Some(window) = window {
                        self.contents.put(page, of(window), &(at..at + rows));
                        let held = self.held.entry(window).or_default();
                        held.extend(&numbers[at..at + rows]);
                    }
                    at += rows;
                }
                self.contents.end(page);
            }
            Step::Merge(from, into) => {
                let (key, window) = of(from);
                self.contents.merge(&key, &[window, of(into).1], of(into).1);
                let mut all = self.held.remove(&from).unwrap_or_default();
                all.extend(self.held.remove(&into).unwrap_or_default());
                self.held.insert(into, all);
            }
            Step::Fire(window) => {
                let pieces = self.contents.take(&of(window));
                let found = self.read(pieces.to_vec()).await;
                self.contents.release(&pieces);
                assert_eq!(found, self.held.remove(&window).unwrap_or_default());
            }
            Step::Emit(window) => {
                let pieces = self.contents.held(&of(window)).to_vec();
                if pieces.is_empty() {
                    return;
                }
                let rows = self
                    .contents
                    .gather(&pieces, &mut self.runs)
                    .await
                    .expect("rows");
                let group = Group {
                    key: of(window).0,
                    window: of(window).1,
                    at: 0..rows.num_rows(),
                    elements: 0,
                    bytes: 0,
                };
                self.contents.replace(rows, vec![group], true);
                self.emitted.insert(window, self.held[&window].clone());
            }
            Step::Close(window) => {
                self.contents.close(&of(window));
                self.held.remove(&window);
                self.emitted.remove(&window);
            }
            Step::Seal => self.seal().await,
            Step::Squeeze => {
                let squeezed = self.contents.squeeze(&mut self.runs).await;
                squeezed.expect("rows that are there");
            }
            Step::Evict => self.contents.evict(0),
            Step::Restart => {
                self.seal().await;
                let saved: SavedWindows =
                    serde_json::from_str(self.saved.as_deref().expect("sealed"))
                        .expect("plain data");
                let (_, _, contents) = saved.restore(&Strategy::default()).expect("restored");
                self.contents = contents;
                self.runs = Runs::new(self.checkpoints.clone(), None);
            }
        }
    }

    async fn check(&mut self) {
        for (emitted, expected) in [(false, self.held.clone()), (true, self.emitted.clone())] {
            for (window, expected) in expected {
                let of = of(window);
                assert_eq!(self.contents.rows(&of, emitted), expected.len());
                let all = if emitted {
                    &self.contents.emitted
                } else {
                    &self.contents.held
                };
                let pieces = all.get(&of).cloned().unwrap_or_default();
                assert_eq!(self.read(pieces.to_vec()).await, expected);
            }
        }
    }

    /// With every window closed nothing is left.
    async fn end(&mut self) {
        for window in 0..10 {
            self.step(Step::Close(window)).await;
        }
        self.seal().await;
        assert_eq!((self.contents.memory(), self.contents.unsaved()), (0, 0));
        assert_eq!(
            self.checkpoints.runs().await.expect("a list"),
            Vec::<String>::new()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn what_was_put_in_comes_out(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let dir = tempfile::tempdir().expect("a folder");
            let mut both = Both::new(dir.path());
            for step in steps {
                both.step(step).await;
                both.check().await;
            }
            both.end().await;
        });
    }
}

#[tokio::test]
async fn a_page_that_is_mostly_dead_gives_its_memory_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut both = Both::new(dir.path());
    both.step(Step::Add(vec![(Some(1), 100), (Some(2), 9_900)]))
        .await;
    both.step(Step::Squeeze).await;
    let before = both.contents.memory();
    both.step(Step::Close(2)).await;
    let after = both.contents.memory();
    both.step(Step::Squeeze).await;
    let squeezed = both.contents.memory();
    assert!(squeezed < before / 10, "{before} {after} {squeezed}");
    both.check().await;
    both.end().await;
}

#[tokio::test]
async fn a_run_that_is_gone_or_damaged_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Arc::new(LocalRecords::new(dir.path()));
    let checkpoints = Checkpoints::new(store, "windows", "main");
    let mut runs = Runs::new(checkpoints.clone(), None);
    let error = runs.load("gone.arrow").await.expect_err("it is not there");
    assert_eq!(error.kind(), crate::error::ErrorKind::Corrupt);
    let bytes = runs::encode(&[batch(&[1, 2, 3])]).expect("bytes");
    let cut = bytes[..bytes.len() / 2].to_vec();
    checkpoints
        .create_run("cut.arrow", cut)
        .await
        .expect("written");
    let error = runs.load("cut.arrow").await.expect_err("it is cut");
    assert_eq!(error.kind(), crate::error::ErrorKind::Corrupt);
    assert!(error.to_string().contains("cut.arrow"), "{error}");
}
