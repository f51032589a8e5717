//! A replay: events from a file, each with the processing time at which it arrives, and watermarks
//! between them. The file's clock counts instead of the machine's, so that triggers, panes and late
//! events are the same each time.
//!
//! Each line is one JSON object: `{"arrival": …, "event": {…}}`, `{"arrival": …, "watermark": …}`, or
//! an arrival alone, which only moves the clock. An offset is a byte of the events' text, each event
//! with a newline, one event a batch; lines between events belong to no offset, and are said again
//! after a restart, which changes nothing. Start with [`Lines`].

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
};

use async_trait::async_trait;
use bytes::Bytes;
use calve_engine::{Error, Payload, RawBatch, Result, Source, SourceEvent, seams::Progress};
use calve_model::{Micros, OffsetRange, Offsets, SourcePartition};
use chrono::DateTime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::{Duration, Instant};

use super::{SourceContext, tag::Mark};
use crate::units::TimeUnit;

/// Name of the one source partition.
const PARTITION: &str = "replay";
/// A longer line is an error.
const MAX_LINE_BYTES: u64 = 128 << 20;

const FORM: &str =
    "a line is {\"arrival\": …, \"event\": {…}} or {\"arrival\": …, \"watermark\": …}";

/// Events and watermarks from a file, by the clock that the file says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayConfig {
    /// The file: a JSON object a line, with `arrival` (processing time) and either `event` (any JSON)
    /// or `watermark` (event time). Arrivals and watermarks never go back.
    pub path: PathBuf,
    /// Unit of arrivals and watermarks that are numbers, since 1970-01-01T00:00:00Z. As text they
    /// are RFC 3339: `2015-08-31T12:05:20Z`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<TimeUnit>,
    /// How fast the file's clock runs: 1 waits between arrivals as long as they lie apart, 60 makes
    /// a second of a minute. Without it nobody waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<f64>,
}

impl ReplayConfig {
    pub(crate) fn validate(&self) -> Result<()> {
        if self
            .speed
            .is_some_and(|speed| !(speed > 0.0 && speed.is_finite()))
        {
            return Err(Error::config("replay speed is not above 0")
                .hint("leave it out to replay without waiting"));
        }
        Ok(())
    }

    /// The file and how it is read; not how fast.
    pub(crate) fn fingerprint(&self) -> String {
        let unit = serde_json::to_string(&self.unit).unwrap_or_default();
        format!("replay {} unit={unit}", self.path.display())
    }

    /// Reads the file through.
    pub(crate) fn check(&self, context: &SourceContext) -> Result<()> {
        ReplaySource::new(self, context)?.scan(&Offsets::default())?;
        Ok(())
    }
}

/// A line as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    arrival: serde_json::Value,
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
    #[serde(default)]
    watermark: Option<serde_json::Value>,
}

/// What a line says.
#[derive(Debug)]
struct Line {
    arrival: Micros,
    what: What,
}

#[derive(Debug)]
enum What {
    /// The event's text, with a newline.
    Event(Vec<u8>),
    Watermark(Micros),
    Clock,
}

/// The lines of the file from its beginning, each checked against those before it.
struct Lines {
    path: PathBuf,
    unit: Option<TimeUnit>,
    input: BufReader<File>,
    text: Vec<u8>,
    /// Number of the line that was read last, from 1 on.
    number: u64,
    arrival: Option<Micros>,
    watermark: Option<Micros>,
}

impl Lines {
    fn open(path: &PathBuf, unit: Option<TimeUnit>) -> Result<Self> {
        let input = File::open(path).map_err(|error| {
            Error::io(
                format!("cannot open the replay: path={}", path.display()),
                error,
            )
        })?;
        Ok(Self {
            path: path.clone(),
            unit,
            input: BufReader::new(input),
            text: Vec::new(),
            number: 0,
            arrival: None,
            watermark: None,
        })
    }

    /// The next line that is not empty; none at the end of the file.
    fn next(&mut self) -> Result<Option<Line>> {
        loop {
            self.text.clear();
            let mut some = (&mut self.input).take(MAX_LINE_BYTES);
            let read = some.read_until(b'\n', &mut self.text).map_err(|error| {
                let path = self.path.display();
                Error::io(format!("cannot read the replay: path={path}"), error)
            })?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            if read as u64 == MAX_LINE_BYTES {
                return Err(self.wrong("is too long"));
            }
            if !self.text.trim_ascii().is_empty() {
                return self.line().map(Some);
            }
        }
    }

    fn line(&mut self) -> Result<Line> {
        let written: Written<'_> = serde_json::from_slice(&self.text).map_err(|error| {
            // What serde says of data may hold a value.
            let why = match error.classify() {
                serde_json::error::Category::Data => "is not of the form of a replay's",
                _ => "is not JSON",
            };
            self.wrong(why)
        })?;
        let arrival = self.stamp("arrival", &written.arrival)?;
        if self.arrival.is_some_and(|before| arrival < before) {
            return Err(self.wrong("has an arrival before that of an earlier line"));
        }
        let what = match (written.event, &written.watermark) {
            (Some(_), Some(_)) => {
                return Err(self.wrong("has both an event and a watermark"));
            }
            (Some(event), None) => {
                let mut text = event.get().as_bytes().to_vec();
                text.push(b'\n');
                What::Event(text)
            }
            (None, Some(watermark)) => {
                let watermark = self.stamp("watermark", watermark)?;
                if self.watermark.is_some_and(|before| watermark < before) {
                    return Err(self.wrong("has a watermark before that of an earlier line"));
                }
                What::Watermark(watermark)
            }
            (None, None) => What::Clock,
        };
        self.arrival = Some(arrival);
        if let What::Watermark(watermark) = what {
            self.watermark = Some(watermark);
        }
        Ok(Line { arrival, what })
    }

    /// Microseconds since 1970.
    fn stamp(&self, name: &str, value: &serde_json::Value) -> Result<Micros> {
        use serde_json::Value;
        let micros = match (value, self.unit) {
            (Value::String(text), _) => DateTime::parse_from_rfc3339(text)
                .ok()
                .map(|at| at.timestamp_micros()),
            (Value::Number(number), Some(unit)) => in_micros(number, unit),
            (Value::Number(_), None) => {
                return Err(self
                    .wrong(&format!(
                        "has a number as {name}, and the source has no unit"
                    ))
                    .hint("say what the numbers are: `unit: ms` (s, ms, us, ns)"));
            }
            _ => None,
        };
        micros.ok_or_else(|| {
            self.wrong(&format!("has no time as {name}"))
                .hint("write RFC 3339, `2015-08-31T12:05:20Z`, or numbers and `unit` of the source")
        })
    }

    fn wrong(&self, why: &str) -> Error {
        Error::config(format!(
            "line of the replay {why}: path={} line={}",
            self.path.display(),
            self.number
        ))
        .hint(FORM)
    }
}

fn in_micros(number: &serde_json::Number, unit: TimeUnit) -> Option<Micros> {
    let scale = match unit {
        TimeUnit::S => 1_000_000,
        TimeUnit::Ms => 1_000,
        TimeUnit::Us => 1,
        TimeUnit::Ns => return number.as_i64().map(|ns| ns.div_euclid(1_000)),
    };
    if let Some(whole) = number.as_i64() {
        return whole.checked_mul(scale);
    }
    let micros = (number.as_f64()? * scale as f64).round();
    (micros.abs() < 9e18).then_some(micros as Micros)
}

/// What the whole file holds, and where in it an offset is.
struct Scanned {
    /// Behind the event that ends at the offset.
    lines: Lines,
    /// Bytes of all events' text.
    event_bytes: u64,
    /// Whether there is any watermark.
    marks: bool,
}

/// Replays a file.
pub struct ReplaySource {
    config: ReplayConfig,
    path: PathBuf,
    lines: Option<Lines>,
    /// What is said before the next line.
    first: VecDeque<SourceEvent>,
    /// A line that waits for its arrival.
    waiting: Option<Line>,
    /// When the clock below began to run, and what it said then.
    began: Option<(Instant, Micros)>,
    offset: u64,
    event_bytes: u64,
    done: bool,
}

impl ReplaySource {
    /// A replay; nothing is opened yet.
    ///
    /// # Errors
    /// `Config` for a speed that is none.
    pub fn new(config: &ReplayConfig, context: &SourceContext) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            config: config.clone(),
            path: context.base.join(&config.path),
            lines: None,
            first: VecDeque::new(),
            waiting: None,
            began: None,
            offset: 0,
            event_bytes: 0,
            done: false,
        })
    }

    /// Reads the whole file, so that a wrong line is reported before anything is written.
    fn scan(&self, from: &Offsets) -> Result<Scanned> {
        let position = from.0.get(PARTITION);
        let offset = position.map_or(0, |position| position.offset);
        let open = || Lines::open(&self.path, self.config.unit);
        let mut all = open()?;
        let (mut event_bytes, mut marks) = (0, false);
        // The event that ends at the offset, and its line.
        let mut found = (offset == 0).then_some(0);
        while let Some(line) = all.next()? {
            match line.what {
                What::Event(text) => {
                    event_bytes += text.len() as u64;
                    if event_bytes == offset {
                        found = same(position.and_then(|p| p.tag.as_deref()), &text)
                            .then_some(all.number);
                    }
                }
                What::Watermark(_) => marks = true,
                What::Clock => {}
            }
        }
        let Some(number) = found else {
            return Err(Error::config(format!(
                "replay holds other events than before: path={} offset={offset}",
                self.path.display()
            ))
            .hint("put the file back, or start over with `calve checkpoint reset FILE`"));
        };
        let mut lines = open()?;
        while lines.number < number && lines.next()?.is_some() {}
        Ok(Scanned {
            lines,
            event_bytes,
            marks,
        })
    }

    /// Waits until it is time for an arrival. Keeps its state in `self` only, so it may be dropped.
    async fn due(&mut self, arrival: Micros) {
        let Some(speed) = self.config.speed else {
            return;
        };
        let (began, said) = *self.began.get_or_insert_with(|| (Instant::now(), arrival));
        let seconds = arrival.saturating_sub(said) as f64 / 1e6 / speed;
        tokio::time::sleep_until(began + Duration::from_secs_f64(seconds.min(1e9))).await;
    }

    fn batch(&mut self, text: Vec<u8>, arrival: Option<Micros>) -> RawBatch {
        let from = self.offset;
        self.offset += text.len() as u64;
        let last = text.is_empty();
        RawBatch {
            partition: SourcePartition::new(PARTITION),
            range: OffsetRange {
                from,
                to: self.offset,
            },
            tag: (!last)
                .then(|| serde_json::to_string(&Mark::of(&text)).ok())
                .flatten(),
            payload: Payload::Bytes(Bytes::from(text)),
            last,
            arrival,
        }
    }
}

/// Whether an event is the one that was read before.
fn same(tag: Option<&str>, text: &[u8]) -> bool {
    tag.is_none_or(|tag| serde_json::from_str::<Mark>(tag).is_ok_and(|mark| mark == Mark::of(text)))
}

fn progress(watermark: Option<Micros>, arrival: Micros) -> SourceEvent {
    SourceEvent::Progress(Progress {
        partition: SourcePartition::new(PARTITION),
        watermark,
        arrival: Some(arrival),
    })
}

#[async_trait]
impl Source for ReplaySource {
    async fn open(&mut self, from: &Offsets) -> Result<()> {
        let scanned = self.scan(from)?;
        self.offset = from.position(PARTITION);
        self.event_bytes = scanned.event_bytes;
        // What was ended goes on when there is to be more now.
        let ended = from.0.get(PARTITION).is_some_and(|p| p.done);
        self.done = ended && self.offset == self.event_bytes;
        if !self.done {
            let partition = SourcePartition::new(PARTITION);
            self.first
                .push_back(SourceEvent::Discovered(vec![partition]));
        }
        // A source that gives watermarks says so before its first event, else `max_delay` would count
        // until then; and that the clock is its own.
        let lines = &scanned.lines;
        let mark = scanned
            .marks
            .then(|| lines.watermark.unwrap_or(Micros::MIN));
        self.first
            .push_back(progress(mark, lines.arrival.unwrap_or(Micros::MIN)));
        self.lines = Some(scanned.lines);
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        if let Some(event) = self.first.pop_front() {
            return Ok(event);
        }
        if self.done {
            return Ok(SourceEvent::End);
        }
        if self.waiting.is_none() {
            let Some(lines) = &mut self.lines else {
                return Err(Error::internal("a replay is read before it was opened"));
            };
            self.waiting = lines.next()?;
        }
        if let Some(line) = &self.waiting {
            let arrival = line.arrival;
            self.due(arrival).await;
        }
        let Some(Line { arrival, what }) = self.waiting.take() else {
            // The lines behind the last event have been said: only now has it ended.
            self.done = true;
            return Ok(SourceEvent::Batch(self.batch(Vec::new(), None)));
        };
        Ok(match what {
            What::Event(text) => SourceEvent::Batch(self.batch(text, Some(arrival))),
            What::Watermark(watermark) => progress(Some(watermark), arrival),
            What::Clock => progress(None, arrival),
        })
    }

    fn lag(&self) -> Option<u64> {
        Some(self.event_bytes.saturating_sub(self.offset))
    }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
