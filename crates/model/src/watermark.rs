//! Watermarks: how far event time is believed complete. Invariant: a watermark never goes back.
//!
//! Bounded out-of-orderness: a source partition's watermark is the highest event time seen in it
//! less `max_delay`; a shard's is the minimum over its source partitions that are neither idle nor
//! ended (Akidau et al., VLDB 2015, section 2.3). A source that knows better gives its own mark,
//! which counts for that source partition instead.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::offsets::SourcePartition;

/// Microseconds of event time after 1970-01-01T00:00:00Z.
pub type Micros = i64;

/// Event time is complete: no event can still come.
pub const END_OF_TIME: Micros = i64::MAX;

/// The watermarks of a shard's source partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermarks {
    max_delay: Micros,
    of: BTreeMap<SourcePartition, One>,
    /// What was last reported; holds the minimum up when a new source partition appears late.
    reached: Option<Micros>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct One {
    /// Highest event time seen; none: nothing read yet, which holds the shard back.
    highest: Option<Micros>,
    idle: bool,
    done: bool,
    /// What the source itself said; counts instead of the highest event time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    given: Option<Micros>,
}

impl One {
    fn mark(&self, max_delay: Micros) -> Option<Micros> {
        let seen = || {
            self.highest
                .map(|highest| highest.saturating_sub(max_delay))
        };
        // A given mark at the beginning of time says nothing yet, but that others will come.
        let mark = self.given.or_else(seen);
        mark.filter(|at| *at != Micros::MIN)
    }

    fn holds(&self) -> bool {
        !self.idle && !self.done
    }
}

impl Watermarks {
    /// No source partition known yet. `max_delay` is how late an event may come, in microseconds.
    pub fn new(max_delay: Micros) -> Self {
        Self {
            max_delay,
            of: BTreeMap::new(),
            reached: None,
        }
    }

    /// A source partition exists and has not been read to its end: it holds the watermark until it
    /// is. One that had ended, and has more now, goes on from where its mark was.
    pub fn discover(&mut self, partition: &SourcePartition) {
        self.of.entry(partition.clone()).or_default().done = false;
    }

    /// Events up to `highest` were seen in a source partition; it is not idle any more.
    pub fn observe(&mut self, partition: &SourcePartition, highest: Micros) {
        let one = self.of.entry(partition.clone()).or_default();
        one.highest = Some(one.highest.map_or(highest, |h| h.max(highest)));
        one.idle = false;
    }

    /// A source says that no event below `at` will come from a source partition any more (a ledger
    /// that has closed, a heartbeat). From then on its word counts for that source partition, and
    /// `max_delay` does not: events may carry higher times without moving the watermark. A mark
    /// below an earlier one is ignored; any mark ends idleness. [`Micros::MIN`] says that nothing is
    /// known yet: the source partition holds the watermark, whatever events have come.
    pub fn given(&mut self, partition: &SourcePartition, at: Micros) {
        let one = self.of.entry(partition.clone()).or_default();
        one.given = one.given.max(Some(at));
        one.idle = false;
    }

    /// A source partition was polled and found empty for the idle timeout: it stops holding others.
    pub fn idle(&mut self, partition: &SourcePartition) {
        self.of.entry(partition.clone()).or_default().idle = true;
    }

    /// A source partition has ended: nothing more can come from it.
    pub fn done(&mut self, partition: &SourcePartition) {
        self.of.entry(partition.clone()).or_default().done = true;
    }

    /// The shard's watermark in microseconds; none while nothing can be said. When all source
    /// partitions are idle or ended, it stays where it was.
    ///
    /// While every source partition has ended it is [`END_OF_TIME`]. That says only that nothing is
    /// left to read: where a later run finds another source partition, the watermark goes on from
    /// where it was before the end.
    pub fn current(&mut self) -> Option<Micros> {
        let mut active = self.of.values().filter(|one| one.holds()).peekable();
        let now = if active.peek().is_none() {
            if !self.of.is_empty() && self.of.values().all(|one| one.done) {
                return Some(END_OF_TIME);
            }
            None
        } else {
            // One of which nothing is known (none is below all marks) holds all others.
            active.map(|one| one.mark(self.max_delay)).min().flatten()
        };
        self.reached = self.reached.filter(|at| *at != END_OF_TIME).max(now);
        self.reached
    }

    /// What one source partition says by itself; none while it says nothing.
    pub fn mark_of(&self, partition: &SourcePartition) -> Option<Micros> {
        self.of.get(partition)?.mark(self.max_delay)
    }

    /// The source partition that holds the watermark back, with its mark: of those that are neither
    /// idle nor ended the one with the lowest, the first by name if several have it.
    pub fn held_by(&self) -> Option<(&SourcePartition, Option<Micros>)> {
        self.of
            .iter()
            .filter(|(_, one)| one.holds())
            .map(|(partition, one)| (partition, one.mark(self.max_delay)))
            .min_by_key(|(_, mark)| *mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn partition(n: u8) -> SourcePartition {
        SourcePartition::new(format!("p{n}"))
    }

    #[test]
    fn the_slowest_partition_holds_the_watermark() {
        let mut marks = Watermarks::new(10);
        marks.observe(&partition(0), 100);
        assert_eq!(marks.current(), Some(90));
        marks.observe(&partition(1), 50);
        assert_eq!(
            marks.current(),
            Some(90),
            "a new partition cannot take it back"
        );
        marks.observe(&partition(0), 500);
        assert_eq!(marks.current(), Some(90), "the slower one holds it");
        marks.idle(&partition(1));
        assert_eq!(marks.current(), Some(490));
        marks.done(&partition(0));
        marks.done(&partition(1));
        assert_eq!(marks.current(), Some(END_OF_TIME));
    }

    #[test]
    fn a_partition_found_after_the_end_goes_on_from_before_it() {
        let mut marks = Watermarks::new(10);
        marks.observe(&partition(0), 100);
        assert_eq!(marks.current(), Some(90));
        marks.done(&partition(0));
        assert_eq!(marks.current(), Some(END_OF_TIME));
        marks.observe(&partition(1), 95);
        assert_eq!(marks.current(), Some(90));
        marks.observe(&partition(1), 200);
        assert_eq!(marks.current(), Some(190));
    }

    #[test]
    fn a_partition_that_has_more_after_its_end_goes_on() {
        let mut marks = Watermarks::new(10);
        marks.observe(&partition(0), 100);
        marks.done(&partition(0));
        assert_eq!(marks.current(), Some(END_OF_TIME));
        marks.discover(&partition(0));
        assert_eq!(marks.current(), Some(90));
        marks.observe(&partition(0), 200);
        assert_eq!(marks.current(), Some(190));
    }

    #[test]
    fn an_unread_partition_holds_it_at_nothing() {
        let mut marks = Watermarks::new(0);
        marks.discover(&partition(0));
        marks.observe(&partition(1), 7);
        assert_eq!(marks.current(), None);
        marks.observe(&partition(0), 3);
        assert_eq!(marks.current(), Some(3));
    }

    #[test]
    fn a_given_mark_counts_instead_of_what_was_seen() {
        let mut marks = Watermarks::new(10);
        marks.observe(&partition(0), 100);
        marks.given(&partition(1), 50);
        assert_eq!(marks.current(), Some(50));
        assert_eq!(marks.held_by(), Some((&partition(1), Some(50))));
        marks.observe(&partition(1), 500);
        assert_eq!(marks.current(), Some(50), "its word counts, not its events");
        marks.given(&partition(1), 40);
        assert_eq!(marks.mark_of(&partition(1)), Some(50), "never backwards");
        marks.given(&partition(1), 99);
        assert_eq!(marks.current(), Some(90));
        assert_eq!(marks.held_by(), Some((&partition(0), Some(90))));
        marks.given(&partition(0), END_OF_TIME);
        marks.given(&partition(1), END_OF_TIME);
        assert_eq!(marks.current(), Some(END_OF_TIME));
    }

    #[test]
    fn a_mark_at_the_beginning_of_time_holds_the_watermark() {
        let mut marks = Watermarks::new(10);
        marks.given(&partition(0), Micros::MIN);
        marks.observe(&partition(0), 100);
        assert_eq!(marks.current(), None);
        assert_eq!(marks.held_by(), Some((&partition(0), None)));
        marks.given(&partition(0), 5);
        assert_eq!(marks.current(), Some(5));
    }

    #[test]
    fn each_partition_is_idle_by_itself() {
        let mut marks = Watermarks::new(0);
        marks.observe(&partition(0), 10);
        marks.discover(&partition(1));
        marks.given(&partition(2), 5);
        assert_eq!(marks.held_by(), Some((&partition(1), None)));
        marks.idle(&partition(1));
        assert_eq!(marks.current(), Some(5));
        marks.idle(&partition(2));
        assert_eq!(marks.current(), Some(10));
        marks.idle(&partition(0));
        assert_eq!(marks.current(), Some(10), "all are idle: it stays");
        assert_eq!(marks.held_by(), None);
        marks.given(&partition(2), 20);
        assert_eq!(marks.current(), Some(20), "a mark wakes it up");
    }

    #[test]
    fn what_was_written_before_marks_were_given_is_read() {
        let old = r#"{"max_delay":10,"of":{"p0":{"highest":100,"idle":false,"done":false}},"reached":90}"#;
        let mut marks: Watermarks = serde_json::from_str(old).unwrap();
        assert_eq!(marks.current(), Some(90));
        assert_eq!(serde_json::to_string(&marks).unwrap(), old);
        marks.given(&partition(0), 95);
        let new = serde_json::to_string(&marks).unwrap();
        let mut again: Watermarks = serde_json::from_str(&new).unwrap();
        assert_eq!(again.current(), Some(95));
    }

    proptest! {
        #[test]
        fn never_goes_back(steps in proptest::collection::vec((0u8..4, 0i64..1000, 0u8..10), 0..200)) {
            let mut marks = Watermarks::new(5);
            let mut before = marks.current();
            for (p, at, what) in steps {
                match what {
                    0 => marks.idle(&partition(p)),
                    1 => marks.discover(&partition(p)),
                    2 => marks.given(&partition(p), at),
                    _ => marks.observe(&partition(p), at),
                }
                let now = marks.current();
                prop_assert!(now >= before);
                before = now;
            }
        }
    }
}
