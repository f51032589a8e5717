//! The one error of calve. A kind is a decision: what the engine, the operator and an HTTP client do
//! about it. Messages are lower case, `key=value`, and never hold a row's values or a secret.

use std::{error::Error as StdError, fmt};

/// What failed, where, and what to do about it.
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The decision that an error asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The user's configuration or command line is wrong: exit 2.
    Config,
    /// An event is wrong: it goes to the rejects.
    Data,
    /// Data and table disagree on the schema: stop.
    Schema,
    /// A server or a disk does not answer: back off and try again.
    Unavailable,
    /// A disk or a quota is full: try a few times, then stop. Waiting for long frees no space.
    Full,
    /// Somebody else was faster: reload and decide again.
    Conflict,
    /// Another process owns the shard: stop, never retry.
    Fenced,
    /// What was read back is not what was written: stop.
    Corrupt,
    /// A bug in calve: stop.
    Internal,
}

/// What the engine does about an error of some kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Put the event into the rejects and go on.
    Reject,
    /// Wait and try again.
    Retry,
    /// Wait and try again, for seconds and not for minutes.
    RetryBriefly,
    /// Stop the shard; a restart recovers.
    Stop,
}

impl ErrorKind {
    /// Policy, exit code and HTTP status of a kind: the one place that decides.
    pub fn decide(self) -> (Policy, u8, u16) {
        match self {
            Self::Config => (Policy::Stop, 2, 400),
            Self::Data => (Policy::Reject, 1, 400),
            Self::Schema => (Policy::Stop, 1, 422),
            Self::Unavailable => (Policy::Retry, 1, 503),
            Self::Full => (Policy::RetryBriefly, 1, 507),
            Self::Conflict => (Policy::Retry, 1, 409),
            Self::Fenced => (Policy::Stop, 1, 409),
            Self::Corrupt | Self::Internal => (Policy::Stop, 1, 500),
        }
    }
}

/// Result with calve's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! constructors {
    ($($name:ident $kind:ident),*) => { $(
        #[doc = concat!("An error of kind [`ErrorKind::", stringify!($kind), "`].")]
        pub fn $name(message: impl Into<String>) -> Self { Self::new(ErrorKind::$kind, message) }
    )* };
}

impl Error {
    /// An error of a kind. The message says what and where.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            source: None,
        }
    }

    constructors!(config Config, data Data, schema Schema, unavailable Unavailable, full Full, conflict Conflict,
        fenced Fenced, corrupt Corrupt, internal Internal);

    /// Says what the user can do; shown apart from the message.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Keeps the error underneath. What is unavailable because of a full disk is
    /// [`ErrorKind::Full`], whichever library found out.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source = source.into();
        if self.kind == ErrorKind::Unavailable && is_full(&*source) {
            self.kind = ErrorKind::Full;
            self.hint.get_or_insert_with(|| FREE_SPACE.to_owned());
        }
        self.source = Some(source);
        self
    }

    /// Puts where it happened in front of the message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What and where, without the causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What the user can do.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// A failed file operation: missing or forbidden is [`ErrorKind::Config`], a full disk
    /// [`ErrorKind::Full`], the rest [`ErrorKind::Unavailable`].
    pub fn io(what: impl fmt::Display, error: std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => {
                ErrorKind::Config
            }
            _ => ErrorKind::Unavailable,
        };
        Self::new(kind, what.to_string()).because(error)
    }
}

const FREE_SPACE: &str = "the disk or quota is full: free space, then start again; nothing is lost, and nothing is doubled";

/// Whether an error or one underneath says that there is no space left. Libraries wrap the operating
/// system's error in ways of their own, so the words of Linux and SQLite count too.
fn is_full(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(
                io.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            )
        {
            return true;
        }
        next = error.source();
        if next.is_none() {
            let text = error.to_string();
            return ["No space left on device", "database or disk is full"]
                .iter()
                .any(|words| text.contains(words));
        }
    }
    false
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut cause: Option<&(dyn StdError + 'static)> = self.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)?;
        self.hint
            .as_ref()
            .map_or(Ok(()), |hint| write!(f, " (hint: {hint})"))
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_found_however_deep() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let direct = Error::io("cannot write", full());
        assert_eq!(direct.kind(), ErrorKind::Full);
        assert!(direct.hint_text().is_some_and(|h| h.contains("free space")));
        let wrapped = Error::unavailable("cannot commit").because(direct);
        assert_eq!(wrapped.kind(), ErrorKind::Full);
        let said =
            Error::unavailable("cannot commit").because("(code: 13) database or disk is full");
        assert_eq!(said.kind(), ErrorKind::Full);
        let other = Error::unavailable("cannot commit").because("connection reset");
        assert_eq!(other.kind(), ErrorKind::Unavailable);
        let known = Error::corrupt("a bad file").because(full());
        assert_eq!(known.kind(), ErrorKind::Corrupt, "other kinds stay");
    }
}
