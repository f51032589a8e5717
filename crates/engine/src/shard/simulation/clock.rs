//! Processing time that passes only when nothing else can happen, and the runtime that knows it.
//!
//! One thread runs every task. The future below `block_on` yields, and tokio polls what has yielded
//! only when no task is ready (the event interval is out of reach): then the earliest timer fires.
//! So the order of everything depends on the seed alone, and a run in which nothing can fire any more
//! is noticed at once.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Looks without a timer to fire after which nothing will ever happen.
const STILL: u32 = 1000;

thread_local! {
    static CLOCK: RefCell<Option<Arc<Clock>>> = const { RefCell::new(None) };
}

/// The simulated clock of this thread; none outside of a simulation.
pub(in crate::shard) fn current() -> Option<Arc<Clock>> {
    CLOCK.with_borrow(Clone::clone)
}

pub(in crate::shard) struct Clock(Mutex<Inner>);

struct Inner {
    now: Duration,
    timers: BTreeMap<(Duration, u64), Waker>,
    made: u64,
    random: ChaCha8Rng,
}

impl Clock {
    pub(in crate::shard) fn now(&self) -> Duration {
        self.0.lock().now
    }

    pub(in crate::shard) fn sleep(self: &Arc<Self>, pause: Duration) -> Sleep {
        let mut inner = self.0.lock();
        inner.made += 1;
        let key = (inner.now + pause, inner.made);
        drop(inner);
        Sleep {
            clock: Arc::clone(self),
            key,
        }
    }

    /// A short pause of random length: what is done after it comes in any order.
    pub(in crate::shard) fn pause(self: &Arc<Self>) -> Sleep {
        let micros = self.0.lock().random.random_range(0..3000);
        self.sleep(Duration::from_micros(micros))
    }

    /// Lets the earliest timer fire. False: there is none.
    fn advance(&self) -> bool {
        let mut inner = self.0.lock();
        let Some(((at, _), waker)) = inner.timers.pop_first() else {
            return false;
        };
        inner.now = inner.now.max(at);
        drop(inner);
        waker.wake();
        true
    }
}

pub(in crate::shard) struct Sleep {
    clock: Arc<Clock>,
    key: (Duration, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.clock.0.lock();
        if inner.now >= self.key.0 {
            return Poll::Ready(());
        }
        inner.timers.insert(self.key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.clock.0.lock().timers.remove(&self.key);
    }
}

/// Runs `body` and all that it spawns in simulated time.
///
/// # Errors
/// The time at which nothing could happen any more, though `body` had not ended.
pub(super) fn simulate<T: Send + 'static>(
    seed: u64,
    body: impl Future<Output = T> + Send + 'static,
) -> Result<T, Duration> {
    let clock = Arc::new(Clock(Mutex::new(Inner {
        now: Duration::ZERO,
        timers: BTreeMap::new(),
        made: 0,
        random: ChaCha8Rng::seed_from_u64(seed ^ 0xc10c),
    })));
    CLOCK.set(Some(Arc::clone(&clock)));
    // No I/O and no timers of tokio's own: using one of them fails.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .event_interval(u32::MAX)
        .build()
        .expect("a runtime");
    let result = runtime.block_on(async {
        let task = tokio::spawn(body);
        let mut still = 0;
        while still < STILL {
            tokio::task::yield_now().await;
            if task.is_finished() {
                return Ok(task.await.expect("the simulation itself panicked"));
            }
            // A task that tokio makes yield, since it ran for long, comes after us.
            still += 1;
            if still % 2 == 0 && clock.advance() {
                still = 0;
            }
        }
        Err(clock.now())
    });
    drop(runtime);
    CLOCK.set(None);
    result
}
