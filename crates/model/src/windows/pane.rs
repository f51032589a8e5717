//! What goes into [`Panes`](super::Panes) and what comes out: elements seen, and effects.

use serde::{Deserialize, Serialize};

use super::window::Window;

/// Elements of one batch that share a key and a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<K> {
    /// Whose window; `()` where windows are not kept per key.
    pub key: K,
    /// As [`Windowing::assign`](super::Windowing::assign) gave it. For sessions the events' own
    /// windows, or the span of several that overlap; they are then late or not together.
    pub window: Window,
    /// How many elements.
    pub count: u64,
    /// Their size in memory, for triggers that count bytes.
    pub bytes: u64,
}

/// Where the elements just seen belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// To the contents of this open window of their key.
    Into(Window),
    /// Nowhere: their window has closed. With sliding windows an element may be late for some of
    /// its windows and in time for others.
    Late,
}

/// When a pane fired, as against the watermark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timing {
    /// Before the watermark reached the window's end.
    Early,
    /// The first pane after that with elements from before it (or empty, where asked for).
    OnTime,
    /// All others after that.
    Late,
}

impl Timing {
    /// `early`, `on_time` or `late`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Early => "early",
            Self::OnTime => "on_time",
            Self::Late => "late",
        }
    }
}

/// What a pane is among the panes of its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaneInfo {
    /// 0, 1, 2, … within key and window; a merged session goes on from the highest it absorbed.
    #[serde(rename = "i")]
    pub index: u64,
    /// Early, on time or late.
    #[serde(rename = "t")]
    pub timing: Timing,
    /// Index among the panes that are not early; none for an early one.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub on_time_index: Option<u64>,
    /// Nothing fired before it, also not in a window that was absorbed.
    #[serde(rename = "f", default, skip_serializing_if = "is_false")]
    pub first: bool,
    /// Nothing fires after it: it came out as the window closed. A window that has nothing to
    /// say when it closes has no last pane, unless [`Closing::FireAlways`](super::Closing).
    #[serde(rename = "l", default, skip_serializing_if = "is_false")]
    pub last: bool,
    /// Elements in it: those since the last firing when discarding, else all of the window.
    #[serde(rename = "n")]
    pub count: u64,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if passes a reference"
)]
fn is_false(value: &bool) -> bool {
    !*value
}

/// What the caller must do with the contents it keeps, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect<K> {
    /// Sessions of a key became one: the contents of `from` belong to `into` from now on.
    Merge {
        /// Whose sessions.
        key: K,
        /// One or more open windows, by end; they are open no more. A session that only grew is
        /// here alone.
        from: Vec<Window>,
        /// Covers them all; open from now on.
        into: Window,
    },
    /// Take back a pane. Only when retracting; a [`Effect::Fire`] follows in which it is contained.
    Retract {
        /// Whose window.
        key: K,
        /// For which window the pane had fired; may have been absorbed since.
        window: Window,
        /// The pane as it had fired.
        pane: PaneInfo,
    },
    /// Emit a pane of the window's contents, and then drop them if discarding.
    Fire {
        /// Whose window.
        key: K,
        /// Which window.
        window: Window,
        /// Which pane.
        pane: PaneInfo,
    },
    /// The window is over: its contents and everything about it can go.
    Close {
        /// Whose window.
        key: K,
        /// Which window.
        window: Window,
    },
}

impl<K> Effect<K> {
    /// Whose windows it is about.
    pub fn key(&self) -> &K {
        match self {
            Self::Merge { key, .. }
            | Self::Retract { key, .. }
            | Self::Fire { key, .. }
            | Self::Close { key, .. } => key,
        }
    }
}

/// An open window, as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenWindow {
    /// Which window.
    pub window: Window,
    /// Elements in it, fired or not.
    pub count: u64,
    /// Elements that came since its last firing.
    pub fresh: u64,
    /// Panes that it (or a session it absorbed) has fired: the next pane's index.
    pub panes: u64,
    /// The watermark has passed its end; it is kept open for late elements.
    pub passed: bool,
}
