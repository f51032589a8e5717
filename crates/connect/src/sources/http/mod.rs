//! HTTP: events that are posted to calve, acknowledged when they are durable.
//!
//! A request is checked ([`intake`], [`events`]) and appended to a write-ahead log ([`super::wal`]); then it is
//! answered. The source reads the log like a file, so it can be read again after a crash; what is
//! committed is removed. [`server`] has threads of its own: answers wait neither for the reader nor for
//! the sink, only for the disk. Beyond what may be pending requests are refused, so nothing grows
//! without bound.
//!
//! Offsets count bytes of accepted events (rows, of Arrow): each event has one of its own, as the
//! rejects need it, and a batch ends where a request does.

mod arrow_body;
mod body;
mod check;
mod config;
mod events;
mod flights;
mod intake;
mod refusal;
mod server;
mod tls;

use std::{collections::VecDeque, path::PathBuf, sync::Arc, time::Duration};

use arrow::array::RecordBatch;
use async_trait::async_trait;
use calve_engine::{
    Error, Payload, RawBatch, Result, Source, SourceEvent,
    seams::{Intake as Figures, IntakeLevels, Link},
};
use calve_model::{OffsetRange, Offsets, SourcePartition};
use tokio::time::Instant;

use self::{
    body::Budget,
    intake::Intake,
    server::{Server, Serving},
};
pub use self::{
    check::Checks,
    config::{HttpConfig, HttpTls, OnBadEvent},
};
use super::{
    SourceContext,
    wal::{Content, Lock, Log, LogOptions, Record, batch_of},
};
use crate::formats::FormatConfig;

/// Name of the one source partition.
pub(crate) const PARTITION: &str = "http";
/// How long small requests wait for more, so that a batch is not made of each.
const LINGER: Duration = Duration::from_millis(10);
/// Silence for so long is one.
const TICK: Duration = Duration::from_secs(1);
/// At the end: how long requests that are under way are waited for, and how long what was accepted is
/// read. What is left is read at the next start.
const LANDING: Duration = Duration::from_secs(5);
const READING: Duration = Duration::from_secs(30);
/// Memory for bodies and for what the reader has not taken, where nothing says how much there is.
const MEMORY_BYTES: u64 = 1 << 30;

/// Takes events over HTTP.
pub struct HttpSource {
    config: HttpConfig,
    format: FormatConfig,
    base: PathBuf,
    folder: PathBuf,
    memory_bytes: u64,
    checks: Checks,
    link: Arc<Link>,
    // The server ends before the log is closed.
    server: Option<Server>,
    intake: Option<Arc<Intake>>,
    log: Option<Log>,
    /// Taken before anybody claims the shard: a second process must not stop the first one, and then
    /// fail for want of the log.
    lock: Option<Lock>,
    discovered: bool,
    ready: VecDeque<RawBatch>,
    /// When what is there is given out, though it makes no full batch.
    linger: Option<Instant>,
    /// What makes a batch.
    batch_bytes: usize,
    /// Since when it is stopping.
    stopping: Option<Instant>,
}

impl HttpSource {
    /// A source; nothing is opened yet, but the log is ours.
    ///
    /// # Errors
    /// `Config` when nothing says where the log is, or another process has it.
    pub fn new(
        config: &HttpConfig,
        format: &FormatConfig,
        context: &SourceContext,
    ) -> Result<Self> {
        let folder = config.wal.folder(context)?;
        let lock = Lock::take(&folder)?;
        Ok(Self {
            batch_bytes: config.batch_bytes.0 as usize,
            config: config.clone(),
            format: format.clone(),
            lock: Some(lock),
            base: context.base.clone(),
            folder,
            memory_bytes: context.memory_bytes.unwrap_or(MEMORY_BYTES),
            checks: context.checks.clone(),
            link: Arc::default(),
            server: None,
            intake: None,
            log: None,
            discovered: false,
            ready: VecDeque::new(),
            linger: None,
            stopping: None,
        })
    }

    /// Where it listens, once it is open.
    #[cfg(test)]
    fn address(&self) -> std::net::SocketAddr {
        self.server.as_ref().expect("open").address()
    }

    fn log(&mut self) -> Result<&mut Log> {
        self.log
            .as_mut()
            .ok_or_else(|| Error::internal("the log is read before it is open"))
    }

    /// Takes what the log has, as batches.
    fn take(&mut self) -> Result<()> {
        let most = self.batch_bytes;
        let log = self.log()?;
        let (id, records) = (log.id(), log.read(most)?);
        let content = |record: &Record| record.content;
        for run in records.chunk_by(|a, b| content(a) == content(b)) {
            match run[0].content {
                Content::Bytes => self.ready.push_back(batch_of(PARTITION, run, id.clone())),
                Content::Arrow => self.ready.extend(rows_of(run, &id)?),
            }
        }
        Ok(())
    }

    /// Whether everything that was accepted is read, or there is no time left for it.
    fn is_over(&mut self, since: Instant) -> Result<bool> {
        let landed = self.intake.as_ref().is_none_or(|i| i.under_way() == 0);
        let stuck = since.elapsed() >= LANDING;
        let log = self.log()?;
        if landed || stuck {
            // Whatever was under way is refused now; what was accepted is in the log.
            log.seal();
            return Ok(!log.is_readable());
        }
        Ok(false)
    }
}

fn rows_of(run: &[Record], log: &str) -> Result<Vec<RawBatch>> {
    let read = |record: &Record| -> Result<RecordBatch> {
        arrow_body::read(&record.payload)
            .map_err(|error| Error::corrupt(error).context(format!("offset={}", record.position)))
    };
    let rows: Vec<RecordBatch> = run.iter().map(read).collect::<Result<_>>()?;
    let rows = arrow_body::combine(rows);
    let mut from = run[0].position;
    let one = |rows: RecordBatch| {
        let to = from + rows.num_rows() as u64;
        let range = OffsetRange { from, to };
        from = to;
        RawBatch {
            partition: SourcePartition::new(PARTITION),
            range,
            payload: Payload::Rows(rows),
            last: false,
            tag: Some(log.to_owned()),
            arrival: None,
        }
    };
    Ok(rows.into_iter().map(one).collect())
}

/// Checks what can be checked without listening.
///
/// # Errors
/// `Config` for a certificate that cannot be used.
pub(super) fn check(config: &HttpConfig, context: &SourceContext) -> Result<()> {
    match &config.tls {
        Some(tls) => tls::acceptor(tls, &context.base).map(drop),
        None => Ok(()),
    }
}

#[async_trait]
impl Source for HttpSource {
    fn ask(&mut self, bytes: usize) {
        if self.config.batch_bytes == HttpConfig::default().batch_bytes {
            // More than may wait never comes together.
            let most = self.config.max_pending.0 as usize / 2;
            self.batch_bytes = bytes.min(most.max(1));
        }
    }

    async fn open(&mut self, from: &Offsets) -> Result<()> {
        let position = from.0.get(PARTITION);
        let options = LogOptions {
            folder: self.folder.clone(),
            segment_bytes: self.config.wal.segment_size.0,
            recent_bytes: (self.memory_bytes / 16) as usize,
            key_ttl_ms: self.config.idempotency_ttl.0.as_millis() as i64,
            most_keys: self.config.max_idempotency_keys as usize,
        };
        let tls = self.config.tls.as_ref();
        let tls = tls.map(|tls| tls::acceptor(tls, &self.base)).transpose()?;
        let lock = self.lock.take();
        let lock = lock.ok_or_else(|| Error::internal("the source is opened twice"))?;
        let log = Log::open_locked(
            lock,
            &options,
            position.map_or(0, |position| position.offset),
            position.and_then(|position| position.tag.as_deref()),
        )?;
        let appender = log.appender();
        let levels = log.appender();
        // The largest body must fit, whatever the memory.
        let most = self.config.max_body.0 + self.config.max_decompressed.0;
        let budget = Budget::new(most.max(self.memory_bytes / 8));
        let bodies = Arc::clone(&budget);
        let figures = Figures::new(move || IntakeLevels {
            pending_bytes: levels.pending(),
            oldest_unread_ms: levels.oldest_unread_ms(),
            forgotten_keys: levels.forgotten_keys(),
            held_bytes: levels.held_bytes() + bodies.used(),
        });
        self.link = Arc::new(Link::of_intake(figures));
        let intake = Arc::new(Intake::new(
            &self.config,
            &self.format,
            self.checks.clone(),
            appender,
            budget,
            Arc::clone(&self.link),
        ));
        self.log = Some(log);
        let serving = Serving {
            intake: Arc::clone(&intake),
            tls,
            max_connections: self.config.max_connections as usize,
            request_timeout: self.config.request_timeout.0,
        };
        let server = Server::start(self.config.listen, serving)?;
        tracing::info!(
            address = %server.address(),
            path = self.config.path,
            tls = self.config.tls.is_some(),
            log = %self.folder.display(),
            "events are taken over HTTP"
        );
        self.server = Some(server);
        self.intake = Some(intake);
        self.link.set_connected(true);
        Ok(())
    }

    async fn latest(&mut self) -> Result<Offsets> {
        Err(
            Error::config("events that were accepted are not skipped: source=http")
                .hint("leave `--from latest` out"),
        )
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        if !self.discovered {
            self.discovered = true;
            return Ok(SourceEvent::Discovered(vec![SourcePartition::new(
                PARTITION,
            )]));
        }
        loop {
            if let Some(raw) = self.ready.pop_front() {
                return Ok(SourceEvent::Batch(raw));
            }
            let stopping = self.stopping;
            if let Some(since) = stopping
                && (self.is_over(since)? || since.elapsed() >= READING)
            {
                return Ok(SourceEvent::End);
            }
            let most = self.batch_bytes as u64;
            let log = self.log()?;
            if log.is_readable() {
                let now = Instant::now();
                let full = log.appender().pending() >= most;
                let until = *self.linger.get_or_insert(now + LINGER);
                if full || until <= now || stopping.is_some() {
                    self.linger = None;
                    self.take()?;
                } else {
                    tokio::time::sleep_until(until).await;
                }
                continue;
            }
            self.linger = None;
            let tick = if stopping.is_some() { LINGER } else { TICK };
            let log = self.log()?;
            if tokio::time::timeout(tick, log.readable()).await.is_err() && stopping.is_none() {
                return Ok(SourceEvent::Idle);
            }
        }
    }

    async fn committed(&mut self, upto: &Offsets) -> Result<()> {
        let upto = upto.position(PARTITION);
        self.log()?.trim(upto)
    }

    fn lag(&self) -> Option<u64> {
        self.log.as_ref().map(|log| log.appender().pending())
    }

    fn link(&self) -> Option<Arc<Link>> {
        Some(Arc::clone(&self.link))
    }

    fn stop(&mut self) -> bool {
        if let Some(intake) = &self.intake {
            intake.stop();
        }
        self.stopping.get_or_insert_with(Instant::now);
        true
    }
}

#[cfg(test)]
mod tests;
