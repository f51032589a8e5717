//! Contents into runs and records, and back: what lies in no run goes into one, live rows of a window
//! side by side.

use std::sync::{Arc, atomic::AtomicBool};

use arrow::array::RecordBatch;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{Contents, Durable, Of, Page, Piece, Pieces, Run, Runs};
use crate::{
    error::{Error, Result},
    windows::runs::copied,
};

/// Rows of a page that is made of pieces.
const PAGE_ROWS: usize = 65_536;
/// A page of this many rows that is wholly live goes into a run as it is.
const WHOLE_ROWS: u32 = 4096;

/// Pages that a cut writes to the store.
pub(crate) struct NewRun {
    pub(crate) name: String,
    pub(crate) batches: Vec<RecordBatch>,
    pub(crate) durable: Arc<Durable>,
}

/// What a record says of the contents.
pub(crate) struct Parts<'a> {
    pub(crate) runs: Vec<&'a Run>,
    pub(crate) held: Vec<(Of, Vec<[u32; 4]>)>,
    pub(crate) emitted: Vec<(Of, Vec<[u32; 4]>)>,
}

impl Contents {
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

    /// Moves the live rows of unsaved pages together when most rows of these pages are nobody's: a state
    /// that stays while its neighbours are replaced would hold all of them.
    ///
    /// # Errors
    /// `Internal` only.
    pub(crate) async fn squeeze(&mut self, runs: &mut Runs) -> Result<()> {
        let unsaved = self.pages.iter().flatten().filter(|p| p.run.is_none());
        let (rows, live) = unsaved.fold((0, 0), |(rows, live), page| {
            // Rows that were emitted and are held count twice.
            (
                rows + u64::from(page.rows),
                live + page.live.min(page.rows.into()),
            )
        });
        if rows > 2 * live && rows > u64::from(WHOLE_ROWS) {
            let whole = self.whole_pages();
            self.compact(&whole, runs).await?;
        }
        Ok(())
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
            let mut batch = self.gather(&distinct[first..at], runs).await?;
            if at - first == 1 {
                // A piece alone comes as a slice, which holds all of the page that it is moved out of.
                batch = copied(&batch)?;
            }
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
            let mut moved = Pieces::new();
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
        let places = |of: &FxHashMap<Of, Pieces>| {
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
                let mut list = Pieces::new();
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
