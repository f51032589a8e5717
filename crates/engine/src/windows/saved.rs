//! What a checkpoint record says of the open windows: the model's state, the runs, and which rows of
//! them belong to which window.

use calve_model::{
    Micros,
    windows::{Panes, Saved, Strategy, Window},
};
use serde::{Deserialize, Serialize};

use super::{
    Key,
    contents::{Contents, Of},
};
use crate::error::Result;

/// The open windows of a shard, as a record holds them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedWindows {
    /// Highest processing time that was acted on, in microseconds since 1970.
    #[serde(rename = "at")]
    processing_time: Micros,
    /// The source says what time it is: the machine's clock means nothing to these windows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    source_clock: bool,
    /// Every window that ends at or before this event time is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    complete: Option<Micros>,
    /// Triggers, panes, watermark.
    panes: Saved<Key>,
    /// Names of runs, and the rows of each of their batches.
    runs: Vec<(String, Vec<u32>)>,
    /// Where each window's rows are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    held: Vec<Place>,
    /// Where the states are of panes that may have to be taken back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    emitted: Vec<Place>,
}

/// Key, start and end of a window, and its rows: run, batch, first row, rows.
type Place = (Key, Micros, Micros, Vec<[u32; 4]>);

impl SavedWindows {
    pub(crate) fn of(
        (processing_time, source_clock): (Micros, bool),
        complete: Option<Micros>,
        panes: &Panes<Key>,
        contents: &Contents,
    ) -> Self {
        let parts = contents.parts();
        let place = |(of, rows): (Of, Vec<[u32; 4]>)| (of.0, of.1.start, of.1.end, rows);
        let runs = parts.runs.iter();
        Self {
            processing_time,
            source_clock,
            complete,
            panes: panes.save(),
            runs: runs
                .map(|run| (run.name.clone(), run.rows.clone()))
                .collect(),
            held: parts.held.into_iter().map(place).collect(),
            emitted: parts.emitted.into_iter().map(place).collect(),
        }
    }

    pub(crate) fn restore(self, strategy: &Strategy) -> Result<(Micros, Panes<Key>, Contents)> {
        let place = |(key, start, end, rows): Place| ((key, Window { start, end }), rows);
        let contents = Contents::restore(
            self.runs,
            self.held.into_iter().map(place).collect(),
            self.emitted.into_iter().map(place).collect(),
        )?;
        let panes = Panes::restore(strategy.clone(), self.panes);
        Ok((self.processing_time, panes, contents))
    }

    /// No window open; event time has come to `watermark`, and what ends by `complete` is closed.
    pub fn empty(watermark: Option<Micros>, complete: Option<Micros>) -> Self {
        Self {
            processing_time: Micros::MIN,
            source_clock: false,
            complete,
            panes: Saved::at(watermark),
            runs: Vec::new(),
            held: Vec::new(),
            emitted: Vec::new(),
        }
    }

    /// As it is without its open windows, and all that they hold.
    #[must_use]
    pub fn emptied(&self) -> Self {
        Self {
            processing_time: self.processing_time,
            source_clock: self.source_clock,
            ..Self::empty(self.panes.watermark(), self.complete)
        }
    }

    /// Whether the source says what time it is.
    pub(crate) fn source_clock(&self) -> bool {
        self.source_clock
    }

    /// Names of the runs that it refers to.
    pub fn runs(&self) -> impl Iterator<Item = &str> {
        self.runs.iter().map(|(name, _)| name.as_str())
    }

    /// Every window that ends at or before this event time is closed.
    pub fn complete(&self) -> Option<Micros> {
        self.complete
    }

    /// Rows and partial states of open windows.
    pub fn rows(&self) -> u64 {
        let places = self.held.iter().flat_map(|place| &place.3);
        places.map(|[_, _, _, rows]| u64::from(*rows)).sum()
    }

    /// Windows that are open, also those that hold nothing now.
    pub fn open(&self) -> usize {
        self.panes.open().max(self.held.len())
    }
}
