//! The one place that prints: results on stdout, everything else on stderr.

use std::{
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
};

use calve_engine::Error;

use crate::console;

/// Standard error is a log of JSON: each line of it is one object.
static JSON: AtomicBool = AtomicBool::new(false);

/// From now on notes are objects of the log.
pub(crate) fn set_json() {
    JSON.store(true, Ordering::Relaxed);
}

/// Whether notes are objects of the log.
pub(crate) fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// A line of the result. A closed pipe ends the process quietly, as in any Unix tool.
#[allow(
    clippy::disallowed_methods,
    reason = "nobody reads any more, and nothing is open"
)]
pub(crate) fn line(text: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{}", text.as_ref()).is_err() {
        std::process::exit(0);
    }
}

/// A line for the person at the terminal; the live line makes way.
pub(crate) fn note(text: impl AsRef<str>) {
    if is_json() {
        tracing::info!("{}", text.as_ref());
        return;
    }
    // One write: a line is not torn by what another thread writes.
    let text = format!("{}\n", text.as_ref());
    let _ = console::log_writer().write_all(text.as_bytes());
}

/// The error that ended a command.
pub(crate) fn error(error: &Error) {
    if is_json() {
        tracing::error!(hint = error.hint_text(), "{error}");
        return;
    }
    note(format!("error: {error}"));
    if let Some(hint) = error.hint_text() {
        note(format!("hint: {hint}"));
    }
}
