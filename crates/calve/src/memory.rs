//! What the process holds: the figures of the allocator, and the pages of the executable.

use std::{fs, time::Duration};

use calve_engine::metrics::{Metrics, ProcessMemory};
use tokio_util::sync::CancellationToken;

/// How long nothing was received before the executable's pages are given back.
const IDLE: Duration = Duration::from_secs(3);

/// What the system and the allocator say now; zero where they do not.
pub(crate) fn now() -> ProcessMemory {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    };
    let said = mimalloc::MiMalloc::stats_json().ok();
    let said =
        said.and_then(|said| serde_json::from_slice::<serde_json::Value>(said.to_bytes()).ok());
    let figure = |name: &str, part: &str| {
        let figure = said
            .as_ref()
            .and_then(|said| said.get(name)?.get(part)?.as_u64());
        figure.unwrap_or(0)
    };
    ProcessMemory {
        resident: bytes("VmRSS:"),
        anonymous: bytes("RssAnon:"),
        committed: figure("committed", "current"),
        committed_peak: figure("committed", "peak"),
        reserved: figure("reserved", "current"),
    }
}

/// Gives back the executable's pages whenever nothing has come for a while, until `stop`: a start
/// touches fifty megabytes of code, of which waiting for events needs a tenth.
pub(crate) async fn give_back_when_idle(metrics: Metrics, stop: CancellationToken) {
    let mut received = u64::MAX;
    let mut given = false;
    while stop
        .run_until_cancelled(tokio::time::sleep(IDLE))
        .await
        .is_some()
    {
        let events = metrics.status().events;
        if events != received {
            received = events;
            given = false;
        } else if !given {
            given = true;
            give_back_code();
        }
    }
}

/// The pages of code leave the process; the page cache has them when they are needed again.
#[cfg(target_os = "linux")]
fn give_back_code() {
    let (Ok(maps), Ok(program)) = (
        fs::read_to_string("/proc/self/maps"),
        std::env::current_exe(),
    ) else {
        return;
    };
    let program = program.to_string_lossy();
    for line in maps.lines().filter(|line| line.ends_with(&*program)) {
        let mut words = line.split_ascii_whitespace();
        let (Some(range), Some("r-xp")) = (words.next(), words.next()) else {
            continue;
        };
        let ends = range.split_once('-').and_then(|(start, end)| {
            let address = |text| usize::from_str_radix(text, 16).ok();
            Some((address(start)?, address(end)?))
        });
        if let Some((start, end)) = ends {
            #[expect(unsafe_code, reason = "a system call about this process's own pages")]
            // SAFETY: a mapping of a file that nobody can write to holds what the file holds, so its
            // pages come back as they were.
            let _ = unsafe {
                libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED)
            };
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn give_back_code() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allocator_tells_what_it_holds() {
        let held = vec![1_u8; 64 << 20];
        let with = now();
        assert!(with.committed >= 64 << 20, "{with:?}");
        assert!(with.committed_peak >= with.committed && with.reserved >= 64 << 20);
        drop(held);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn code_that_was_given_back_runs_on() {
        let before = now();
        give_back_code();
        let after = now();
        let code = |memory: &ProcessMemory| memory.resident - memory.anonymous;
        assert!(code(&after) < code(&before), "{before:?} {after:?}");
    }
}
