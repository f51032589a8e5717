//! What open windows hold: rows (or partial states) in pages, and for each window the pieces of pages
//! that are its own. A page is a batch; it lies in memory, in a run of the checkpoint store, or both.
//!
//! Invariant: a page's `live` is the sum of the rows of the pieces that refer to it; at zero it is
//! gone, and a run whose last page is gone is not needed by the next record.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arrow::array::RecordBatch;
use calve_model::windows::Window;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::Notify;

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
/// Rows of a page that is made of pieces.
const PAGE_ROWS: usize = 65_536;
/// A page of this many rows that is wholly live goes into a run as it is.
const WHOLE_ROWS: u32 = 4096;

/// What the open windows hold.
#[derive(Default)]
pub(crate) struct Contents {
    pages: Vec<Option<Page>>,
    free: Vec<u32>,
    held: FxHashMap<Of, Vec<Piece>>,
    /// States of the panes that were emitted last, where they may have to be taken back.
    emitted: FxHashMap<Of, Vec<Piece>>,
    runs: FxHashMap<u32, Run>,
    next_run: u32,
    /// Names of runs that the next record does not need.
    dead: Vec<String>,
    memory: usize,
    unsaved: usize,
    /// A run came into the store.
    changed: Arc<Notify>,
}

/// Pages that a cut writes to the store.
pub(crate) struct NewRun {
    pub(crate) name: String,
    pub(crate) batches: Vec<RecordBatch>,
    pub(crate) durable: Arc<Durable>,
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
        let mut all = Vec::new();
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
    pub(crate) fn take(&mut self, of: &Of) -> Vec<Piece> {
        self.held.remove(of).unwrap_or_default()
    }

    /// What was emitted for a window; the caller releases it when it is done with it.
    pub(crate) fn take_emitted(&mut self, of: &Of) -> Vec<Piece> {
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
            return Ok(Some(rows));
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
        self.held.get(of).map_or(&[], Vec::as_slice)
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

    /// Makes a run of what lies in none, under `name`; none when there is nothing.
    ///
    /// # Errors
    /// `Internal` only.
    pub(crate) async fn seal(&mut self, name: String, runs: &mut Runs) -> Result<Option<NewRun>> {
        let whole: FxHashSet<u32> = self.whole_pages();
        self.compact(&whole, runs).await?;
        let id = self.next_run;
        let mut batches = Vec::new();
        let mut rows = Vec::new();
        for page in self.pages.iter_mut().flatten() {
            let (None, Some(batch)) = (page.run, &page.batch) else {
                continue;
            };
            page.run = Some((id, batches.len() as u32));
            rows.push(page.rows);
            batches.push(batch.clone());
        }
        self.unsaved = 0;
        if batches.is_empty() {
            return Ok(None);
        }
        self.next_run += 1;
        let durable = Arc::new(Durable {
            yes: AtomicBool::new(false),
            changed: Arc::clone(&self.changed),
        });
        let run = Run {
            name: name.clone(),
            rows,
            durable: Arc::clone(&durable),
            pages: batches.len(),
        };
        self.runs.insert(id, run);
        Ok(Some(NewRun {
            name,
            batches,
            durable,
        }))
    }

    /// Unsaved pages that need no copying.
    fn whole_pages(&self) -> FxHashSet<u32> {
        let pages = self.pages.iter().enumerate();
        pages
            .filter_map(|(number, page)| {
                let page = page.as_ref()?;
                let whole = page.run.is_none()
                    && page.rows >= WHOLE_ROWS
                    && page.live >= u64::from(page.rows);
                whole.then_some(number as u32)
            })
            .collect()
    }

    /// Moves the live rows of other unsaved pages into pages of their own, by window.
    async fn compact(&mut self, whole: &FxHashSet<u32>, runs: &mut Runs) -> Result<()> {
        let moves = |page: u32, contents: &Self| {
            contents.page(page).run.is_none() && !whole.contains(&page)
        };
        let mut from: Vec<(&Of, Piece)> = Vec::new();
        for (of, pieces) in self.held.iter().chain(&self.emitted) {
            let moving = pieces.iter().filter(|piece| moves(piece.page, self));
            from.extend(moving.map(|piece| (of, *piece)));
        }
        from.sort_by(|a, b| (a.0.1, &a.0.0).cmp(&(b.0.1, &b.0.0)));
        let mut seen = FxHashSet::default();
        let from: Vec<Piece> = from.into_iter().map(|(_, piece)| piece).collect();
        let distinct: Vec<Piece> = from
            .into_iter()
            .filter(|piece| seen.insert(*piece))
            .collect();
        let mut to: FxHashMap<Piece, Piece> = FxHashMap::default();
        let mut at = 0;
        while at < distinct.len() {
            let (first, mut rows) = (at, 0);
            while at < distinct.len()
                && (rows == 0 || rows + distinct[at].rows as usize <= PAGE_ROWS)
            {
                rows += distinct[at].rows as usize;
                at += 1;
            }
            let batch = self.gather(&distinct[first..at], runs).await?;
            let page = self.next_page();
            self.put_page(page, batch, 0);
            let mut start = 0;
            for piece in &distinct[first..at] {
                let rows = piece.rows;
                to.insert(*piece, Piece { page, start, rows });
                start += rows;
            }
        }
        let mut old = Vec::new();
        for pieces in self.held.values_mut().chain(self.emitted.values_mut()) {
            let mut moved: Vec<Piece> = Vec::with_capacity(pieces.len());
            for piece in pieces.iter() {
                let new = match to.get(piece) {
                    Some(new) => {
                        old.push(*piece);
                        let page = self.pages[new.page as usize].as_mut();
                        page.expect("a live page").live += u64::from(new.rows);
                        *new
                    }
                    None => *piece,
                };
                match moved.last_mut() {
                    Some(last) if last.page == new.page && last.start + last.rows == new.start => {
                        last.rows += new.rows;
                    }
                    _ => moved.push(new),
                }
            }
            *pieces = moved;
        }
        self.release(&old);
        Ok(())
    }

    /// Names of runs that no record needs from the next one on.
    pub(crate) fn dead(&mut self) -> Vec<String> {
        std::mem::take(&mut self.dead)
    }

    /// All runs, and by key and window where their rows are: run, batch, first row, rows.
    pub(crate) fn parts(&self) -> Parts<'_> {
        let mut runs: Vec<(u32, &Run)> = self.runs.iter().map(|(id, run)| (*id, run)).collect();
        runs.sort_unstable_by_key(|(id, _)| *id);
        let number: FxHashMap<u32, u32> = runs
            .iter()
            .enumerate()
            .map(|(number, (id, _))| (*id, number as u32))
            .collect();
        let place = |piece: &Piece| {
            let (run, batch) = self.page(piece.page).run.expect("a sealed page");
            [number[&run], batch, piece.start, piece.rows]
        };
        let places = |of: &FxHashMap<Of, Vec<Piece>>| {
            let of = of.iter().filter(|(_, pieces)| !pieces.is_empty());
            let mut all: Vec<(Of, Vec<[u32; 4]>)> = of
                .map(|(of, pieces)| (of.clone(), pieces.iter().map(place).collect()))
                .collect();
            all.sort_unstable();
            all
        };
        Parts {
            held: places(&self.held),
            emitted: places(&self.emitted),
            runs: runs.into_iter().map(|(_, run)| run).collect(),
        }
    }

    /// As it was when it was saved; nothing is read yet.
    ///
    /// # Errors
    /// `Corrupt` when the parts do not fit together.
    pub(crate) fn restore(
        runs: Vec<(String, Vec<u32>)>,
        held: Vec<(Of, Vec<[u32; 4]>)>,
        emitted: Vec<(Of, Vec<[u32; 4]>)>,
    ) -> Result<Self> {
        let mut contents = Self::default();
        let mut pages: FxHashMap<(u32, u32), u32> = FxHashMap::default();
        let mut pieces = |all: Vec<(Of, Vec<[u32; 4]>)>, contents: &mut Self| {
            let mut of_windows = FxHashMap::default();
            for (of, places) in all {
                let mut list = Vec::with_capacity(places.len());
                for [run, batch, start, rows] in places {
                    let in_page = runs.get(run as usize).and_then(|r| r.1.get(batch as usize));
                    let Some(in_page) = in_page.filter(|n| start.saturating_add(rows) <= **n)
                    else {
                        return Err(Error::corrupt("a window refers to rows of no run"));
                    };
                    let page = *pages.entry((run, batch)).or_insert_with(|| {
                        contents.pages.push(Some(Page {
                            batch: None,
                            bytes: 0,
                            rows: *in_page,
                            live: 0,
                            run: Some((run, batch)),
                        }));
                        contents.pages.len() as u32 - 1
                    });
                    let slot = contents.pages[page as usize].as_mut();
                    slot.expect("a page").live += u64::from(rows);
                    list.push(Piece { page, start, rows });
                }
                of_windows.insert(of, list);
            }
            Ok(of_windows)
        };
        contents.held = pieces(held, &mut contents)?;
        contents.emitted = pieces(emitted, &mut contents)?;
        contents.next_run = runs.len() as u32;
        for (id, (name, rows)) in runs.into_iter().enumerate() {
            let needed = pages.keys().filter(|(run, _)| *run == id as u32).count();
            if needed == 0 {
                contents.dead.push(name);
                continue;
            }
            let run = Run {
                name,
                rows,
                durable: Arc::new(Durable {
                    yes: AtomicBool::new(true),
                    changed: Arc::clone(&contents.changed),
                }),
                pages: needed,
            };
            contents.runs.insert(id as u32, run);
        }
        Ok(contents)
    }
}

/// What a record says of the contents.
pub(crate) struct Parts<'a> {
    pub(crate) runs: Vec<&'a Run>,
    pub(crate) held: Vec<(Of, Vec<[u32; 4]>)>,
    pub(crate) emitted: Vec<(Of, Vec<[u32; 4]>)>,
}

#[cfg(test)]
#[path = "contents_tests.rs"]
mod tests;
