//! gRPC: the answers of a server-streaming method, as they come.
//!
//! Messages stay bytes ([`codec`]); [`groups`] makes batches of them, of whole groups only, and knows
//! what was taken; [`request`] asks for what comes behind it; [`wanted`] is the connection. Here they
//! come together: a connection that is lost is opened anew, from behind the last whole group.
//!
//! Nothing is buffered but one batch, the group that is open, and HTTP/2's window: while nobody takes
//! batches nothing is read, and the server has to wait.

mod codec;
mod config;
mod groups;
mod path;
mod reflection;
mod request;
mod wanted;

use std::{
    collections::VecDeque, future::Future, path::Path, pin::Pin, sync::Arc, task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use calve_engine::{
    Error, Payload, RawBatch, Result, Source, SourceEvent,
    seams::{Link, Progress},
};
use calve_model::{Micros, OffsetRange, Offsets, SourcePartition};
use futures::Stream as _;
use prost_reflect::{DescriptorPool, MessageDescriptor};
use rand::Rng as _;
use tokio::time::Instant;
use tonic::{Status, Streaming, transport::Endpoint};

pub(crate) use self::config::{max_message_size, ten_seconds};
pub use self::{
    codec::RawCodec,
    config::{AtEnd, Compression, GrpcConfig, ResumeConfig, TlsConfig},
};
use self::{
    groups::{Groups, Mark, Taken},
    path::FieldPath,
    request::Asking,
    wanted::Wanted,
};

/// How long complete groups wait for more, so that a batch is not made of each frame.
const LINGER: Duration = Duration::from_millis(20);
/// A connection that lasted so long was one.
const HEALTHY: Duration = Duration::from_secs(10);
/// How often a silent stream is looked at; silence for so long is one.
const TICK: Duration = Duration::from_secs(1);
/// Pauses between tries to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The connection, as far as it is.
enum Connection {
    /// To be opened when it is time.
    Waiting(Instant),
    Opening(Pin<Box<dyn Future<Output = Result<Streaming<Bytes>, Status>> + Send>>),
    Up(Box<Streaming<Bytes>>),
    /// The stream has ended; what it gave is given out.
    Ended,
    /// Its end was said.
    Over,
}

/// What reading the stream came to.
enum Read {
    /// There are complete groups, more than before or enough.
    Complete,
    End,
    Failed(Status),
    Wrong(Error),
}

/// Reads a stream.
pub struct GrpcSource {
    config: GrpcConfig,
    partition: SourcePartition,
    endpoint: Endpoint,
    wanted: Wanted,
    asking: Asking,
    /// What groups messages; none: each stands by itself.
    column: Option<FieldPath>,
    /// The value that the stream gave last; one whose value cannot be read is put to it.
    value: Option<u64>,
    /// The time of a group that begins.
    watermark: Option<FieldPath>,
    /// What it was last, in microseconds; and what was said.
    reached: Option<Micros>,
    said: Option<Micros>,
    groups: Groups,
    connection: Connection,
    link: Arc<Link>,
    first: VecDeque<SourceEvent>,
    /// When complete groups are given out though they make no full batch.
    linger: Option<Instant>,
    /// A message came since the last look.
    heard: bool,
    quiet_since: Instant,
    /// Tries since something new came, and since when there was nothing.
    tries: u32,
    failing_since: Option<Instant>,
}

impl GrpcSource {
    /// A source of one method; nothing is connected yet. `partition` names its only source partition.
    ///
    /// # Errors
    /// `Config` for what does not fit the descriptors, and for certificates that cannot be read.
    pub fn new(
        config: &GrpcConfig,
        pool: &DescriptorPool,
        partition: &str,
        base: &Path,
    ) -> Result<Self> {
        let method = request::method(config, pool)?;
        let asking = Asking::new(config, &method)?;
        let compile = |path: &String, key: &str| {
            FieldPath::compile(&method.output(), path).map_err(|error| error.context(key))
        };
        let resume = config.resume.as_ref();
        let column = resume.map(|r| compile(&r.from_column, "resume.from_column"));
        let watermark = resume.and_then(|r| r.watermark.as_ref());
        let watermark = watermark
            .map(|path| compile(path, "resume.watermark"))
            .transpose()?;
        if watermark.as_ref().is_some_and(|path| !path.is_timestamp()) {
            return Err(Error::config("resume.watermark is not a timestamp")
                .hint("name a field of the type google.protobuf.Timestamp"));
        }
        let column = column.transpose()?;
        Ok(Self {
            partition: SourcePartition::new(partition),
            endpoint: wanted::endpoint(config, base)?,
            wanted: config.wanted()?,
            asking,
            groups: groups(config, Mark::default()),
            column,
            watermark,
            reached: None,
            said: None,
            connection: Connection::Over,
            link: Arc::default(),
            first: VecDeque::new(),
            linger: None,
            value: None,
            heard: false,
            quiet_since: Instant::now(),
            tries: 0,
            failing_since: None,
            config: config.clone(),
        })
    }

    fn open_connection(&mut self) -> Result<()> {
        self.groups.restart();
        self.value = None;
        let (endpoint, wanted) = (self.endpoint.clone(), self.wanted.clone());
        let request = self.asking.behind(self.groups.front())?;
        let (limit, link) = (self.config.connect_timeout.0, Arc::clone(&self.link));
        self.quiet_since = Instant::now();
        self.connection = Connection::Opening(Box::pin(async move {
            let channel = wanted::connect(&endpoint, limit).await?;
            // Many servers answer only when they have a message.
            link.set_connected(true);
            wanted.call(channel, request).await
        }));
        Ok(())
    }

    /// What is complete, as a batch.
    fn batch(&mut self, taken: Taken) -> RawBatch {
        self.linger = None;
        let Taken {
            messages,
            from,
            mark,
        } = taken;
        RawBatch {
            partition: self.partition.clone(),
            range: OffsetRange {
                from,
                to: mark.value,
            },
            payload: Payload::Messages(messages),
            last: false,
            tag: mark.print(),
            arrival: None,
        }
    }

    /// Behind a batch, the watermark that its groups allow: a group that has begun says that nothing
    /// before its own time will come.
    fn watermark_behind(&mut self) {
        if self.reached > self.said && !self.groups.has_complete() {
            self.said = self.reached;
            self.first.push_back(SourceEvent::Progress(Progress {
                partition: self.partition.clone(),
                watermark: self.reached,
                arrival: None,
            }));
        }
    }

    /// The last batch: it says that the stream has ended, and where.
    fn last(&self) -> RawBatch {
        let mark = Mark {
            until: self.asking.until(),
            ..self.groups.given().clone()
        };
        RawBatch {
            partition: self.partition.clone(),
            range: OffsetRange {
                from: mark.value,
                to: mark.value,
            },
            payload: Payload::Messages(calve_engine::batch::Messages::default()),
            last: true,
            tag: mark.print(),
            arrival: None,
        }
    }

    /// Reads until groups are complete that were not, or there are enough. Cancel-safe: what was read
    /// is in `groups`.
    async fn read(&mut self) -> Read {
        let had = self.groups.has_complete();
        std::future::poll_fn(|cx| {
            loop {
                let Connection::Up(stream) = &mut self.connection else {
                    return Poll::Ready(Read::Wrong(Error::internal(
                        "a stream is read that is not open",
                    )));
                };
                match Pin::new(&mut **stream).poll_next(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => return Poll::Ready(Read::End),
                    Poll::Ready(Some(Err(status))) => return Poll::Ready(Read::Failed(status)),
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
            self.healthy();
            return Ok(());
        };
        let front = self.groups.front();
        let last = self.value.or((!front.is_start()).then_some(front.value));
        let value = match (column.read(message), last) {
            (Ok(value), _) => value,
            // It is of the group that is being read, as far as anybody can tell, each time it comes; and
            // the decoder says what is wrong with it.
            (Err(why), Some(last)) => {
                tracing::warn!(field = column.shown(), behind = last, "{}", why.why());
                last
            }
            // The first one of all: the path is wrong, and not a message.
            (Err(why), None) => {
                return Err(Error::corrupt(format!(
                    "{}: field={} after={}",
                    why.why(),
                    column.shown(),
                    front.value
                ))
                .hint("`resume.from_column` must be in every message"));
            }
        };
        self.value = Some(value);
        let before = self.groups.complete();
        let pushed = self.groups.push(value, message)?;
        if self.groups.complete() > before {
            // Something new, and not the same part of a group as at every try before.
            self.healthy();
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

    fn healthy(&mut self) {
        self.tries = 0;
        self.failing_since = None;
    }

    /// A connection or call failed: waits for the next try, or gives up.
    fn failed(&mut self, status: &Status) -> Result<()> {
        self.link.set_connected(false);
        let error = || {
            let limit = self.config.max_message_size.0;
            wanted::failed(status, &self.config.endpoint, &self.config.method, limit)
        };
        if !wanted::is_passing(status) {
            return Err(error());
        }
        let now = Instant::now();
        let since = *self.failing_since.get_or_insert(now);
        if self
            .config
            .retry_for()
            .is_some_and(|limit| now - since >= limit)
        {
            return Err(error().hint("`retry_for` says how long to try again"));
        }
        self.again(now);
        let pause = match &self.connection {
            Connection::Waiting(until) => (*until - now).as_millis() as u64,
            _ => 0,
        };
        tracing::warn!(
            endpoint = self.config.endpoint,
            code = wanted::name(status.code()),
            said = status.message(),
            pause_ms = pause,
            behind = self.groups.front().value,
            "the stream is interrupted, connecting again"
        );
        Ok(())
    }

    /// Connects again after a pause that grows, and differs between processes.
    fn again(&mut self, now: Instant) {
        let most = FIRST_PAUSE * 2_u32.pow(self.tries.min(10));
        let most = most.min(LONGEST_PAUSE).as_millis() as u64;
        let pause = rand::rng().random_range(most / 2..=most);
        self.tries = self.tries.saturating_add(1);
        self.link.reconnected();
        self.connection = Connection::Waiting(now + Duration::from_millis(pause));
    }

    fn ended(&mut self) {
        self.link.set_connected(false);
        if self.groups.end_open() {
            self.healthy();
        }
        match self.config.at_end {
            AtEnd::End => self.connection = Connection::Ended,
            AtEnd::Reconnect => {
                tracing::debug!(
                    behind = self.groups.front().value,
                    "the stream ended, opening it anew"
                );
                self.again(Instant::now());
            }
        }
    }

    /// The stream was silent until now: what follows from it.
    fn silent(&mut self) -> Result<Option<SourceEvent>> {
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
            self.failed(&status)?;
            return Ok(None);
        }
        // A stream that is open and silent for so long does not fail to open.
        if silence >= HEALTHY {
            self.healthy();
        }
        let idle = self.config.resume.as_ref().map(|resume| resume.idle.0);
        if idle.is_some_and(|idle| !idle.is_zero() && silence >= idle) && self.groups.end_open() {
            self.healthy();
            return Ok(None);
        }
        // What waits for its group is not nothing.
        let idle = silence >= TICK && !self.groups.has_open();
        Ok(idle.then_some(SourceEvent::Idle))
    }

    /// How long until a silent stream is looked at.
    fn tick(&self) -> Duration {
        let idle = self.config.resume.as_ref().map(|resume| resume.idle.0);
        let spans = [idle, self.config.deadline.map(|span| span.0)];
        let shortest = spans
            .into_iter()
            .flatten()
            .filter(|span| !span.is_zero())
            .min();
        let tick = shortest.map_or(TICK, |span| span / 4);
        tick.clamp(Duration::from_millis(5), TICK)
    }
}

fn groups(config: &GrpcConfig, given: Mark) -> Groups {
    let most = config
        .resume
        .as_ref()
        .map_or(0, |resume| resume.max_group_bytes.0);
    Groups::new(given, config.batch_bytes.0 as usize, most as usize)
}

/// Descriptors of the service: from files, or from the server; and the type of its messages.
///
/// # Errors
/// `Config` for what is wrong in them, `Unavailable` when the server does not answer.
pub(super) async fn describe(
    config: &GrpcConfig,
    base: &Path,
) -> Result<(DescriptorPool, MessageDescriptor)> {
    let pool = if config.reflection {
        let endpoint = wanted::endpoint(config, base)?;
        let channel = wanted::connect(&endpoint, config.connect_timeout.0).await;
        let channel = channel.map_err(|status| unreachable(config, &status))?;
        reflection::descriptors(config, channel).await?
    } else {
        config.descriptors().load(base)?
    };
    let method = request::method(config, &pool)?;
    // Everything that needs the descriptors is checked with them.
    Asking::new(config, &method)?;
    Ok((pool, method.output()))
}

fn unreachable(config: &GrpcConfig, status: &Status) -> Error {
    Error::unavailable(format!(
        "cannot connect: endpoint={}: {}",
        config.endpoint,
        status.message()
    ))
    .hint("is the server running? `http://` is without TLS, `https://` with it")
}

/// Whether the server answers at all.
///
/// # Errors
/// `Unavailable` when it does not.
pub(super) async fn check_connect(config: &GrpcConfig, base: &Path) -> Result<()> {
    let endpoint = wanted::endpoint(config, base)?;
    let connected = wanted::connect(&endpoint, config.connect_timeout.0).await;
    connected
        .map(drop)
        .map_err(|status| unreachable(config, &status))
}

#[async_trait]
impl Source for GrpcSource {
    /// Connects only in `next`, which tries again and again.
    async fn open(&mut self, from: &Offsets) -> Result<()> {
        let position = from.0.get(self.partition.as_str());
        let mark = position.map_or_else(Mark::default, |position| {
            Mark::of(position.offset, position.tag.as_deref())
        });
        // What was read to the bound of its request is not asked for again, unless the bound moved. A
        // request without a bound may have more now.
        let until = self.asking.until();
        let done = position.is_some_and(|position| position.done)
            && self.config.at_end == AtEnd::End
            && until.is_some()
            && mark.until == until;
        let beyond =
            until.is_some_and(|until| mark.value > until || (mark.value == until && mark.whole));
        self.groups = groups(&self.config, mark);
        if done || beyond {
            self.connection = Connection::Over;
            return Ok(());
        }
        let partition = self.partition.clone();
        self.first
            .push_back(SourceEvent::Discovered(vec![partition.clone()]));
        if self.watermark.is_some() {
            // It counts from the first event on, and `max_delay` does not.
            self.first.push_back(SourceEvent::Progress(Progress {
                partition,
                watermark: Some(Micros::MIN),
                arrival: None,
            }));
        }
        self.open_connection()
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        loop {
            if let Some(event) = self.first.pop_front() {
                return Ok(event);
            }
            let now = Instant::now();
            let due = match (&self.connection, self.linger) {
                (Connection::Up(_), None) => false,
                (Connection::Up(_), Some(linger)) => linger <= now,
                _ => true,
            };
            if (due || self.groups.is_full())
                && let Some(taken) = self.groups.take()
            {
                self.watermark_behind();
                return Ok(SourceEvent::Batch(self.batch(taken)));
            }
            let tick = self.tick();
            match &mut self.connection {
                Connection::Over => return Ok(SourceEvent::End),
                Connection::Ended => {
                    self.connection = Connection::Over;
                    return Ok(SourceEvent::Batch(self.last()));
                }
                Connection::Waiting(until) => {
                    tokio::time::sleep_until(*until).await;
                    self.open_connection()?;
                }
                Connection::Opening(opening) => {
                    let opened = tokio::select! {
                        biased;
                        opened = opening => Some(opened),
                        () = tokio::time::sleep(tick) => None,
                    };
                    match opened {
                        Some(Ok(stream)) => {
                            self.connection = Connection::Up(Box::new(stream));
                            self.quiet_since = Instant::now();
                        }
                        Some(Err(status)) => self.failed(&status)?,
                        None if self.link.is_connected() => {
                            if let Some(event) = self.silent()? {
                                return Ok(event);
                            }
                        }
                        None => {}
                    }
                }
                Connection::Up(_) => {
                    if self.groups.has_complete() {
                        self.linger.get_or_insert(now + LINGER);
                    }
                    let until = self.linger.unwrap_or(now + tick);
                    tokio::select! {
                        biased;
                        read = self.read() => match read {
                            Read::Complete => {}
                            Read::End => self.ended(),
                            Read::Failed(status) => self.failed(&status)?,
                            Read::Wrong(error) => return Err(error),
                        },
                        () = tokio::time::sleep_until(until) => {
                            if self.linger.is_none()
                                && let Some(event) = self.silent()?
                            {
                                return Ok(event);
                            }
                        }
                    }
                }
            }
        }
    }

    fn link(&self) -> Option<Arc<Link>> {
        Some(Arc::clone(&self.link))
    }
}

#[cfg(test)]
mod tests;
