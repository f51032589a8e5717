//! Standard input, with something else in its place: pieces of any size, silence, errors.

use std::{collections::VecDeque, sync::mpsc as std_mpsc};

use calve_engine::ErrorKind;

use super::*;
use crate::{
    formats::{Columns, CsvConfig, JsonConfig},
    sources::testing::{block_on, offsets_after, read, read_on, table, text},
};

/// Gives what it is sent, piece by piece; ends when the sender is gone.
struct Pipe {
    pieces: std_mpsc::Receiver<std::io::Result<Vec<u8>>>,
    rest: VecDeque<u8>,
}

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.rest.is_empty() {
            match self.pieces.recv() {
                Ok(piece) => self.rest.extend(piece?),
                Err(_) => return Ok(0),
            }
        }
        self.rest.read(into)
    }
}

fn pipe() -> (std_mpsc::SyncSender<std::io::Result<Vec<u8>>>, Box<Pipe>) {
    let (sender, pieces) = std_mpsc::sync_channel(64);
    let rest = VecDeque::new();
    (sender, Box::new(Pipe { pieces, rest }))
}

fn config(chunk_bytes: u64, max_line_bytes: u64) -> StdinConfig {
    StdinConfig {
        chunk_bytes: ByteSize(chunk_bytes),
        max_line_bytes: ByteSize(max_line_bytes),
        wal: None,
    }
}

fn json() -> FormatConfig {
    FormatConfig::Json(JsonConfig::default())
}

fn columns(columns: &[(&str, &str)]) -> arrow::datatypes::SchemaRef {
    let columns = columns.iter();
    let columns = columns.map(|(n, t)| ((*n).to_owned(), (*t).to_owned()));
    Columns(columns.collect()).schema().expect("a schema")
}

/// What comes of an input that is there as a whole.
fn all(chunk_bytes: u64, format: &FormatConfig, input: &[u8]) -> Vec<RawBatch> {
    let input = std::io::Cursor::new(input.to_vec());
    let mut source = StdinSource::of(&config(chunk_bytes, 1 << 20), format, Box::new(input));
    read(&mut source, &Offsets::default()).expect("batches")
}

#[test]
fn lines_are_whole_whatever_the_size_of_the_pieces() {
    for input in [
        "",
        "\n",
        "a",
        "a\nbc\n\ndef",
        "a\r\nbc\n",
        "one long line without its end",
    ] {
        for chunk_bytes in 1..40 {
            let batches = all(chunk_bytes, &json(), input.as_bytes());
            assert_eq!(text(&batches), input, "chunk_bytes={chunk_bytes}");
            let (last, before) = batches.split_last().expect("at least the last");
            assert!(last.last && before.iter().all(|raw| !raw.last));
            for raw in before {
                assert!(text(std::slice::from_ref(raw)).ends_with('\n'));
            }
            let position = offsets_after(&batches).0[PARTITION].clone();
            assert_eq!((position.offset, position.done), (input.len() as u64, true));
        }
    }
}

#[test]
fn the_end_comes_again_and_offsets_go_on() {
    let input = std::io::Cursor::new(b"{}\n".to_vec());
    let mut source = StdinSource::of(&StdinConfig::default(), &json(), Box::new(input));
    let first = all(1 << 20, &json(), b"{}{}{}\n");
    let before = offsets_after(&first);
    let batches = read(&mut source, &before).expect("batches");
    assert_eq!(batches[0].range.from, 7);
    block_on(async {
        for _ in 0..2 {
            assert!(matches!(source.next().await, Ok(SourceEvent::End)));
        }
    });
}

#[test]
fn damaged_text_is_a_reject_and_the_last_line_needs_no_end() {
    let batches = all(8, &json(), b"{\"n\":1}\n{\"n\":\"\xff\"}\n\xff\n{\"n\":2}");
    let mut decoder = json().decoder(columns(&[("n", "bigint")])).expect("json");
    let mut rows = 0;
    let mut rejected = Vec::new();
    for raw in &batches {
        let decoded = decoder.decode(raw).expect("decode");
        rows += decoded.rows.num_rows();
        rejected.extend(
            decoded
                .rejects
                .into_iter()
                .map(|r| (r.offset, r.raw.to_vec())),
        );
    }
    let expected = [(8, b"{\"n\":\"\xff\"}".to_vec()), (18, b"\xff".to_vec())];
    assert_eq!((rows, rejected.as_slice()), (2, expected.as_slice()));
}

#[test]
fn a_line_up_to_the_limit_passes_and_a_longer_one_stops() {
    let read_one = |bytes: usize, end: &str| {
        let input = format!("first\n{}{end}", "x".repeat(bytes));
        let input = Box::new(std::io::Cursor::new(input.into_bytes()));
        let mut source = StdinSource::of(&config(16, 1000), &json(), input);
        read(&mut source, &Offsets::default())
    };
    for end in ["\n", "", "\nmore\n"] {
        assert_eq!(
            text(&read_one(1000, end).expect("fits"))
                .lines()
                .nth(1)
                .map(str::len),
            Some(1000)
        );
    }
    // With its line end in the same read it would still be seen whole.
    for end in ["\n", "", "\nmore\n"] {
        let error = read_one(1100, end).expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(
            error.message().contains("offset=6 max_line_bytes="),
            "{error}"
        );
        assert!(error.hint_text().is_some());
    }
}

// Each byte is searched once: to search all of them again for each read takes very long here.
#[test]
fn one_huge_line_in_small_pieces() {
    let (sender, input) = pipe();
    let bytes = 64 << 20;
    let writer = thread::spawn(move || {
        for _ in 0..bytes / 4096 {
            sender.send(Ok(vec![b'x'; 4096])).expect("a reader");
        }
        sender.send(Ok(b"\nafter\n".to_vec())).expect("a reader");
    });
    let mut source = StdinSource::of(&config(4096, 1 << 30), &json(), input);
    let batches = read(&mut source, &Offsets::default()).expect("batches");
    writer.join().expect("written");
    assert_eq!(
        batches
            .iter()
            .map(|raw| raw.range.to - raw.range.from)
            .sum::<u64>(),
        bytes + 7
    );
    // The line behind it may be there in time to come along.
    assert!([bytes + 1, bytes + 7].contains(&batches[0].range.to));
}

#[test]
fn lines_come_while_the_input_is_open_and_a_dropped_call_loses_nothing() {
    let (sender, input) = pipe();
    let mut source = StdinSource::of(&StdinConfig::default(), &json(), input);
    block_on(async {
        source.open(&Offsets::default()).await.expect("open");
        assert!(matches!(
            source.next().await,
            Ok(SourceEvent::Discovered(_))
        ));
        sender.send(Ok(b"one\nhal".to_vec())).expect("a reader");
        let Ok(SourceEvent::Batch(raw)) = source.next().await else {
            panic!("a batch")
        };
        assert_eq!(text(&[raw]), "one\n");
        sender.send(Ok(b"f\nthree".to_vec())).expect("a reader");
        let mut rest = String::new();
        for _ in 0..100 {
            // Dropped where it waits.
            if let std::task::Poll::Ready(event) = futures::poll!(source.next()) {
                let Ok(SourceEvent::Batch(raw)) = event else {
                    panic!("{event:?}")
                };
                rest.push_str(&text(&[raw]));
            }
            thread::yield_now();
        }
        drop(sender);
        rest.push_str(&text(&read_on(&mut source).await.expect("the rest")));
        assert_eq!(rest, "half\nthree");
    });
}

#[test]
fn a_failed_read_stops() {
    let (sender, input) = pipe();
    sender.send(Ok(b"one\n".to_vec())).expect("a reader");
    let failure = std::io::Error::other("gone");
    sender.send(Err(failure)).expect("a reader");
    let mut source = StdinSource::of(&StdinConfig::default(), &json(), input);
    let error = read(&mut source, &Offsets::default()).expect_err("an error");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[test]
fn csv_keeps_records_whole_and_hands_the_header_on() {
    let format = FormatConfig::Csv(CsvConfig::default());
    let input = "\u{feff}b,a\n\"x\ny\",1\nz,2\n\"last\nof all\",3";
    let schema = columns(&[("a", "int"), ("b", "varchar")]);
    let mut seen = Vec::new();
    for chunk_bytes in 1..50 {
        let batches = all(chunk_bytes, &format, input.as_bytes());
        assert_eq!(text(&batches), input);
        offsets_after(&batches);
        let mut decoder = format.decoder(schema.clone()).expect("csv");
        seen.push(table(decoder.as_mut(), &batches));
    }
    seen.dedup();
    assert_eq!(seen.len(), 1, "the same rows, however it was cut");
    assert_eq!(
        seen[0].matches("| 1 ").count() + seen[0].matches("| 3 ").count(),
        2
    );
}

#[test]
fn messages_are_whole_whatever_the_size_of_the_pieces() {
    let format: FormatConfig = serde_yaml_ng::from_str("protobuf: { message: m.M }").expect("yaml");
    // Lengths 2, 0, 130, and one that is cut off.
    let mut input = vec![2, 8, 1, 0, 130, 1];
    input.extend([7; 130]);
    input.extend([5, 8, 10]);
    for chunk_bytes in [1, 2, 3, 7, 100, 1000] {
        let batches = all(chunk_bytes, &format, &input);
        let (last, before) = batches.split_last().expect("at least the last");
        assert!(
            before.iter().all(|raw| [3, 4, 136].contains(&raw.range.to)),
            "{chunk_bytes}"
        );
        assert_eq!((last.range.to, last.last), (139, true));
        let bytes: Vec<u8> = batches
            .iter()
            .flat_map(|raw| text_bytes(raw).to_vec())
            .collect();
        assert_eq!(bytes, input, "chunk_bytes={chunk_bytes}");
    }
}

fn text_bytes(raw: &RawBatch) -> &[u8] {
    match &raw.payload {
        Payload::Bytes(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn batches_are_as_large_as_is_asked_for() {
    let input = "{\"n\":1}\n".repeat(400_000);
    let sizes = |config: &StdinConfig| {
        let pipe = std::io::Cursor::new(input.clone().into_bytes());
        let mut source = StdinSource::of(config, &json(), Box::new(pipe));
        source.ask(300_000);
        let batches = read(&mut source, &Offsets::default()).expect("batches");
        assert!(text(&batches) == input);
        let sizes = batches.iter().map(RawBatch::bytes);
        sizes.max().expect("batches")
    };
    // What is there already is taken with it, a piece more at the most.
    let most = sizes(&StdinConfig::default());
    assert!(
        (READ_BYTES..=300_000 + READ_BYTES).contains(&most),
        "{most}"
    );
    let most = sizes(&config(100_000, 1 << 20));
    assert!(
        most <= 100_000 + READ_BYTES,
        "its own setting counts: {most}"
    );
}
