//! What open windows hold: rows (or partial states) in pages, and for each window the pieces of pages
//! that are its own. A page is a batch; it lies in memory, in a run of the checkpoint store, or both.
//!
//! Invariant: a page's `live` is the sum of the rows of the pieces that refer to it; at zero it is
//! gone, and a run whose last page is gone is not needed by the next record.

mod saving;

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arrow::array::RecordBatch;
use calve_model::windows::Window;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use tokio::sync::Notify;

pub(crate) use self::saving::NewRun;
use super::{
    Key,
    assign::Group,
    runs::{self, Runs},
};
use crate::error::{Error, Result};

/// A window of a key.
pub(crate) type Of = (Key, Window);

/// Rows of a page that belong to one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Piece {
    pub(crate) page: u32,
    pub(crate) start: u32,
    pub(crate) rows: u32,
}

/// Most windows have one.
pub(crate) type Pieces = SmallVec<[Piece; 1]>;

#[derive(Debug)]
struct Page {
    batch: Option<RecordBatch>,
    bytes: usize,
    rows: u32,
    live: u64,
    /// The run that it lies in, and its number there.
    run: Option<(u32, u32)>,
}

/// Whether a run is in the store.
#[derive(Debug, Default)]
pub(crate) struct Durable {
    yes: AtomicBool,
    changed: Arc<Notify>,
}

impl Durable {
    /// It is.
    pub(crate) fn set(&self) {
        self.yes.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    fn get(&self) -> bool {
        self.yes.load(Ordering::Acquire)
    }
}

/// A run as the loop sees it.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) name: String,
    /// Rows of each of its batches.
    pub(crate) rows: Vec<u32>,
    /// Whether it is in the store: only then its pages may leave the memory.
    pub(crate) durable: Arc<Durable>,
    /// Pages that are still needed.
    pages: usize,
}

/// Pieces below this many rows are gathered, longer ones sliced.
const SHORT: u32 = 1024;

/// What the open windows hold.
#[derive(Default)]
pub(crate) struct Contents {
    pages: Vec<Option<Page>>,
    free: Vec<u32>,
    held: FxHashMap<Of, Pieces>,
    /// States of the panes that were emitted last, where they may have to be taken back.
    emitted: FxHashMap<Of, Pieces>,
    runs: FxHashMap<u32, Run>,
    next_run: u32,
    /// Names of runs that the next record does not need.
    dead: Vec<String>,
    memory: usize,
    unsaved: usize,
    /// A run came into the store.
    changed: Arc<Notify>,
}

impl Contents {
    /// Bytes of pages in memory.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    /// Bytes of pages that lie in no run.
    pub(crate) fn unsaved(&self) -> usize {
        self.unsaved
    }

    /// Takes a batch whose rows belong to windows; [`Contents::put`] says which, and
    /// [`Contents::end`] ends it.
    pub(crate) fn begin(&mut self, batch: RecordBatch) -> u32 {
        let page = self.next_page();
        self.put_page(page, batch, 0);
        page
    }

    /// Rows of a page belong to a window.
    pub(crate) fn put(&mut self, page: u32, of: Of, at: &Range<usize>) {
        let piece = Piece {
            page,
            start: at.start as u32,
            rows: at.len() as u32,
        };
        self.page_mut(page).live += u64::from(piece.rows);
        let pieces = self.held.entry(of).or_default();
        match pieces.last_mut() {
            Some(last) if last.page == page && last.start + last.rows == piece.start => {
                last.rows += piece.rows;
            }
            _ => pieces.push(piece),
        }
    }

    /// No more rows of a page belong to a window; one without any is gone.
    pub(crate) fn end(&mut self, page: u32) {
        self.release(&[Piece {
            page,
            start: 0,
            rows: 0,
        }]);
    }

    fn next_page(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.pages.push(None);
            self.pages.len() as u32 - 1
        })
    }

    fn put_page(&mut self, page: u32, batch: RecordBatch, live: u64) {
        let bytes = batch.get_array_memory_size();
        self.memory += bytes;
        self.unsaved += bytes;
        self.pages[page as usize] = Some(Page {
            bytes,
            rows: batch.num_rows() as u32,
            batch: Some(batch),
            live,
            run: None,
        });
    }

    fn page_mut(&mut self, page: u32) -> &mut Page {
        self.pages[page as usize].as_mut().expect("a live page")
    }

    fn page(&self, page: u32) -> &Page {
        self.pages[page as usize].as_ref().expect("a live page")
    }

    /// Contents of `from` now belong to `into`.
    pub(crate) fn merge(&mut self, key: &Key, from: &[Window], into: Window) {
        let mut all = Pieces::new();
        for window in from {
            if let Some(pieces) = self.held.remove(&(key.clone(), *window)) {
                all.extend(pieces);
            }
        }
        if !all.is_empty() {
            self.held
                .entry((key.clone(), into))
                .or_default()
                .extend(all);
        }
    }

    /// What a window holds; the caller releases it when it is done with it.
    pub(crate) fn take(&mut self, of: &Of) -> Pieces {
        self.held.remove(of).unwrap_or_default()
    }

    /// What was emitted for a window; the caller releases it when it is done with it.
    pub(crate) fn take_emitted(&mut self, of: &Of) -> Pieces {
        self.emitted.remove(of).unwrap_or_default()
    }

    /// Puts a batch of states in the place of what its windows held; `emitted`: they are what was
    /// emitted, too.
    pub(crate) fn replace(&mut self, batch: RecordBatch, groups: Vec<Group>, emitted: bool) {
        let mut old = Vec::new();
        for group in &groups {
            old.extend(self.take(&(group.key.clone(), group.window)));
        }
        let page = self.begin(batch);
        for group in groups {
            let of = (group.key, group.window);
            self.put(page, of.clone(), &group.at);
            if emitted {
                let pieces = self.held.get(&of).cloned().unwrap_or_default();
                for piece in &pieces {
                    self.page_mut(piece.page).live += u64::from(piece.rows);
                }
                old.extend(self.emitted.insert(of, pieces).into_iter().flatten());
            }
        }
        self.end(page);
        self.release(&old);
    }

    /// Forgets a window.
    pub(crate) fn close(&mut self, of: &Of) {
        let pieces = self.take(of);
        self.release(&pieces);
        let pieces = self.take_emitted(of);
        self.release(&pieces);
    }

    /// Pieces that nobody needs any more.
    pub(crate) fn release(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            let slot = &mut self.pages[piece.page as usize];
            let page = slot.as_mut().expect("a live page");
            page.live -= u64::from(piece.rows);
            if page.live > 0 {
                continue;
            }
            let page = slot.take().expect("a live page");
            if page.batch.is_some() {
                self.memory -= page.bytes;
            }
            match page.run {
                None => self.unsaved -= page.bytes,
                Some((id, _)) => self.leave_run(id),
            }
            self.free.push(piece.page);
        }
    }

    fn leave_run(&mut self, id: u32) {
        let run = self.runs.get_mut(&id).expect("a run of a page");
        run.pages -= 1;
        if run.pages == 0
            && let Some(run) = self.runs.remove(&id)
        {
            self.dead.push(run.name);
        }
    }

    /// The windows that hold something in several pieces, in order: states to be merged.
    pub(crate) fn scattered(&self) -> Vec<Of> {
        let several = self.held.iter().filter(|(_, pieces)| pieces.len() > 1);
        let mut all: Vec<Of> = several.map(|(of, _)| of.clone()).collect();
        all.sort_unstable();
        all
    }

    /// Puts pieces into the order of the runs that they lie in, so that each is read once; those in
    /// memory alone come last, as they came last. The order within a window stays.
    pub(crate) fn by_run(&self, pieces: &mut [Piece]) {
        pieces.sort_by_key(|piece| self.page(piece.page).run.map_or(u32::MAX, |(run, _)| run));
    }

    /// The next rows of `pieces`, from their end: a slice of a page, or short pieces together. None
    /// when there are no more. The order is that of the pieces when they were reversed before.
    pub(crate) async fn next(
        &mut self,
        pieces: &mut Vec<Piece>,
        runs: &mut Runs,
    ) -> Result<Option<RecordBatch>> {
        let Some(first) = pieces.pop() else {
            return Ok(None);
        };
        if first.rows >= SHORT {
            let batch = self.batch(first.page, runs).await?;
            let rows = batch.slice(first.start as usize, first.rows as usize);
            let of_run = self.page(first.page).batch.is_none();
            return if of_run {
                runs::copied(&rows).map(Some)
            } else {
                Ok(Some(rows))
            };
        }
        let mut together = vec![first];
        let mut rows = first.rows as usize;
        while rows < 8 * SHORT as usize
            && let Some(piece) = pieces.pop_if(|piece| piece.rows < SHORT)
        {
            rows += piece.rows as usize;
            together.push(piece);
        }
        self.gather(&together, runs).await.map(Some)
    }

    /// Pieces as one batch, in their order.
    pub(crate) async fn gather(&self, pieces: &[Piece], runs: &mut Runs) -> Result<RecordBatch> {
        let mut numbers = FxHashMap::default();
        let mut batches = Vec::new();
        for piece in pieces {
            if let std::collections::hash_map::Entry::Vacant(slot) = numbers.entry(piece.page) {
                slot.insert(batches.len());
                batches.push(self.batch(piece.page, runs).await?);
            }
        }
        let places: Vec<(usize, u32, u32)> = pieces
            .iter()
            .map(|piece| (numbers[&piece.page], piece.start, piece.rows))
            .collect();
        runs::gathered(&batches, &places)
    }

    /// How many rows a window holds, or were emitted for it.
    pub(crate) fn rows(&self, of: &Of, emitted: bool) -> usize {
        let all = if emitted { &self.emitted } else { &self.held };
        let pieces = all.get(of).into_iter().flatten();
        pieces.map(|piece| piece.rows as usize).sum()
    }

    /// What a window holds.
    pub(crate) fn held(&self, of: &Of) -> &[Piece] {
        self.held.get(of).map_or(&[], |pieces| pieces.as_slice())
    }

    async fn batch(&self, page: u32, runs: &mut Runs) -> Result<RecordBatch> {
        let page = self.page(page);
        if let Some(batch) = &page.batch {
            return Ok(batch.clone());
        }
        let (id, number) = page
            .run
            .ok_or_else(|| Error::internal("a page that is nowhere"))?;
        let batches = runs.load(&self.runs[&id].name).await?;
        let batch = batches.get(number as usize);
        batch
            .cloned()
            .ok_or_else(|| Error::corrupt("a run has fewer batches than the record says"))
    }

    /// Takes pages out of the memory that are durable, until `to` bytes are left or there is none.
    pub(crate) fn evict(&mut self, to: usize) {
        for page in self.pages.iter_mut().flatten() {
            if self.memory <= to {
                return;
            }
            let durable = |id: &u32| self.runs[id].durable.get();
            if page.run.as_ref().is_some_and(|(id, _)| durable(id)) && page.batch.take().is_some() {
                self.memory -= page.bytes;
            }
        }
    }

    /// Waits until a run that is on its way is in the store; false when none is.
    pub(crate) async fn written(&self) -> bool {
        if self.runs.values().all(|run| run.durable.get()) {
            return false;
        }
        self.changed.notified().await;
        true
    }

    /// Names of runs that no record needs from the next one on.
    pub(crate) fn dead(&mut self) -> Vec<String> {
        std::mem::take(&mut self.dead)
    }
}

#[cfg(test)]
#[path = "contents_tests.rs"]
mod tests;
