//! Replays: clock and watermark are the same from wherever reading goes on; wrong lines are named.

use std::fs;

use calve_engine::ErrorKind;

use super::*;
use crate::{
    formats::{FormatConfig, JsonConfig},
    sources::{
        SourceConfig,
        testing::{account, block_on, offsets_after, read, text},
    },
};

const LINES: &str = r#"{"arrival":10,"event":{"n": 1}}
{"arrival":10,"watermark":5}
{"arrival":"1970-01-01T00:00:20Z","event":{"n":2,"deep":{"watermark":1}}}

{"arrival":20,"event":7}
{"arrival":30.5}
{"arrival":40,"watermark":"1970-01-01T01:00:15.000001+01:00"}
{"arrival":40,"event":{"n":3}}
{"arrival":50,"watermark":45}
{"arrival":60,"watermark":55}"#;

struct Place {
    folder: tempfile::TempDir,
    config: ReplayConfig,
}

impl Place {
    fn new(lines: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("events.ndjson"), lines).expect("write");
        let config = ReplayConfig {
            path: "events.ndjson".into(),
            unit: Some(TimeUnit::S),
            speed: None,
        };
        Self { folder, config }
    }

    fn context(&self) -> SourceContext {
        SourceContext {
            base: self.folder.path().to_owned(),
            ..SourceContext::default()
        }
    }

    fn source(&self) -> ReplaySource {
        ReplaySource::new(&self.config, &self.context()).expect("a replay")
    }
}

/// What windows are told: each event with the clock and the watermark at its turn, and those at the
/// end (with an empty text).
#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    clock: Option<Micros>,
    watermark: Option<Micros>,
    events: Vec<(String, Option<Micros>, Option<Micros>)>,
    offsets: Offsets,
}

impl Told {
    fn hear(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Batch(raw) => {
                self.clock = self.clock.max(raw.arrival);
                account(&mut self.offsets, &raw);
                self.events.push((text(&[raw]), self.clock, self.watermark));
            }
            SourceEvent::Progress(progress) => {
                self.clock = self.clock.max(progress.arrival);
                self.watermark = self.watermark.max(progress.watermark);
            }
            SourceEvent::Discovered(_) | SourceEvent::Idle | SourceEvent::End => {}
        }
    }
}

/// Goes on from what was told, for so many source events or to the end; how many it were.
fn tell(place: &Place, told: &mut Told, most: usize) -> usize {
    let mut source = place.source();
    block_on(async {
        source.open(&told.offsets).await.expect("open");
        for number in 0..most {
            match source.next().await.expect("next") {
                SourceEvent::End => return number,
                event => told.hear(event),
            }
        }
        most
    })
}

#[test]
fn each_event_has_its_clock_and_watermark_from_wherever_reading_goes_on() {
    let place = Place::new(LINES);
    let mut all = Told::default();
    let count = tell(&place, &mut all, usize::MAX);
    let of = |text: &str, clock, mark| (text.to_owned(), Some(clock), Some(mark));
    assert_eq!(
        all.events,
        [
            of("{\"n\": 1}\n", 10_000_000, i64::MIN),
            of(
                "{\"n\":2,\"deep\":{\"watermark\":1}}\n",
                20_000_000,
                5_000_000
            ),
            of("7\n", 20_000_000, 5_000_000),
            of("{\"n\":3}\n", 40_000_000, 15_000_001),
            of("", 60_000_000, 55_000_000),
        ]
    );
    assert!(all.offsets.0["replay"].done);
    for stop in 0..=count {
        let mut told = Told::default();
        tell(&place, &mut told, stop);
        // What came after the last event is forgotten, and said again.
        let before = told.clone();
        tell(&place, &mut told, usize::MAX);
        assert_eq!(told, all, "after {stop} of the source's events");
        // Whoever remembers nothing but the offsets is told where clock and watermark stood.
        let mut fresh = Told {
            offsets: before.offsets,
            ..Told::default()
        };
        tell(&place, &mut fresh, usize::MAX);
        assert_eq!(fresh.events, all.events[before.events.len()..]);
    }
}

#[test]
fn without_watermarks_the_source_gives_none() {
    let place = Place::new("{\"arrival\":10,\"event\":{\"watermark\":1}}\n{\"arrival\":11}\n");
    let mut told = Told::default();
    tell(&place, &mut told, usize::MAX);
    assert_eq!((told.clock, told.watermark), (Some(11_000_000), None));
    let empty = Place::new("");
    assert_eq!(
        text(&read(&mut empty.source(), &Offsets::default()).expect("read")),
        ""
    );
}

#[test]
fn wrong_lines_are_named_before_anything_is_read() {
    let good = "{\"arrival\":10,\"event\":{}}\n\n{\"arrival\":12,\"watermark\":7}\n";
    let wrong = [
        ("{\"arrival\":11,\"event\":{}}", "before that of an earlier"),
        (
            "{\"arrival\":12,\"watermark\":6}",
            "a watermark before that of an earlier",
        ),
        (
            "{\"arrival\":12,\"watermark\":8,\"event\":{}}",
            "both an event and a watermark",
        ),
        ("{\"arrival\":12,\"evnet\":{}}", "not of the form"),
        ("{\"event\":{}}", "not of the form"),
        ("{\"arrival\":12,\"event\":{}", "is not JSON"),
        ("{\"arrival\":\"noon\",\"event\":{}}", "no time as arrival"),
        ("{\"arrival\":12,\"watermark\":[8]}", "no time as watermark"),
        ("{\"arrival\":1e300,\"event\":{}}", "no time as arrival"),
    ];
    for (line, why) in wrong {
        let place = Place::new(&format!("{good}{line}\n"));
        let error = read(&mut place.source(), &Offsets::default()).expect_err(line);
        let shown = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Config, "{line}");
        assert!(shown.contains(why) && shown.contains("line=4"), "{shown}");
        assert!(!shown.contains("noon"), "{shown}");
        assert!(place.config.check(&place.context()).is_err());
    }
    let mut place = Place::new(good);
    place.config.unit = None;
    let error = read(&mut place.source(), &Offsets::default()).expect_err("no unit");
    assert!(error.to_string().contains("line=1"), "{error}");
    place.config.path = "elsewhere".into();
    let error = place.config.check(&place.context()).expect_err("no file");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    place.config.speed = Some(0.0);
    let source = SourceConfig::Replay(place.config);
    let json = FormatConfig::Json(JsonConfig::default());
    assert!(source.validate(&json).is_err());
}

#[test]
fn a_file_with_other_events_is_refused() {
    let mut place = Place::new(LINES);
    let batches = read(&mut place.source(), &Offsets::default()).expect("read");
    let from = offsets_after(&batches[..2]);
    assert!(read(&mut place.source(), &from).is_ok());
    for other in [
        LINES.replace("\"n\":2", "\"n\":4"),
        LINES.replace("\"n\":2", "\"n\":22"),
        String::new(),
    ] {
        fs::write(place.folder.path().join("events.ndjson"), other).expect("write");
        let error = read(&mut place.source(), &from).expect_err("other events");
        assert!(error.to_string().contains("other events"), "{error}");
    }
    // Speed changes nothing that counts.
    let before = place.config.fingerprint();
    place.config.speed = Some(2.0);
    assert_eq!(place.config.fingerprint(), before);
    place.config.unit = Some(TimeUnit::Ms);
    assert_ne!(place.config.fingerprint(), before);
}

#[test]
fn the_clock_runs_at_its_speed_and_a_dropped_call_loses_nothing() {
    let mut place = Place::new(LINES);
    let at_once = read(&mut place.source(), &Offsets::default()).expect("read");
    // 50 s between the first and the last line.
    place.config.speed = Some(250.0);
    let mut source = place.source();
    let mut all = Vec::new();
    let elapsed = block_on(async {
        source.open(&Offsets::default()).await.expect("open");
        let began = Instant::now();
        loop {
            let Ok(event) = tokio::time::timeout(Duration::from_millis(7), source.next()).await
            else {
                continue;
            };
            match event.expect("next") {
                SourceEvent::Batch(raw) => all.push(raw),
                SourceEvent::End => return began.elapsed(),
                SourceEvent::Discovered(_) | SourceEvent::Idle | SourceEvent::Progress(_) => {}
            }
        }
    });
    assert!(elapsed >= Duration::from_millis(200), "{elapsed:?}");
    assert_eq!(text(&all), text(&at_once));
    offsets_after(&all);
}
