//! Windows, triggers and panes: the Dataflow model (Akidau et al., VLDB 2015), with the semantics
//! of Apache Beam where the paper is silent. Facts in, effects out.
//!
//! [`Panes`] takes facts (elements seen per key and window, the watermark, processing time) and
//! answers with [`Effect`]s (merge, retract, fire, close) that the caller carries out on the
//! contents, which it keeps. Nothing here knows rows, clocks, threads or I/O.
//!
//! What always holds, for each key and window: its panes are early\* on-time? late\*; indexes rise
//! by one from 0 (a merged session goes on from the highest that it absorbed); each element is in
//! exactly one pane when discarding; with retracting, what stands at the end is one pane; after
//! `Close` nothing comes any more.
//!
//! Where it differs from Beam, on purpose:
//! - A trigger that has finished loses nothing: what comes after it waits for the last pane.
//! - A session's element is late only if it merges into no open session (Beam looks at the
//!   element's own window first, and drops it).
//! - A merged session's indexes go on; in Beam they begin again.
//! - An empty on-time pane fires only where it is asked for.
//! - A period is over when processing time is at its end (Beam: after it); an aligned one never
//!   begins and ends at the same instant.
//! - In [`Trigger::Until`] the part `repeat` repeats by itself.
//!
//! Start reading at [`Strategy`], then [`Panes`]; `machine` holds the triggers' semantics.
//!
//! ```
//! use calve_model::windows::{Effect, Panes, Placement, Seen, Strategy, Timing, Window, Windowing};
//!
//! let mut panes = Panes::new(Strategy {
//!     windowing: Windowing::Fixed { size: 60, offset: 0 },
//!     ..Strategy::default()
//! });
//! let (now, mut effects) = (0, Vec::new());
//! let window = Window::new(0, 60);
//! let seen = Seen { key: (), window, count: 3, bytes: 24 };
//! assert_eq!(panes.seen(now, seen, &mut effects), Placement::Into(window));
//! panes.settle(now, &mut effects); // nothing is ready
//! panes.watermark(now, 60, &mut effects);
//! assert!(matches!(
//!     effects[..],
//!     [Effect::Fire { pane, .. }, Effect::Close { .. }]
//!         if pane.timing == Timing::OnTime && pane.count == 3 && pane.last
//! ));
//! ```

mod layout;
mod machine;
mod pane;
mod panes;
mod save;
mod sessions;
mod strategy;
mod trigger;
mod units;
mod window;

pub use pane::{Effect, OpenWindow, PaneInfo, Placement, Seen, Timing};
pub use panes::Panes;
pub use save::Saved;
pub use strategy::{Accumulation, Closing, Strategy, StrategyError};
pub use trigger::Trigger;
pub use units::{in_bytes, in_words};
pub use window::{Window, Windowing};
