//! Answers to requests that are not taken.

use calve_engine::{Error, ErrorKind};
use hyper::StatusCode;
use serde::Serialize;

use crate::sources::wal::NotAppended;

/// Events of one answer that are named, at the most; all are counted.
pub(super) const MOST_NAMED: usize = 100;

/// An event that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct BadEvent {
    /// The line, row or message of the body, from 1.
    pub(super) line: usize,
    /// Why.
    pub(super) reason: String,
}

/// Why a request is not taken.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) error: String,
    pub(super) bad: Vec<BadEvent>,
    /// Seconds after which to try again.
    pub(super) retry_after: Option<u32>,
    /// Nobody knows what becomes of the events: any answer could be wrong, and none is given.
    pub(super) is_silent: bool,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
            bad: Vec::new(),
            retry_after: None,
            is_silent: false,
        }
    }

    pub(super) fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    pub(super) fn too_large(error: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, error)
    }

    pub(super) fn unsupported(error: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error)
    }

    /// Of so many events of which these are bad.
    pub(super) fn bad_events(bad: Vec<BadEvent>, count: usize) -> Self {
        Self {
            bad,
            ..Self::bad_request(format!("events cannot be decoded: events={count}"))
        }
    }

    pub(super) fn busy(error: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, error).again_after(1)
    }

    pub(super) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the pipeline is stopping").again_after(2)
    }

    pub(super) fn again_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (_, _, status) = error.kind().decide();
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let refusal = Self::new(status, error.message());
        match error.kind() {
            ErrorKind::Unavailable | ErrorKind::Full => refusal.again_after(5),
            _ => refusal,
        }
    }
}

impl From<NotAppended> for Refusal {
    fn from(error: NotAppended) -> Self {
        let is_silent = matches!(error, NotAppended::Unknown(_));
        Self {
            is_silent,
            ..Error::from(error).into()
        }
    }
}
