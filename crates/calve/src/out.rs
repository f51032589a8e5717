//! The one place that prints: results on stdout, everything else on stderr.

use std::io::Write;

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

/// A line for the person at the terminal.
pub(crate) fn note(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
}
