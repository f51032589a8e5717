//! Watermarks: how far event time is believed complete. Invariant: a watermark never goes back.
//!
//! Bounded out-of-orderness: a source partition's watermark is the highest event time seen in it
//! less `max_delay`; a shard's is the minimum over its source partitions that are neither idle nor
//! ended (Akidau et al., VLDB 2015, section 2.3).

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

    /// A source partition exists and has not been read: it holds the watermark until it is.
    pub fn discover(&mut self, partition: &SourcePartition) {
        self.of.entry(partition.clone()).or_default();
    }

    /// Events up to `highest` were seen in a source partition; it is not idle any more.
    pub fn observe(&mut self, partition: &SourcePartition, highest: Micros) {
        let one = self.of.entry(partition.clone()).or_default();
        one.highest = Some(one.highest.map_or(highest, |h| h.max(highest)));
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

    /// The shard's watermark in microseconds; none while nothing can be said. When every source
    /// partition has ended it is [`END_OF_TIME`]; when all are idle or ended, it stays where it was.
    pub fn current(&mut self) -> Option<Micros> {
        let mut lowest: Option<Micros> = None;
        let mut unread = false;
        let mut active = 0;
        for one in self.of.values().filter(|one| !one.idle && !one.done) {
            active += 1;
            match one.highest {
                None => unread = true,
                Some(highest) => {
                    let mark = highest.saturating_sub(self.max_delay);
                    lowest = Some(lowest.map_or(mark, |l| l.min(mark)));
                }
            }
        }
        let now = if active == 0 {
            let all_done = !self.of.is_empty() && self.of.values().all(|one| one.done);
            all_done.then_some(END_OF_TIME)
        } else if unread {
            None
        } else {
            lowest
        };
        self.reached = self.reached.max(now);
        self.reached
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
    fn an_unread_partition_holds_it_at_nothing() {
        let mut marks = Watermarks::new(0);
        marks.discover(&partition(0));
        marks.observe(&partition(1), 7);
        assert_eq!(marks.current(), None);
        marks.observe(&partition(0), 3);
        assert_eq!(marks.current(), Some(3));
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
                    _ => marks.observe(&partition(p), at),
                }
                let now = marks.current();
                prop_assert!(now >= before);
                before = now;
            }
        }
    }
}
