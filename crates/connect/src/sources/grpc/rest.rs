//! A group that was not complete when its stream ended well, where that says nothing: when it counts as
//! complete nevertheless. Pure: the clock is the caller's.
//!
//! A later value completes it, as always. Else it must be given again, neither shorter nor longer,
//! by a stream that ended so after the idle time: a server that was stopped between two messages gives
//! more of it when it is back, and one that has no more gives the same.

use std::time::Duration;

use tokio::time::Instant;

/// How much of a group there was, and since when there is no more.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rest(Option<((u64, u32), Instant)>);

impl Rest {
    /// A stream ended with so much of a group (its value, and its messages). How long until it counts
    /// as complete: zero for now, none for never.
    pub(super) fn ended(
        &mut self,
        open: Option<(u64, u32)>,
        now: Instant,
        idle: Option<Duration>,
    ) -> Option<Duration> {
        let open = open?;
        let (most, since) = *self.0.get_or_insert((open, now));
        if open > most {
            self.0 = Some((open, now));
            return idle;
        }
        // A part of what there was: the server is not where it was.
        if open < most {
            return idle;
        }
        Some(idle?.saturating_sub(now - since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_group_is_complete_that_is_the_same_after_the_idle_time() {
        let begin = Instant::now();
        let at = |seconds| begin + seconds * SECOND;
        let idle = Some(10 * SECOND);
        let mut rest = Rest::default();
        assert_eq!(rest.ended(None, at(0), idle), None);
        assert_eq!(rest.ended(Some((5, 2)), at(0), idle), Some(10 * SECOND));
        assert_eq!(rest.ended(Some((5, 2)), at(4), idle), Some(6 * SECOND));
        // It grew, so that the time begins anew; and what is less says nothing.
        assert_eq!(rest.ended(Some((5, 3)), at(9), idle), Some(10 * SECOND));
        assert_eq!(rest.ended(Some((5, 1)), at(30), idle), Some(10 * SECOND));
        assert_eq!(rest.ended(None, at(31), idle), None);
        assert_eq!(rest.ended(Some((5, 3)), at(32), idle), Some(Duration::ZERO));
        assert_eq!(rest.ended(Some((6, 1)), at(33), idle), Some(10 * SECOND));
        assert_eq!(
            rest.ended(Some((6, 1)), at(99), None),
            None,
            "never by silence"
        );
    }
}
