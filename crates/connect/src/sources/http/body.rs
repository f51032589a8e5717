//! Bodies: read and decompressed within limits of size, growth and memory.

use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{StatusCode, body::Body};

use super::refusal::Refusal;

/// A body that is smaller when it is decompressed may have grown by any factor.
const SMALL_BYTES: u64 = 1 << 20;
/// zstd's windows are not larger: 8 MiB.
const LARGEST_WINDOW_LOG: u32 = 23;

/// Memory for bodies on their way to the log.
#[derive(Debug)]
pub(super) struct Budget {
    limit: u64,
    used: AtomicU64,
}

/// A part of a budget, given back when this is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        let used = AtomicU64::new(0);
        Arc::new(Self { limit, used })
    }

    /// Bytes that are taken.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn charge(self: &Arc<Self>) -> Charge {
        Charge {
            budget: Arc::clone(self),
            bytes: 0,
        }
    }
}

impl Charge {
    /// Takes so many bytes more.
    ///
    /// # Errors
    /// 429 when they are not there.
    pub(super) fn grow(&mut self, bytes: u64) -> Result<(), Refusal> {
        let Budget { limit, used } = &*self.budget;
        let more = |used: u64| (used + bytes <= *limit).then_some(used + bytes);
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|_| Refusal::busy("too many requests are under way"))?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

impl Encoding {
    /// What the header names.
    ///
    /// # Errors
    /// 415 for any other.
    pub(super) fn parse(name: &str) -> Result<Self, Refusal> {
        match name.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(Self::Identity),
            "gzip" | "x-gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            other => Err(Refusal::unsupported(format!(
                "Content-Encoding is not known: {other}; gzip and zstd are"
            ))),
        }
    }
}

/// Sizes that a body must not exceed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) body: u64,
    pub(super) decompressed: u64,
    pub(super) ratio: u64,
}

/// Reads a body as it is sent.
///
/// # Errors
/// 413, 429; 400 when it ends early.
pub(super) async fn read<B>(
    body: &mut B,
    limits: &Limits,
    charge: &mut Charge,
) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let too_large =
        || Refusal::too_large(format!("the body is too large: max_body={}", limits.body));
    let said = body.size_hint().exact();
    if said.is_some_and(|said| said > limits.body) {
        return Err(too_large());
    }
    let mut all: Vec<u8> = Vec::new();
    if let Some(said) = said {
        charge.grow(said)?;
        all.reserve_exact(said as usize);
    }
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                format!("the body did not come whole: {error}"),
            )
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if (all.len() + data.len()) as u64 > limits.body {
            return Err(too_large());
        }
        if said.is_none() {
            charge.grow(data.len() as u64)?;
        }
        all.extend_from_slice(&data);
    }
    Ok(all.into())
}

/// Reads what comes of a body, up to a number of bytes, and forgets it.
pub(super) async fn drain<B: Body<Data = Bytes> + Unpin>(body: &mut B, most: usize) {
    let mut read = 0;
    while read < most
        && let Some(Ok(frame)) = body.frame().await
    {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
}

/// Decompresses a body. Work, not waiting.
///
/// # Errors
/// 413 when it grows too much, 429, 400 when it is damaged.
pub(super) fn decompress(
    encoding: Encoding,
    body: Bytes,
    limits: &Limits,
    charge: &mut Charge,
) -> Result<Bytes, Refusal> {
    let damaged = |error: std::io::Error| {
        Refusal::bad_request(format!("the body cannot be decompressed: {error}"))
    };
    match encoding {
        Encoding::Identity => Ok(body),
        Encoding::Gzip => {
            let input = flate2::bufread::MultiGzDecoder::new(&*body);
            inflate(input, body.len() as u64, limits, charge)
        }
        Encoding::Zstd => {
            let mut input = zstd::stream::read::Decoder::with_buffer(&*body).map_err(damaged)?;
            input.window_log_max(LARGEST_WINDOW_LOG).map_err(damaged)?;
            inflate(input, body.len() as u64, limits, charge)
        }
    }
}

fn inflate(
    mut input: impl Read,
    sent: u64,
    limits: &Limits,
    charge: &mut Charge,
) -> Result<Bytes, Refusal> {
    let mut out: Vec<u8> = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let read = input.read(&mut piece).map_err(|error| {
            Refusal::bad_request(format!("the body cannot be decompressed: {error}"))
        })?;
        if read == 0 {
            return Ok(out.into());
        }
        let size = (out.len() + read) as u64;
        if size > limits.decompressed {
            return Err(Refusal::too_large(format!(
                "the body is too large when it is decompressed: max_decompressed={}",
                limits.decompressed
            )));
        }
        if size > SMALL_BYTES && size > sent.saturating_mul(limits.ratio) {
            return Err(Refusal::too_large(format!(
                "the body grows too much when it is decompressed: max_ratio={}",
                limits.ratio
            )));
        }
        charge.grow(read as u64)?;
        out.extend_from_slice(&piece[..read]);
    }
}
