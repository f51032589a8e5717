//! Standard input through a log: over several processes, nothing is lost and nothing comes twice.

use std::{io::Cursor, path::Path};

use calve_engine::ErrorKind;
use tempfile::TempDir;

use super::*;
use crate::{
    formats::{CsvConfig, JsonConfig},
    sources::{
        stdin::{Kept, StdinConfig},
        testing::{account, block_on, text},
    },
    units::ByteSize,
};

fn source(dir: &Path, input: impl std::io::Read + Send + 'static) -> LoggedStdin {
    kept(dir, input, Kept::default())
}

/// A source of an input that others of this process read before it.
fn kept(dir: &Path, input: impl std::io::Read + Send + 'static, kept: Kept) -> LoggedStdin {
    let config = StdinConfig {
        chunk_bytes: ByteSize(64),
        ..StdinConfig::default()
    };
    let format = FormatConfig::Json(JsonConfig::default());
    let inner = StdinSource::of(&config, &format, Box::new(input)).keeping(kept);
    let wal = WalConfig {
        segment_size: ByteSize(1 << 10),
        ..WalConfig::default()
    };
    let context = SourceContext {
        wal: Some(dir.join("wal")),
        ..SourceContext::default()
    };
    let config = StdinConfig {
        chunk_bytes: ByteSize(200),
        ..config
    };
    LoggedStdin::new(inner, &config, &wal, &context).expect("a source")
}

fn lines(from: usize, count: usize) -> String {
    let line = |n| format!("{{\"n\":{n}}}\n");
    (from..from + count).map(line).collect()
}

/// Batches until so many bytes have come, or the end.
async fn read(source: &mut LoggedStdin, bytes: usize) -> Vec<RawBatch> {
    let mut all: Vec<RawBatch> = Vec::new();
    while all.iter().map(RawBatch::bytes).sum::<usize>() < bytes {
        match source.next().await.expect("next") {
            SourceEvent::Batch(raw) => all.push(raw),
            SourceEvent::End => break,
            _ => {}
        }
    }
    all
}

#[test]
fn what_was_read_comes_again_after_a_crash_and_then_what_is_new() {
    let dir = TempDir::new().expect("a folder");
    block_on(async {
        // Its last line has no end, and its first a mark.
        let first = format!("\u{feff}{}", lines(0, 100).trim_end());
        let mut one = source(dir.path(), Cursor::new(first));
        one.open(&Offsets::default()).await.expect("open");
        let batches = read(&mut one, usize::MAX).await;
        assert_eq!(text(&batches), lines(0, 100));
        assert!(batches.last().expect("the last").last);
        let mut half = Offsets::default();
        for raw in &batches[..2] {
            account(&mut half, raw);
        }
        drop(one);
        let mut two = source(dir.path(), Cursor::new(lines(100, 50)));
        two.open(&half).await.expect("open");
        let rest = read(&mut two, usize::MAX).await;
        let expected = lines(0, 150);
        let before = text(&batches[..2]).len();
        assert_eq!(text(&rest), expected[before..]);
        let mut end = half.clone();
        for raw in &rest {
            account(&mut end, raw);
        }
        assert_eq!(end.position(PARTITION), expected.len() as u64);
        two.committed(&end).await.expect("trim");
        drop(two);
        let mut three = source(dir.path(), Cursor::new(lines(150, 1)));
        three.open(&end).await.expect("open");
        assert_eq!(text(&read(&mut three, usize::MAX).await), lines(150, 1));
    });
}

/// Gives its text, and then nothing, for ever.
struct Open(Cursor<String>, std::sync::mpsc::Receiver<()>);

impl std::io::Read for Open {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.read(into)?;
        if read == 0 {
            let _ = self.1.recv();
        }
        Ok(read)
    }
}

#[test]
fn a_stop_gives_what_was_read_and_does_not_end_the_source_partition() {
    let dir = TempDir::new().expect("a folder");
    let (hold, held) = std::sync::mpsc::sync_channel(1);
    block_on(async {
        let mut one = source(dir.path(), Open(Cursor::new(lines(0, 20)), held));
        one.open(&Offsets::default()).await.expect("open");
        let batches = read(&mut one, lines(0, 20).len()).await;
        assert!(one.stop());
        let rest = read(&mut one, usize::MAX).await;
        assert_eq!(text(&batches) + &text(&rest), lines(0, 20));
        assert!(!batches.iter().chain(&rest).any(|raw| raw.last));
        drop(hold);
    });
}

// As where the schema evolves: the process goes on with another source of the same input.
#[test]
fn sources_of_one_process_that_follow_each_other_lose_nothing() {
    let dir = TempDir::new().expect("a folder");
    let all = lines(0, 2000);
    let keeping = Kept::default();
    let mut input = Some(Cursor::new(all.clone()));
    let mut durable = Offsets::default();
    let mut given = String::new();
    block_on(async {
        for round in 0.. {
            let rest: Box<dyn std::io::Read + Send> = match input.take() {
                Some(input) => Box::new(input),
                None => Box::new(std::io::empty()),
            };
            let mut source = kept(dir.path(), rest, keeping.clone());
            source.open(&durable).await.expect("open");
            let batches = read(&mut source, 400 + round * 37).await;
            for raw in &batches {
                account(&mut durable, raw);
            }
            given += &text(&batches);
            if batches.last().is_none_or(|last| last.last) {
                break;
            }
            // Dropped at one place or another, in the middle of an append too.
            for _ in 0..round % 5 {
                if let std::task::Poll::Ready(event) = futures::poll!(source.next())
                    && let Ok(SourceEvent::Batch(raw)) = event
                {
                    account(&mut durable, &raw);
                    given += &text(&[raw]);
                }
            }
        }
    });
    assert_eq!(given.len(), all.len());
    assert_eq!(given, all);
}

#[test]
fn formats_that_cannot_go_on_in_another_process_are_refused() {
    for format in [
        FormatConfig::Csv(CsvConfig::default()),
        FormatConfig::Protobuf(crate::formats::ProtobufConfig::default()),
    ] {
        let error = LoggedStdin::validate(&format).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Config);
    }
    let csv = CsvConfig {
        header: false,
        ..CsvConfig::default()
    };
    LoggedStdin::validate(&FormatConfig::Csv(csv)).expect("lines");
}
