//! How much memory and how many bytes of checkpoint open sessions take, as the operating system
//! counts it. One test, so that nothing else runs in this process.
#![cfg(target_os = "linux")]

mod common;

use std::sync::Arc;
use std::time::Instant;

use calve_model::windows::{Accumulation, Panes, Strategy, Windowing};
use common::memory::{SECOND, early_and_late, resident_bytes, see};

#[test]
fn a_hundred_thousand_sessions_are_small() {
    let before = resident_bytes();
    let began = Instant::now();
    let mut panes: Panes<Arc<str>> = Panes::new(Strategy {
        windowing: Windowing::Session { gap: 60 * SECOND },
        trigger: early_and_late(),
        allowed_lateness: 600 * SECOND,
        accumulation: Accumulation::Retracting,
        ..Strategy::default()
    });
    // Keys of 24 letters in no order; half of the sessions have fired, and their panes stand.
    let mut effects = Vec::new();
    for n in 0..100_000u64 {
        let mixed = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let key = format!("{mixed:020x}{:04x}", n & 0xffff);
        see(&mut panes, key.into(), n as i64);
        if n == 50_000 {
            panes.settle(0, &mut effects);
            panes.tick(3600 * SECOND, &mut effects);
            assert_eq!(effects.len(), 50_001);
            effects = Vec::new();
        }
    }
    panes.settle(0, &mut effects);
    assert!(effects.is_empty());
    let bytes = resident_bytes() - before;
    let each = bytes / 100_000;
    println!("100000 sessions: {each} bytes each, {:?}", began.elapsed());
    assert_eq!(panes.open(), 100_000);
    assert!(bytes < 60_000_000, "sessions take {bytes} bytes");

    let began = Instant::now();
    let text = serde_json::to_vec(&panes.save()).expect("written");
    let each = text.len() / 100_000;
    println!("saved: {each} bytes each, {:?}", began.elapsed());
    assert!(text.len() < 15_000_000, "saved sessions take {each} bytes");
    let began = Instant::now();
    let read = serde_json::from_slice(&text).expect("read");
    let restored = Panes::restore(panes.strategy().clone(), read);
    println!("restored: {:?}", began.elapsed());
    assert_eq!(restored, panes);
}
