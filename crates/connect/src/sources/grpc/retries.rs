//! When a stream that failed or ended is opened again, and when it is given up. Pure: the clock is the
//! caller's.
//!
//! Only news count as success: events that were not there before, or a connection that held for
//! minutes. A server that takes every call, is silent for a while and fails again and again has failed
//! since the first time.

use std::time::Duration;

use rand::Rng as _;
use tokio::time::Instant;

/// A connection that held so long was one, though nothing came.
const HELD: Duration = Duration::from_mins(5);
/// Pauses between tries.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is known of a server's failures.
#[derive(Debug)]
pub(super) struct Retries {
    /// So long it is tried again without news; none: for ever.
    limit: Option<Duration>,
    /// Tries since something new came, and since when there was nothing.
    tries: u32,
    failing_since: Option<Instant>,
    opened: Option<Instant>,
    /// See [`HELD`].
    pub(super) held: Duration,
}

impl Retries {
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self {
            limit,
            tries: 0,
            failing_since: None,
            opened: None,
            held: HELD,
        }
    }

    /// A try begins.
    pub(super) fn open(&mut self, now: Instant) {
        self.opened = Some(now);
    }

    /// Something came that was not there before.
    pub(super) fn news(&mut self) {
        self.tries = 0;
        self.failing_since = None;
    }

    /// The try is over; `was_up`: there was a connection, which was not given up for its silence.
    pub(super) fn closed(&mut self, now: Instant, was_up: bool) {
        let opened = self.opened.take();
        if was_up && opened.is_some_and(|opened| now - opened >= self.held) {
            self.news();
        }
    }

    /// The try failed; `was_up` as with [`Retries::closed`]. Whether another one is wanted.
    pub(super) fn failed(&mut self, now: Instant, was_up: bool) -> bool {
        self.closed(now, was_up);
        let since = *self.failing_since.get_or_insert(now);
        self.limit.is_none_or(|limit| now - since < limit)
    }

    /// How long to wait before the next try: longer each time, and not the same in every process.
    pub(super) fn pause(&mut self) -> Duration {
        let most = FIRST_PAUSE * 2_u32.pow(self.tries.min(10));
        let most = most.min(LONGEST_PAUSE).as_millis() as u64;
        self.tries = self.tries.saturating_add(1);
        Duration::from_millis(rand::rng().random_range(most / 2..=most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn silence_between_failures_is_no_success() {
        let begin = Instant::now();
        let mut retries = Retries::new(Some(60 * SECOND));
        let mut now = begin;
        let mut failures = 0;
        loop {
            retries.open(now);
            // Connected each time, and silent for eleven seconds.
            now += 11 * SECOND;
            failures += 1;
            if !retries.failed(now, true) {
                break;
            }
            now += retries.pause();
            assert!(failures < 100, "it never ends");
        }
        assert!(now - begin >= 71 * SECOND, "{:?}", now - begin);
        assert!(now - begin <= 120 * SECOND, "{:?}", now - begin);
    }

    #[test]
    fn news_and_connections_that_held_begin_anew() {
        let begin = Instant::now();
        for held in [false, true] {
            let mut retries = Retries::new(Some(60 * SECOND));
            assert!(retries.failed(begin, false));
            let later = begin + HELD + SECOND;
            retries.open(begin + SECOND);
            if !held {
                retries.news();
            }
            assert!(retries.failed(later, held), "held={held}");
            assert!(retries.failed(later + 59 * SECOND, false));
            assert!(!retries.failed(later + 60 * SECOND, false));
        }
        // One that held and ended well is no failure, and the next failure is the first.
        let mut retries = Retries::new(Some(60 * SECOND));
        assert!(retries.failed(begin, false));
        retries.open(begin + SECOND);
        retries.closed(begin + HELD + SECOND, true);
        assert!(retries.failed(begin + HELD + SECOND, false));
        // A connection that was never there did not hold.
        let mut retries = Retries::new(Some(60 * SECOND));
        assert!(retries.failed(begin, false));
        retries.open(begin);
        assert!(!retries.failed(begin + 2 * HELD, false));
    }

    #[test]
    fn pauses_grow_to_their_limit() {
        let mut retries = Retries::new(None);
        let mut most = Duration::ZERO;
        for _ in 0..20 {
            most = most.max(retries.pause());
            assert!(most <= LONGEST_PAUSE);
        }
        assert!(most > LONGEST_PAUSE / 4);
        assert!(retries.failed(Instant::now(), false));
        retries.news();
        assert!(retries.pause() <= FIRST_PAUSE);
    }
}
