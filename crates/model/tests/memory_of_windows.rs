//! How much memory a million open windows take, as the operating system counts it. One test, so
//! that nothing else runs in this process.
#![cfg(target_os = "linux")]

mod common;

use std::time::Instant;

use calve_model::windows::{Panes, Strategy, Window, Windowing};
use common::memory::{SECOND, early_and_late, resident_bytes, see};

#[test]
fn a_million_windows_are_small() {
    let before = resident_bytes();
    let began = Instant::now();
    let mut panes: Panes<()> = Panes::new(Strategy {
        windowing: Windowing::Fixed {
            size: SECOND,
            offset: 0,
        },
        trigger: early_and_late(),
        allowed_lateness: 600 * SECOND,
        ..Strategy::default()
    });
    let mut effects = Vec::new();
    for n in 0..1_000_000i64 {
        see(&mut panes, (), n * SECOND);
        if n % 1000 == 999 {
            panes.settle(0, &mut effects);
        }
    }
    let bytes = resident_bytes() - before;
    let each = bytes / 1_000_000;
    println!("1000000 windows: {each} bytes each, {:?}", began.elapsed());
    assert_eq!(panes.open(), 1_000_000);
    assert!(bytes < 300_000_000, "windows take {bytes} bytes");

    // The watermark touches the windows that end, and not the others.
    panes.watermark(0, 100 * SECOND, &mut effects);
    assert_eq!(effects.len(), 100);
    let last = Window::new(999_999 * SECOND, 1_000_000 * SECOND);
    let windows: Vec<Window> = panes.windows().map(|((), open)| open.window).collect();
    assert_eq!(windows.last(), Some(&last));
}
