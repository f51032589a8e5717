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

    constructors!(config Config, data Data, schema Schema, unavailable Unavailable, conflict Conflict,
        fenced Fenced, corrupt Corrupt, internal Internal);

    /// Says what the user can do; shown apart from the message.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Keeps the error underneath.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
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

    /// A failed file operation: missing or forbidden is [`ErrorKind::Config`], the rest (a full disk
    /// among it) is [`ErrorKind::Unavailable`].
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
