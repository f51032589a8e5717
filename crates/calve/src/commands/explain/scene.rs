//! The made-up events of the timeline, from the windows of a pipeline: some in time, one that is late
//! within the allowed lateness, one beyond. They come as they happen, in one source partition.

use calve_model::{
    Micros,
    windows::{Strategy, Trigger, Windowing},
};

/// 2026-01-01T12:00:00Z, in microseconds.
const BEGIN: Micros = 1_767_268_800_000_000;
const SECOND: Micros = 1_000_000;

/// Events that come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    /// Processing time.
    pub(super) at: Micros,
    /// When they happened.
    pub(super) event_time: Micros,
    pub(super) count: u64,
    pub(super) bytes: u64,
}

/// What the events must reach for the trigger to show itself.
#[derive(Clone, Copy, Debug, Default)]
struct Needs {
    period: Option<Micros>,
    count: Option<u64>,
    bytes: Option<u64>,
}

impl Needs {
    /// Of the part of the trigger that counts before the watermark.
    fn of(trigger: &Trigger) -> Self {
        let mut needs = Self::default();
        needs.gather(trigger);
        needs
    }

    fn gather(&mut self, trigger: &Trigger) {
        match trigger {
            Trigger::AtWatermark => {}
            Trigger::Period { every, .. } => {
                self.period.get_or_insert(*every);
            }
            Trigger::Count(count) => {
                self.count.get_or_insert(*count);
            }
            Trigger::Bytes(bytes) => {
                self.bytes.get_or_insert(*bytes);
            }
            Trigger::All(parts) | Trigger::Any(parts) | Trigger::Sequence(parts) => {
                for part in parts {
                    self.gather(part);
                }
            }
            Trigger::Repeat(part) => self.gather(part),
            Trigger::Until { repeat, until } => {
                self.gather(repeat);
                self.gather(until);
            }
            Trigger::Phases { early, .. } => {
                if let Some(early) = early {
                    self.gather(early);
                }
            }
        }
    }
}

/// The events, in the order in which they come.
pub(super) fn arrivals(strategy: &Strategy, max_delay: Micros) -> Vec<Arrival> {
    let needs = Needs::of(&strategy.trigger);
    let mut scene = Scene {
        needs,
        arrivals: Vec::new(),
    };
    match strategy.windowing {
        Windowing::Global => scene.global(),
        Windowing::Session { gap } => scene.sessions(gap, strategy.allowed_lateness, max_delay),
        Windowing::Fixed { size, .. } | Windowing::Sliding { size, .. } => {
            let mut windows = Vec::new();
            strategy.windowing.assign(BEGIN, &mut windows);
            let start = windows.last().map_or(BEGIN, |window| window.start);
            scene.aligned(start, size, strategy.allowed_lateness, max_delay);
        }
    }
    scene.arrivals
}

struct Scene {
    needs: Needs,
    arrivals: Vec<Arrival>,
}

impl Scene {
    /// As they happen, but never before what came last.
    fn push(&mut self, at: Micros, event_time: Micros, share: Share) {
        let part = |whole: Option<u64>| {
            let whole = whole.unwrap_or(1);
            match share {
                Share::Half => whole.div_ceil(2),
                Share::Rest => (whole / 2).max(1),
                Share::One => 1,
            }
        };
        let last = self.arrivals.last().map_or(Micros::MIN, |last| last.at);
        self.arrivals.push(Arrival {
            at: at.max(last),
            event_time,
            count: part(self.needs.count),
            bytes: part(self.needs.bytes),
        });
    }

    fn in_time(&mut self, event_time: Micros, share: Share) {
        self.push(event_time, event_time, share);
    }

    fn aligned(&mut self, start: Micros, size: Micros, lateness: Micros, max_delay: Micros) {
        let at = |tenths: Micros| start + round(size.saturating_mul(tenths) / 10, size);
        let end = start.saturating_add(size);
        self.in_time(at(1), Share::Half);
        let soon = self
            .needs
            .period
            .map_or(size / 10, |period| (period / 2).min(size / 10));
        self.in_time(at(1) + round(soon, size), Share::Rest);
        // Near the end, so that a period that begins then is not over when the watermark passes.
        let near = self.little(size).min(size / 4);
        self.in_time(end - near, Share::One);
        self.late(end, size, lateness, max_delay, (at(8), at(7)));
    }

    fn sessions(&mut self, gap: Micros, lateness: Micros, max_delay: Micros) {
        let at = |hundredths: Micros| BEGIN + round(gap.saturating_mul(hundredths) / 100, gap);
        self.in_time(at(0), Share::Half);
        self.in_time(at(50), Share::Rest);
        self.in_time(at(220), Share::One);
        // Out of order: it lies in the gap between the two sessions.
        self.push(at(230), at(135), Share::One);
        self.late(at(320), gap, lateness, max_delay, (at(210), at(200)));
    }

    /// The watermark passes `end`; one event within the allowed lateness; it passes that too; one
    /// event beyond.
    fn late(
        &mut self,
        end: Micros,
        size: Micros,
        lateness: Micros,
        max_delay: Micros,
        (within, beyond): (Micros, Micros),
    ) {
        let little = self.little(size);
        let passes = end.saturating_add(max_delay).saturating_add(little);
        self.in_time(passes, Share::One);
        let mut now = passes;
        if lateness > 0 {
            let wait = round(lateness / 4, lateness).clamp(1, little);
            self.push(now.saturating_add(wait), within, Share::One);
            let over = passes.saturating_add(lateness);
            now = over.max(now.saturating_add(wait).saturating_add(little));
            self.in_time(now, Share::One);
        }
        self.push(now.saturating_add(little), beyond, Share::One);
    }

    /// A while that is short for a window of this size, and for its trigger.
    fn little(&self, size: Micros) -> Micros {
        let short = self
            .needs
            .period
            .map_or(size / 20, |period| (period / 4).min(size / 20));
        round(short, size).max(1)
    }

    fn global(&mut self) {
        let unit = self.needs.period.unwrap_or(10 * SECOND);
        self.in_time(BEGIN, Share::Half);
        self.in_time(BEGIN.saturating_add(unit / 2), Share::Rest);
        self.in_time(BEGIN.saturating_add(unit.saturating_mul(3)), Share::One);
    }
}

/// How much of what the trigger counts.
#[derive(Clone, Copy)]
enum Share {
    Half,
    Rest,
    One,
}

/// Times that read well: whole seconds where windows are long.
fn round(length: Micros, of: Micros) -> Micros {
    let grain = match of {
        _ if of >= 60 * SECOND => SECOND,
        _ if of >= SECOND => 1_000,
        _ => 1,
    };
    length - length % grain
}
