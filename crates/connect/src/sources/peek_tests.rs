//! What was looked at comes again, and looking ends.

use std::sync::Arc;

use arrow::array::AsArray;
use calve_engine::{Error, ErrorKind};
use calve_model::SourcePartition;

use super::*;
use crate::{
    formats::{FormatConfig, JsonConfig, infer::infer},
    sources::{
        StdinConfig,
        stdin::StdinSource,
        testing::{block_on, offsets_after, raw, read_on, text},
    },
};

/// Gives what it was told to; then waits for ever.
struct Told(VecDeque<Result<SourceEvent>>);

#[async_trait]
impl Source for Told {
    async fn open(&mut self, _: &Offsets) -> Result<()> {
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        match self.0.pop_front() {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

/// An endless source of one line a millisecond.
struct Trickle(u64);

#[async_trait]
impl Source for Trickle {
    async fn open(&mut self, _: &Offsets) -> Result<()> {
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.0 += 3;
        Ok(SourceEvent::Batch(raw("{}\n", self.0 - 3)))
    }
}

fn told(events: Vec<Result<SourceEvent>>) -> Box<dyn Source> {
    Box::new(Told(events.into()))
}

fn look(source: Box<dyn Source>) -> Result<(Vec<RawBatch>, Peeked)> {
    block_on(peek_for(
        source,
        &Offsets::default(),
        Duration::from_millis(30),
    ))
}

#[test]
fn what_was_seen_comes_again_in_its_order() {
    let events = vec![
        Ok(SourceEvent::Discovered(vec![SourcePartition::new("f")])),
        Ok(SourceEvent::Idle),
        Ok(SourceEvent::Batch(raw("", 0))),
        Ok(SourceEvent::Batch(raw("{}\n", 0))),
        Ok(SourceEvent::Batch(raw("{ }\n", 3))),
        Ok(SourceEvent::End),
        Ok(SourceEvent::End),
    ];
    let (first, mut peeked) = look(told(events)).expect("looked");
    assert_eq!(text(&first), "{}\n{ }\n");
    block_on(async {
        peeked.open(&Offsets::default()).await.expect("open");
        let mut again = Vec::new();
        while again.len() < 6 {
            again.push(match peeked.next().await.expect("an event") {
                SourceEvent::Discovered(found) => format!("discovered {}", found.len()),
                SourceEvent::Batch(raw) => format!("{}..{}", raw.range.from, raw.range.to),
                SourceEvent::Idle => "idle".to_owned(),
                SourceEvent::Progress(_) => "progress".to_owned(),
                SourceEvent::End => "end".to_owned(),
            });
        }
        let expected = ["discovered 1", "0..0", "0..3", "3..7", "end", "end"];
        assert_eq!(again, expected);
    });
}

/// A source of what only one can have.
struct Owner(#[expect(dead_code, reason = "it is held")] Arc<()>);

#[async_trait]
impl Source for Owner {
    async fn open(&mut self, _: &Offsets) -> Result<()> {
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        Ok(SourceEvent::End)
    }
}

#[test]
fn the_source_is_gone_when_it_is_made_anew() {
    let one = Arc::new(());
    let (_, peeked) = look(Box::new(Owner(Arc::clone(&one)))).expect("looked");
    let mut peeked = peeked.or_anew(move || {
        assert_eq!(Arc::strong_count(&one), 1, "nobody else has it");
        Ok(Box::new(Owner(one)))
    });
    block_on(async {
        let elsewhere = offsets_after(&[raw("{}\n", 0)]);
        peeked.open(&elsewhere).await.expect("open");
        assert!(matches!(peeked.next().await, Ok(SourceEvent::End)));
    });
}

#[test]
fn looking_ends_however_the_events_come() {
    // Silence after the first, one event after the other for ever, enough at once.
    let (first, _) = look(told(vec![Ok(SourceEvent::Batch(raw("{}\n", 0)))])).expect("looked");
    assert_eq!(first.len(), 1);
    let (first, mut peeked) = look(Box::new(Trickle(0))).expect("looked");
    assert!(!first.is_empty());
    let seen = first.last().expect("some").range.to;
    block_on(async {
        for _ in 0..=first.len() {
            let event = peeked.next().await.expect("an event");
            let SourceEvent::Batch(raw) = event else {
                panic!("{event:?}")
            };
            if raw.range.from == seen {
                return;
            }
        }
        panic!("the source goes on where looking ended");
    });
    let large = "x".repeat(3 << 20);
    let events = (0..9).map(|n| Ok(SourceEvent::Batch(raw(&large, (n * 3) << 20))));
    assert_eq!(look(told(events.collect())).expect("looked").0.len(), 2);
}

#[test]
fn errors_come_through() {
    let error = Error::config("no such thing");
    let error = look(told(vec![Err(error)])).err().expect("an error");
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[test]
fn the_schema_of_stdin_is_inferred_and_no_event_is_lost() {
    let format = FormatConfig::Json(JsonConfig::default());
    let config = StdinConfig {
        chunk_bytes: crate::units::ByteSize(64),
        ..StdinConfig::default()
    };
    let lines: Vec<String> = (0..1000).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let input = lines.concat();
    let source = StdinSource::of(
        &config,
        &format,
        Box::new(std::io::Cursor::new(input.clone().into_bytes())),
    );
    let (first, mut peeked) = look(Box::new(source)).expect("looked");
    let schema = infer(&format, &first).expect("a schema");
    let all = block_on(read_on(&mut peeked)).expect("all");
    assert_eq!(text(&all), input);
    let position = offsets_after(&all).0["stdin"].clone();
    assert_eq!((position.offset, position.done), (input.len() as u64, true));
    let mut decoder = format.decoder(schema).expect("a decoder");
    let numbers = all.iter().flat_map(|raw| {
        let rows = decoder.decode(raw).expect("rows").rows;
        let column = rows.column(0).clone();
        column
            .as_primitive::<arrow::datatypes::Int64Type>()
            .values()
            .to_vec()
    });
    assert!(numbers.eq(0..1000));
}

#[test]
fn an_empty_input_has_no_schema_and_says_what_to_do() {
    let format = FormatConfig::Json(JsonConfig::default());
    let source = StdinSource::of(&StdinConfig::default(), &format, Box::new(std::io::empty()));
    let (first, _) = look(Box::new(source)).expect("looked");
    let error = infer(&format, &first).expect_err("nothing");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(
        error
            .hint_text()
            .is_some_and(|hint| hint.contains("columns"))
    );
}
