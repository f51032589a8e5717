//! How often is committed: as seldom as the freshness allows.
//!
//! A row is visible when its epoch was cut, prepared and committed; so an epoch may last for the
//! freshness less what that takes: what nearly all took lately, not the average, since half of the epochs
//! would be late then. An interval shorter than a commit would only make a queue: there the freshness
//! cannot be kept, and commits follow each other with hardly a pause.

use std::collections::VecDeque;

use crate::Micros;

/// What something took lately.
#[derive(Clone, Debug, Default)]
struct Lately(VecDeque<f64>);

const REMEMBERED: usize = 8;

impl Lately {
    fn see(&mut self, micros: Micros) {
        self.0.push_back(micros.max(0) as f64);
        if self.0.len() > REMEMBERED {
            self.0.pop_front();
        }
    }

    /// The median of the last five: what was slow once or twice is no trend.
    fn typical(&self) -> f64 {
        let mut last: Vec<f64> = self.0.iter().rev().take(5).copied().collect();
        last.sort_by(f64::total_cmp);
        last.get(last.len() / 2).copied().unwrap_or(0.0)
    }

    /// What nearly all of them stayed below: the highest but one.
    fn high(&self) -> f64 {
        let mut all: Vec<f64> = self.0.iter().copied().collect();
        all.sort_by(|a, b| b.total_cmp(a));
        all.get(1).or(all.first()).copied().unwrap_or(0.0)
    }
}

/// Finds the interval.
#[derive(Clone, Debug)]
pub(super) struct Cadence {
    freshness: f64,
    prepare: Lately,
    commit: Lately,
    /// How old the oldest rows of the open epoch were when they were taken, and of the epochs before.
    oldest: Micros,
    age: Lately,
    /// The last epoch that was prepared stood in a queue before.
    queue: bool,
    every: f64,
}

/// An interval is a twentieth of the freshness at least, however long the rest takes.
const LEAST_SHARE: f64 = 0.05;
/// Of a backlog's age so much counts: committing more often does not make it shorter.
const MOST_AGE: f64 = 0.1;
/// Commits may fill so much of the time.
const BUSY: f64 = 0.96;
/// What is left over, so that an epoch is not late by a hair.
const SPARE: f64 = 0.015;
/// An epoch that waited longer than this share of its commit stood in a queue, which becomes shorter
/// when commits fill less of the time.
const QUEUE: f64 = 0.25;
const CATCHING_UP: f64 = 0.9;
/// Changes below this share are not worth one.
const STEADY: f64 = 0.03;

fn stood(waited: Micros, took: Micros) -> bool {
    waited as f64 > QUEUE * took as f64
}

impl Cadence {
    /// The first interval leaves half of the time for what is not known yet.
    pub(super) fn new(freshness: Micros) -> Self {
        let freshness = freshness.max(1) as f64;
        Self {
            freshness,
            prepare: Lately::default(),
            commit: Lately::default(),
            oldest: 0,
            age: Lately::default(),
            queue: false,
            every: freshness / 2.0,
        }
    }

    pub(super) fn every(&self) -> Micros {
        self.every as Micros
    }

    pub(super) fn aged(&mut self, age: Micros) {
        self.oldest = self.oldest.max(age);
    }

    pub(super) fn prepared(&mut self, waited: Micros, took: Micros) {
        self.queue = stood(waited, took);
        self.prepare.see(took);
        self.age.see(std::mem::take(&mut self.oldest));
    }

    pub(super) fn committed(&mut self, waited: Micros, took: Micros) {
        self.commit.see(took);
        let age = self.age.high().min(MOST_AGE * self.freshness);
        let behind = self.prepare.high() + self.commit.high() + age;
        // Epochs are prepared one after the other, and committed one after the other.
        let slowest = self.prepare.typical().max(self.commit.typical());
        let queue = self.queue || stood(waited, took);
        let least = slowest / if queue { CATCHING_UP } else { BUSY };
        let best = (self.freshness * (1.0 - SPARE) - behind)
            .max(least)
            .max(LEAST_SHARE * self.freshness);
        if (best - self.every).abs() > STEADY * self.every {
            self.every = best;
        }
    }
}
