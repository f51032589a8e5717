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
mod likeness;
mod path;
mod reflection;
mod request;
mod rest;
mod retries;
mod stream;
mod wanted;
mod wire;

use std::{collections::VecDeque, future::Future, path::Path, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use calve_engine::{
    Error, Payload, RawBatch, Result, Source, SourceEvent,
    seams::{Link, Progress},
};
use calve_model::{Micros, OffsetRange, Offsets, SourcePartition};
use prost_reflect::{DescriptorPool, MessageDescriptor};
use tokio::time::Instant;
use tonic::{Status, Streaming, transport::Endpoint};

pub use self::config::{AtEnd, Compression, GrpcConfig, ResumeConfig, TlsConfig};
pub(crate) use self::config::{max_message_size, ten_seconds};
use self::{
    groups::{Groups, Limits, Mark, Taken},
    path::FieldPath,
    request::Asking,
    rest::Rest,
    retries::Retries,
    stream::Read,
    wanted::Wanted,
};

/// How long complete groups wait for more, so that a batch is not made of each frame.
const LINGER: Duration = Duration::from_millis(20);
/// How often a silent stream is looked at; silence for so long is one.
const TICK: Duration = Duration::from_secs(1);

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

/// Reads a stream.
pub struct GrpcSource {
    config: GrpcConfig,
    partition: SourcePartition,
    endpoint: Endpoint,
    wanted: Wanted,
    asking: Asking,
    /// The type of the messages.
    message: MessageDescriptor,
    /// What groups messages; none: each stands by itself.
    column: Option<FieldPath>,
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
    retries: Retries,
    /// The group that was not complete when the stream ended.
    rest: Rest,
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
            retries: Retries::new(config.retry_for(asking.until().is_some())),
            rest: Rest::default(),
            asking,
            groups: groups(config, Mark::default(), method.output()),
            message: method.output(),
            column,
            watermark,
            reached: None,
            said: None,
            connection: Connection::Over,
            link: Arc::default(),
            first: VecDeque::new(),
            linger: None,
            heard: false,
            quiet_since: Instant::now(),
            config: config.clone(),
        })
    }

    fn open_connection(&mut self) -> Result<()> {
        self.groups.restart();
        let (endpoint, wanted) = (self.endpoint.clone(), self.wanted.clone());
        let request = self.asking.behind(self.groups.front())?;
        let (limit, link) = (self.config.connect_timeout.0, Arc::clone(&self.link));
        let now = Instant::now();
        self.quiet_since = now;
        self.retries.open(now);
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
}

fn groups(config: &GrpcConfig, given: Mark, of: MessageDescriptor) -> Groups {
    let resume = config.resume.as_ref();
    let limits = Limits {
        batch_bytes: config.batch_bytes.0 as usize,
        group_bytes: resume.map_or(0, |resume| resume.max_group_bytes.0) as usize,
        trust_order: resume.is_some_and(|resume| resume.trust_order),
    };
    Groups::new(given, limits, Some(of))
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
    if !wanted::is_passing(status) {
        let limit = config.max_message_size.0;
        return wanted::failed(status, &config.endpoint, &config.method, limit);
    }
    Error::unavailable(format!(
        "cannot connect: endpoint={}: {}",
        config.endpoint,
        status.message()
    ))
    .hint(if status.message().contains("invalid peer certificate") {
        "`tls.ca` says who signed the server's certificate, `tls.domain` which name is in it"
    } else {
        "is the server running? `http://` is without TLS, `https://` with it"
    })
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
    fn ask(&mut self, bytes: usize) {
        if let Some(most) = self.config.most_asked() {
            self.groups.ask(bytes.min(most));
        }
    }

    /// Connects only in `next`, which tries again and again.
    async fn open(&mut self, from: &Offsets) -> Result<()> {
        let position = from.0.get(self.partition.as_str());
        let mark = position.map(|position| Mark::of(position.offset, position.tag.as_deref()));
        let mark = mark.transpose()?.unwrap_or_default();
        // What was read to the bound of its request is not asked for again, unless the bound moved. A
        // request without a bound may have more now.
        let until = self.asking.until();
        let done = position.is_some_and(|position| position.done)
            && self.config.at_end == AtEnd::End
            && until.is_some()
            && mark.until == until;
        let beyond =
            until.is_some_and(|until| mark.value > until || (mark.value == until && mark.whole));
        self.groups = groups(&self.config, mark, self.message.clone());
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
                        // It is not silent before it is there.
                        None => self.quiet_since = Instant::now(),
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
