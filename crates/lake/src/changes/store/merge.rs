//! Merges memtable and runs of one shard into one sorted sequence, in which the newest of equal keys
//! wins.

use std::cmp::Ordering;
use std::io;

use super::hash::sort_word;
use super::memtable::{Sorted, Value};
use super::run::Run;
use super::run_cursor::RunCursor;

/// One sorted input, at a key.
pub(super) enum Source<'a> {
    Table { sorted: Sorted<'a>, word: u64 },
    Run(Box<RunCursor<'a>>),
}

impl<'a> Source<'a> {
    /// `None` when it is empty.
    pub(super) fn table(sorted: Sorted<'a>) -> Option<Self> {
        let word = sort_word(sorted.current()?.0);
        Some(Self::Table { sorted, word })
    }

    pub(super) fn run(run: &'a Run) -> io::Result<Self> {
        Ok(Self::Run(Box::new(RunCursor::new(run)?)))
    }

    fn word(&self) -> u64 {
        match self {
            Self::Table { word, .. } => *word,
            Self::Run(cursor) => cursor.word,
        }
    }

    fn key(&self) -> &[u8] {
        match self {
            Self::Table { sorted, .. } => sorted.current().map_or(&[], |(key, _)| key),
            Self::Run(cursor) => cursor.key(),
        }
    }

    fn value<'b>(&'b self, buffer: &'b mut Vec<u8>) -> Value<'b> {
        match self {
            Self::Table { sorted, .. } => sorted.current().and_then(|(_, value)| value),
            Self::Run(cursor) => cursor.value(buffer),
        }
    }

    /// Moves on; false past the last key.
    fn advance(&mut self) -> io::Result<bool> {
        match self {
            Self::Table { sorted, word } => {
                sorted.advance();
                let key = sorted.current().map(|(key, _)| key);
                *word = key.map_or(0, sort_word);
                Ok(key.is_some())
            }
            Self::Run(cursor) => cursor.advance(),
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        self.word()
            .cmp(&other.word())
            .then_with(|| self.key().cmp(other.key()))
    }
}

/// Hands every key once to `each`, in order. `sources`: newest first.
pub(super) fn merge(
    mut sources: Vec<Source<'_>>,
    mut each: impl FnMut(&[u8], Value<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    while !sources.is_empty() {
        let (mut least, mut ties) = (0, false);
        for at in 1..sources.len() {
            match sources[at].compare(&sources[least]) {
                Ordering::Less => (least, ties) = (at, false),
                Ordering::Equal => ties = true,
                Ordering::Greater => {}
            }
        }
        each(sources[least].key(), sources[least].value(&mut buffer))?;
        // From the back, so that what is removed moves none that is still to be looked at.
        if ties {
            for at in (least + 1..sources.len()).rev() {
                if sources[at].compare(&sources[least]) == Ordering::Equal
                    && !sources[at].advance()?
                {
                    sources.remove(at);
                }
            }
        }
        if !sources[least].advance()? {
            sources.remove(least);
        }
    }
    Ok(())
}
