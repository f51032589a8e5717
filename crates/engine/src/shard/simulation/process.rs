//! One owner of the shard, from its start to its end: how each of its calls goes, and its fate. A
//! process that died or sleeps does nothing any more, wherever it was.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::{mpsc, watch};

use super::{clock, world::World};
use crate::error::{Error, Result};

/// What the operator learns of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Died,
    FellAsleep,
}

pub(super) struct Process {
    pub(super) world: Arc<World>,
    pub(super) id: u32,
    fate: Mutex<Planned>,
    /// Whether its calls go on.
    awake: watch::Sender<bool>,
    tell: mpsc::Sender<Fate>,
}

struct Planned {
    calls: u64,
    /// At which call.
    dies: Option<u64>,
    sleeps: Option<u64>,
    /// Nothing goes wrong in it.
    calm: bool,
}

impl Process {
    pub(super) fn new(world: &Arc<World>, id: u32, tell: mpsc::Sender<Fate>) -> Arc<Self> {
        let calm = id >= world.plan.patience;
        let at = |chance| {
            let fated = !calm && world.draw(chance);
            // Most lives are short: that is when they meet.
            let random = &mut world.state().random;
            let most = [30, 200, 2000][random.random_range(0..3)];
            fated.then(|| random.random_range(0..most))
        };
        let fate = Planned {
            calls: 0,
            dies: at(world.plan.crash),
            sleeps: at(world.plan.sleep),
            calm,
        };
        Arc::new(Self {
            world: Arc::clone(world),
            id,
            fate: Mutex::new(fate),
            awake: watch::Sender::new(true),
            tell,
        })
    }

    pub(super) fn wake(&self) {
        self.awake.send_replace(true);
    }

    /// A moment in a call, at which the process may die or fall asleep.
    async fn moment(&self, what: &str) {
        let fate = {
            let mut fate = self.fate.lock();
            fate.calls += 1;
            let now = Some(fate.calls);
            if fate.dies == now {
                Some(Fate::Died)
            } else if fate.sleeps == now {
                Some(Fate::FellAsleep)
            } else {
                None
            }
        };
        if let Some(clock) = clock::current() {
            let line = format!("{:?} {} {what} {fate:?}", clock.now(), self.id);
            self.world.state().trace.push(line);
        }
        if let Some(fate) = fate {
            self.awake.send_replace(false);
            let _ = self.tell.try_send(fate);
        }
        let mut awake = self.awake.subscribe();
        let _ = awake.wait_for(|awake| *awake).await;
    }

    /// Takes a random while.
    pub(super) async fn delay(&self, what: &str, most: Duration) {
        self.moment(what).await;
        if let Some(clock) = clock::current() {
            clock.sleep(self.world.below(most)).await;
            self.moment(what).await;
        }
    }

    /// A call that takes little, and works unless it never does.
    pub(super) async fn quick(&self, what: &str) -> Result<()> {
        let plan = &self.world.plan;
        self.delay(what, plan.call / 4).await;
        plan.works(what)
    }

    /// Before a call does what it does.
    ///
    /// # Errors
    /// `Unavailable`: it did nothing. What [`Plan::broken`](super::plan::Plan) says: it never works.
    pub(super) async fn before(&self, what: &str) -> Result<()> {
        let (world, plan) = (&self.world, &self.world.plan);
        self.delay(what, plan.call).await;
        plan.works(what)?;
        if self.fate.lock().calm {
            return Ok(());
        }
        let now = clock::current().map_or(Duration::ZERO, |clock| clock.now());
        if world.draw(plan.outage) {
            let long = world.below(plan.options.retry_for * 2);
            world.state().outage = now + long;
        }
        if now < world.state().outage || world.draw(plan.fail) {
            return Err(Error::unavailable(format!("injected: {what} failed")));
        }
        Ok(())
    }

    /// After a call did what it does. True: its answer is lost.
    pub(super) async fn lost(&self, what: &str) -> bool {
        let plan = &self.world.plan;
        self.delay(what, plan.call).await;
        !self.fate.lock().calm && self.world.draw(plan.lose)
    }

    /// As [`Process::lost`], where a lost answer is an error.
    pub(super) async fn after(&self, what: &str) -> Result<()> {
        if self.lost(what).await {
            return Err(Error::unavailable(format!(
                "injected: the answer of {what} is lost"
            )));
        }
        Ok(())
    }

    pub(super) fn draw(&self, chance: f64) -> bool {
        !self.fate.lock().calm && self.world.draw(chance)
    }
}
