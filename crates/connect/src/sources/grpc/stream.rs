//! What a stream gives, and what its failures, its end and its silence mean.

use std::{future::poll_fn, pin::Pin, task::Poll, time::Duration};

use futures::Stream as _;

use calve_engine::{Error, Result, SourceEvent};
use calve_model::Micros;
use tokio::time::Instant;
use tonic::Status;

use super::{AtEnd, Connection, GrpcSource, TICK, groups, retries, wanted};

/// What reading the stream came to.
pub(super) enum Read {
    /// There are complete groups, more than before or enough.
    Complete,
    End,
    Failed(Status),
    Wrong(Error),
}

impl GrpcSource {
    /// Reads until groups are complete that were not, or there are enough. Cancel-safe: what was read
    /// is in `groups`.
    pub(super) async fn read(&mut self) -> Read {
        let had = self.groups.has_complete();
        poll_fn(|cx| {
            loop {
                let Connection::Up(stream) = &mut self.connection else {
                    return Poll::Ready(Read::Wrong(Error::internal(
                        "a stream is read that is not open",
                    )));
                };
                match Pin::new(&mut **stream).poll_next(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => return Poll::Ready(Read::End),
                    Poll::Ready(Some(Err(status))) => {
                        return Poll::Ready(Read::Failed(wanted::explained(status)));
                    }
                    Poll::Ready(Some(Ok(message))) => {
                        self.heard = true;
                        if let Err(error) = self.push(&message) {
                            return Poll::Ready(Read::Wrong(error));
                        }
                        if self.groups.is_full() || self.groups.has_complete() != had {
                            return Poll::Ready(Read::Complete);
                        }
                    }
                }
            }
        })
        .await
    }

    fn push(&mut self, message: &[u8]) -> Result<()> {
        let Some(column) = &self.column else {
            self.groups.push_alone(message);
            self.retries.news();
            return Ok(());
        };
        let before = self.groups.complete();
        let pushed = match column.read(message) {
            Ok(value) => self.groups.push(value, message)?,
            Err(why) => {
                let behind = self.groups.front().value;
                let Some(pushed) = self.groups.push_unread(message)? else {
                    // The first one of all: the path is wrong, and not a message.
                    return Err(Error::corrupt(format!(
                        "{}: field={} after={behind}",
                        why.why(),
                        column.shown(),
                    ))
                    .hint("`resume.from_column` must be in every message"));
                };
                // The decoder says what is wrong with it.
                tracing::warn!(field = column.shown(), behind, "{}", why.why());
                pushed
            }
        };
        if self.groups.complete() > before {
            // Something new, and not the same part of a group as at every try before.
            self.retries.news();
        }
        if pushed == groups::Pushed::Next
            && let Some(path) = &self.watermark
            && let Ok(nanos) = path.read(message)
        {
            let at = (nanos / 1000) as Micros;
            self.reached = self.reached.max(Some(at));
        }
        Ok(())
    }

    /// A connection or call failed: waits for the next try, or gives up.
    pub(super) fn failed(&mut self, status: &Status) -> Result<()> {
        let was_up = self.link.is_connected();
        self.link.set_connected(false);
        let error = || {
            let limit = self.config.max_message_size.0;
            wanted::failed(status, &self.config.endpoint, &self.config.method, limit)
        };
        if !wanted::is_passing(status) {
            return Err(error());
        }
        let now = Instant::now();
        if !self.retries.failed(now, was_up) {
            return Err(error().hint("`retry_for` says how long to try again without news"));
        }
        let pause = self.retries.pause();
        self.again(now + pause);
        tracing::warn!(
            endpoint = self.config.endpoint,
            code = wanted::name(status.code()),
            said = status.message(),
            pause_ms = pause.as_millis() as u64,
            behind = self.groups.front().value,
            "the stream is interrupted, connecting again"
        );
        Ok(())
    }

    fn again(&mut self, at: Instant) {
        self.link.reconnected();
        self.connection = Connection::Waiting(at);
    }

    /// The stream ended well. Where that means that everything was read, its last group is complete.
    /// Else it means nothing: a server that stops between two messages of a group may end its streams
    /// as well as one that has no more for now. Then the group is asked for again.
    pub(super) fn ended(&mut self) {
        self.link.set_connected(false);
        if self.config.at_end == AtEnd::End {
            self.groups.end_open();
            self.connection = Connection::Ended;
            return;
        }
        let now = Instant::now();
        self.retries.closed(now, true);
        let mut pause = self.retries.pause();
        let idle = self.idle();
        match self.rest.ended(self.groups.open(), now, idle) {
            Some(left) if left.is_zero() => {
                self.groups.end_open();
                self.retries.news();
            }
            Some(left) => pause = pause.min(left.max(retries::FIRST_PAUSE)),
            None => {}
        }
        tracing::debug!(
            behind = self.groups.front().value,
            "the stream ended, opening it anew"
        );
        self.again(now + pause);
    }

    /// After so much silence a group is complete; none: never.
    fn idle(&self) -> Option<Duration> {
        let idle = self.config.resume.as_ref().map(|resume| resume.idle.0);
        idle.filter(|idle| !idle.is_zero())
    }

    /// The stream was silent until now: what follows from it.
    pub(super) fn silent(&mut self) -> Result<Option<SourceEvent>> {
        let now = Instant::now();
        if std::mem::take(&mut self.heard) {
            self.quiet_since = now;
            return Ok(None);
        }
        let silence = now - self.quiet_since;
        if self.config.deadline.is_some_and(|limit| silence >= limit.0) {
            self.quiet_since = now;
            let status =
                Status::deadline_exceeded(format!("nothing came for {} ms", silence.as_millis()));
            // However long it was silent, it did not hold.
            self.link.set_connected(false);
            self.failed(&status)?;
            return Ok(None);
        }
        if self.idle().is_some_and(|idle| silence >= idle) && self.groups.end_open() {
            self.retries.news();
            return Ok(None);
        }
        // What waits for its group is not nothing.
        let idle = silence >= TICK && !self.groups.has_open();
        Ok(idle.then_some(SourceEvent::Idle))
    }

    /// How long until a silent stream is looked at.
    pub(super) fn tick(&self) -> Duration {
        let spans = [self.idle(), self.config.deadline.map(|span| span.0)];
        let shortest = spans.into_iter().flatten().min();
        let tick = shortest.map_or(TICK, |span| span / 4);
        tick.clamp(Duration::from_millis(5), TICK)
    }
}
