//! Named points at which a test makes the real binary die, stop or fail. The binary that is tested
//! is the binary that is shipped: a point costs one atomic load when the variable is not set.
//!
//! `CALVE_FAULT=name=action[@n[+]],…`: at the n-th pass (default the first; with `+`, at every pass
//! from then on) through point `name`,
//! `kill` sends SIGKILL to the process, `stop` sends SIGSTOP (a later SIGCONT lets it go on),
//! `error` makes the step fail as unavailable, `full` as if the disk were full, `lost` lets the step happen
//! and loses its answer, and `stall=SECONDS` holds it up for so long (`commit.before=stall=60@3`).

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::error::{Error, Result};

struct Fault {
    point: String,
    action: String,
    pass: u32,
    from_then_on: bool,
    passes: AtomicU32,
}

static FAULTS: LazyLock<Vec<Fault>> = LazyLock::new(|| {
    let Ok(spec) = std::env::var("CALVE_FAULT") else {
        return Vec::new();
    };
    spec.split(',')
        .filter_map(|one| {
            let (point, rest) = one.split_once('=')?;
            let (action, pass) = rest.split_once('@').unwrap_or((rest, "1"));
            let (pass, from_then_on) = pass
                .trim()
                .strip_suffix('+')
                .map_or((pass, false), |p| (p, true));
            Some(Fault {
                point: point.trim().to_owned(),
                action: action.trim().to_owned(),
                pass: pass.trim().parse().unwrap_or(1),
                from_then_on,
                passes: AtomicU32::new(0),
            })
        })
        .collect()
});

/// Passes through the point `name`.
///
/// # Errors
/// `Unavailable`, when the test asked for it.
pub fn point(name: &str) -> Result<()> {
    if FAULTS.is_empty() {
        return Ok(());
    }
    let action = hit(name);
    if let Some(time) = action.and_then(stalled) {
        wait(time);
    }
    failed(name, action)
}

/// The same for a step that waits for others: a stall holds up nothing else on the runtime.
///
/// # Errors
/// As [`point`].
#[allow(
    clippy::disallowed_methods,
    reason = "only where a test asked for it; the simulation has no faults of this kind"
)]
pub async fn passed(name: &str) -> Result<()> {
    if FAULTS.is_empty() {
        return Ok(());
    }
    let action = hit(name);
    if let Some(time) = action.and_then(stalled) {
        tokio::time::sleep(time).await;
    }
    failed(name, action)
}

fn failed(name: &str, action: Option<&str>) -> Result<()> {
    match action {
        Some("error") => Err(Error::unavailable(format!("fault injected: point={name}"))),
        Some("full") => {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            Err(Error::io(format!("fault injected: point={name}"), full))
        }
        _ => Ok(()),
    }
}

fn stalled(action: &str) -> Option<Duration> {
    let seconds: f64 = action.strip_prefix("stall=")?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Whether the answer of the step at point `name` is lost.
pub fn lost(name: &str) -> bool {
    !FAULTS.is_empty() && hit(name) == Some("lost")
}

fn hit(name: &str) -> Option<&'static str> {
    for fault in FAULTS.iter().filter(|f| f.point == name) {
        let pass = fault.passes.fetch_add(1, Ordering::Relaxed) + 1;
        if pass != fault.pass && !(fault.from_then_on && pass > fault.pass) {
            continue;
        }
        let signal = match fault.action.as_str() {
            "kill" => rustix::process::Signal::KILL,
            "stop" => rustix::process::Signal::STOP,
            action => return Some(action),
        };
        let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
        // The signal goes to the process, and any of its threads may take it: without a pause this one
        // could run on into the step that it was to die before.
        wait(Duration::from_millis(50));
    }
    None
}

#[allow(
    clippy::disallowed_methods,
    reason = "only where a test asked for it, and nothing else must go on"
)]
fn wait(time: Duration) {
    std::thread::sleep(time);
}
