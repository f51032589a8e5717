//! What the process takes, and open windows to fill it with.

use calve_model::windows::{Panes, Placement, Seen, Trigger};

pub(crate) const SECOND: i64 = 1_000_000;

pub(crate) fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("on Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.and_then(|kib| kib.parse::<usize>().ok())
        .expect("VmRSS")
        << 10
}

pub(crate) fn early_and_late() -> Trigger {
    let every = 30 * SECOND;
    let period = Trigger::Period {
        every,
        aligned: false,
    };
    Trigger::phases(Some(period), Some(Trigger::Count(1)))
}

pub(crate) fn see<K: Ord + Clone>(panes: &mut Panes<K>, key: K, at: i64) {
    let (mut windows, mut effects) = (Vec::new(), Vec::new());
    panes.strategy().windowing.clone().assign(at, &mut windows);
    for window in windows {
        let seen = Seen {
            key: key.clone(),
            window,
            count: 1,
            bytes: 100,
        };
        assert_eq!(panes.seen(at, seen, &mut effects), Placement::Into(window));
    }
    assert!(effects.is_empty());
}
