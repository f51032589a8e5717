//! The cheapest of a ladder of sizes, found by trying neighbours.
//!
//! The cost of a size is what was measured lately where it was used. After some samples a neighbour is
//! tried; it stays when it was cheaper by more than noise is. A trial that was for nothing makes the
//! pause until the next one twice as long, so a good size is left in peace; a cost that has changed
//! ends the pause. What is tried are single steps, so a trial costs little.

/// A walk on a ladder.
#[derive(Clone, Debug)]
pub(super) struct Climb {
    ladder: &'static [u64],
    /// The step that is used.
    at: usize,
    /// Samples that decide.
    samples: u32,
    /// A neighbour must be cheaper by this share.
    gain: f64,
    /// The step that a trial began at, and what it cost there.
    from: Option<(usize, f64)>,
    upwards: bool,
    /// Smaller sizes are tried without need; else only when what is used has become dearer.
    both: bool,
    sum: f64,
    seen: u32,
    /// What the step costs that is used, as was found last.
    cost: Option<f64>,
    /// Rounds until the next trial, and how many that were at first.
    wait: u32,
    pause: u32,
    first_pause: u32,
}

/// So many times the least gain say that the next step is likely to gain, too.
const STEEP: f64 = 4.0;
/// A trial whose samples cost so many times as much ends at once.
const HOPELESS: f64 = 1.3;
const LONGEST_PAUSE: u32 = 256;
/// A cost that has changed by this share, up or down, makes what is known worthless.
const CHANGED: f64 = 1.0;

impl Climb {
    pub(super) fn new(
        ladder: &'static [u64],
        at: usize,
        samples: u32,
        gain: f64,
        first_pause: u32,
        both: bool,
    ) -> Self {
        Self {
            ladder,
            at,
            samples,
            gain,
            from: None,
            upwards: true,
            both,
            sum: 0.0,
            seen: 0,
            cost: None,
            wait: 0,
            pause: first_pause,
            first_pause,
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.ladder[self.at]
    }

    /// Sizes above `most` are not used any more.
    pub(super) fn limit(&mut self, most: u64) {
        while self.at > 0 && self.ladder[self.at] > most {
            self.at -= 1;
            (self.from, self.cost) = (None, None);
            (self.sum, self.seen) = (0.0, 0);
        }
    }

    /// A sample of the cost of the size that is used; sizes above `most` are not tried.
    pub(super) fn see(&mut self, cost: f64, most: u64) {
        self.sum += cost;
        self.seen += 1;
        let hopeless = self
            .from
            .is_some_and(|(_, before)| cost > before * HOPELESS);
        if self.seen < self.samples && !hopeless {
            return;
        }
        let cost = self.sum / f64::from(self.seen);
        (self.sum, self.seen) = (0.0, 0);
        match self.from.take() {
            Some((_, before)) if cost < before * (1.0 - self.gain) => {
                self.cost = Some(cost);
                self.pause = self.first_pause;
                self.wait = if self.both { self.pause } else { LONGEST_PAUSE };
                if cost < before * (1.0 - STEEP * self.gain) {
                    // On in the same direction, at once.
                    self.try_neighbour(cost, most);
                }
            }
            Some((from, before)) => {
                self.at = from;
                self.cost = Some(before);
                self.upwards = !(self.upwards && self.both);
                self.wait = self.pause;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
            None => {
                let changed =
                    |known: f64| cost > known * (1.0 + CHANGED) || known > cost * (1.0 + CHANGED);
                if let Some(known) = self.cost.filter(|known| changed(*known)) {
                    (self.wait, self.pause) = (0, self.first_pause);
                    self.upwards &= self.both || cost < known;
                    self.cost = None;
                }
                let known = self.cost.unwrap_or(cost);
                self.cost = Some(known + (cost - known) / 4.0);
                self.wait = self.wait.saturating_sub(1);
                if self.wait == 0 {
                    self.try_neighbour(cost, most);
                }
            }
        }
    }

    fn try_neighbour(&mut self, cost: f64, most: u64) {
        let up = |at: usize| {
            let next = self.ladder.get(at + 1)?;
            (*next <= most).then_some(at + 1)
        };
        let down = |at: usize| at.checked_sub(1);
        let (first, second) = if self.upwards {
            (up(self.at), down(self.at))
        } else {
            (down(self.at), up(self.at))
        };
        let second = second.filter(|_| self.both);
        let Some(to) = first.or(second) else {
            return;
        };
        self.upwards = to > self.at;
        self.from = Some((self.at, cost));
        self.at = to;
    }
}
