//! Bodies to records.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow::{
    array::{Array as _, ArrayRef, DictionaryArray, Int64Array, RecordBatch, StringArray},
    datatypes::{Int8Type, SchemaRef},
};
use calve_engine::{BatcherFactory, Decoded, Decoder, Error, RawBatch, Reject, Result, Transform};
use hyper::StatusCode;

use super::*;
use crate::{
    formats::{ArrowConfig, JsonConfig, schema_from_json},
    sources::http::body::{Budget, Encoding, Limits, decompress},
};

struct Decoders(FormatConfig, SchemaRef, Arc<AtomicUsize>);

impl BatcherFactory for Decoders {
    fn decoder(&self) -> Result<Box<dyn Decoder>> {
        let inner = self.0.decoder(Arc::clone(&self.1))?;
        Ok(Box::new(Measured(inner, Arc::clone(&self.2))))
    }

    fn transform(&self) -> Result<Box<dyn Transform>> {
        Err(Error::internal("nothing is transformed"))
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.1)
    }
}

/// Says how much was decoded at once, at the most: bytes or rows.
struct Measured(Box<dyn Decoder>, Arc<AtomicUsize>);

impl Decoder for Measured {
    fn decode(&mut self, raw: &RawBatch) -> Result<Decoded> {
        let units = raw.range.to - raw.range.from;
        self.1.fetch_max(units as usize, Ordering::Relaxed);
        self.0.decode(raw)
    }

    fn locate(&self, raw: &RawBatch, decoded: &Decoded, row: usize) -> Reject {
        self.0.locate(raw, decoded, row)
    }
}

fn checks(format: FormatConfig) -> Checks {
    measured(format).0
}

fn measured(format: FormatConfig) -> (Checks, Arc<AtomicUsize>) {
    let columns = serde_json::json!([["id", "bigint"], ["name", "varchar"]]);
    let schema = schema_from_json(&columns).expect("a schema");
    let (checks, most) = (Checks::default(), Arc::new(AtomicUsize::new(0)));
    checks.set(Arc::new(Decoders(format, schema, Arc::clone(&most))));
    (checks, most)
}

fn json() -> Checks {
    checks(FormatConfig::Json(JsonConfig::default()))
}

fn taking(on_bad_event: OnBadEvent) -> Taking {
    Taking {
        framing: Framing::default(),
        max_depth: 5,
        on_bad_event,
    }
}

fn all(kind: Kind, body: &str) -> Result<Taken, Refusal> {
    let body = Bytes::copy_from_slice(body.as_bytes());
    take(kind, body, &taking(OnBadEvent::RejectRequest), &json())
}

fn rest(kind: Kind, body: &str) -> Result<Taken, Refusal> {
    let body = Bytes::copy_from_slice(body.as_bytes());
    take(kind, body, &taking(OnBadEvent::AcceptRest), &json())
}

fn lines_of(bad: &[BadEvent]) -> Vec<usize> {
    bad.iter().map(|bad| bad.line).collect()
}

#[test]
fn json_comes_as_lines_as_an_array_or_as_objects() {
    let lines = "{\"id\":1}\n{\"id\":2}\n";
    for (kind, body) in [
        (Kind::Lines, "{\"id\":1}\n{\"id\":2}"),
        (Kind::Lines, "\u{feff}{\"id\":1}\n{\"id\":2}\n"),
        (Kind::Values, " [ {\"id\":1} ,\n {\"id\":2}\n]\n"),
        (Kind::Values, "\u{feff}{\"id\":1}{\"id\":2}"),
        (Kind::Values, "{\"id\":1}\n\n{\"id\":2}\n"),
    ] {
        let taken = all(kind, body).expect(body);
        assert_eq!(taken.payload, lines, "{body}");
        assert_eq!((taken.events, taken.refused), (2, 0));
        assert_eq!(taken.units as usize, lines.len());
    }
    let pretty = all(Kind::Values, "{\r\n  \"id\": 1,\n \"name\": \"a\\nb\"\n}").expect("one");
    assert_eq!(pretty.events, 1);
    assert_eq!(memchr::memchr_iter(b'\n', &pretty.payload).count(), 1);
    assert_eq!(all(Kind::Lines, "").expect("nothing").events, 0);
    assert_eq!(all(Kind::Values, "[]").expect("nothing").events, 0);
}

#[test]
fn a_bad_event_refuses_all_or_itself() {
    let body = "{\"id\":1}\n{\"id\":\"x\"}\n\n{\"id\":3}\nnonsense\n{\"id\":5}";
    let refusal = all(Kind::Lines, body).expect_err("two are bad");
    assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
    assert_eq!(lines_of(&refusal.bad), [2, 5]);
    assert!(refusal.bad[0].reason.contains("id"), "{refusal:?}");
    let taken = rest(Kind::Lines, body).expect("three are good");
    assert_eq!(taken.payload, "{\"id\":1}\n\n{\"id\":3}\n{\"id\":5}\n");
    assert_eq!((taken.events, taken.refused), (3, 2));
    assert_eq!(lines_of(&taken.bad), [2, 5]);
    let refusal = rest(Kind::Lines, "x\ny").expect_err("none is good");
    assert_eq!(lines_of(&refusal.bad), [1, 2]);
    let refusal = rest(Kind::Values, "[{\"id\":1}, 7, {\"id\":{}}, {}]");
    assert_eq!(lines_of(&refusal.expect("two").bad), [2, 3]);
    let refusal = all(Kind::Values, "{\"id\":1}{\"id\":2").expect_err("cut off");
    assert_eq!(lines_of(&refusal.bad), [2]);
    let many = "x\n".repeat(1000);
    let refusal = all(Kind::Lines, &many).expect_err("many");
    assert_eq!(refusal.bad.len(), MOST_NAMED);
    assert!(refusal.error.contains("1000"), "{refusal:?}");
}

#[test]
fn without_a_schema_the_form_is_checked() {
    let body = Bytes::from_static(b"{\"a\":1}\n[1]\n{\"b\":\n{}\n\xff\n \n{\"c\":\"\xff\"}\n");
    let taking = taking(OnBadEvent::AcceptRest);
    let taken = take(Kind::Lines, body, &taking, &Checks::default()).expect("two");
    assert_eq!(lines_of(&taken.bad), [2, 3, 5, 7]);
    assert_eq!(&taken.payload[..], b"{\"a\":1}\n{}\n \n");
    assert_eq!(taken.events, 2);
}

#[test]
fn nesting_is_limited_and_strings_are_not_nesting() {
    let deep = |n: usize| format!("{{\"x\":{}1{}}}", "[".repeat(n), "]".repeat(n));
    for (kind, line) in [(Kind::Lines, 2), (Kind::Values, 2)] {
        let body = format!("{{}}\n{}\n", deep(4));
        assert!(all(kind, &body).is_ok());
        let body = format!("{{}}\n{}\n", deep(5));
        let refusal = all(kind, &body).expect_err("too deep");
        assert_eq!(lines_of(&refusal.bad), [line]);
    }
    let strings = r#"{"name":"[[[[[[[[ \" {{{{{{{ \\"}"#;
    assert!(all(Kind::Lines, &format!("{strings}\n{strings}\n")).is_ok());
    // What is open at the end of a line is not open in the next.
    let open = "{\"id\":1}\n{\"a\":[[\n{\"a\":[[\n{\"a\":\"[\n{\"a\":[[\n";
    let taken = rest(Kind::Lines, open).expect("one is good");
    assert_eq!(lines_of(&taken.bad), [2, 3, 4, 5]);
    assert!(too_deep(b"\"abc", 1, true).is_none());
    assert!(too_deep(b"\"abc\\", 1, true).is_none());
    assert_eq!(too_deep(b"\"abc\n[[", 1, true), Some(2));
    // An escape at the end of a broken line takes no part of the next one.
    let escaped = "{\"a\":\"\\\n{\"name\":\"[[[[[[[\"}\n{\"id\":3}\n";
    let taken = rest(Kind::Lines, escaped).expect("two are good");
    assert_eq!(lines_of(&taken.bad), [1]);
    let far = format!("{}{}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    assert!(all(Kind::Values, &far).is_err());
}

fn rows(ids: Vec<Option<i64>>) -> RecordBatch {
    let names: Vec<String> = ids.iter().map(|id| format!("n{id:?}")).collect();
    let ids: ArrayRef = Arc::new(Int64Array::from(ids));
    let names: ArrayRef = Arc::new(StringArray::from(names));
    RecordBatch::try_from_iter([("id", ids), ("name", names)]).expect("rows")
}

#[test]
fn arrow_is_checked_before_it_is_believed() {
    let checks = checks(FormatConfig::Arrow(ArrowConfig::default()));
    let taking = taking(OnBadEvent::AcceptRest);
    let whole = rows(vec![Some(1), None, Some(3)]);
    let body = arrow_body::write(&whole).expect("write");
    let taken = take(Kind::Arrow, body.clone().into(), &taking, &checks).expect("rows");
    assert_eq!((taken.events, taken.units), (3, 3));
    assert_eq!(arrow_body::read(&taken.payload).expect("read"), whole);
    // Whatever is flipped or cut: an answer, never a panic, and nothing huge is allocated.
    for at in 0..body.len() {
        let mut flipped = body.clone();
        flipped[at] ^= 0xff;
        let flipped = Bytes::from(flipped);
        let (taking, checks) = (taking.clone(), checks.clone());
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = take(Kind::Arrow, flipped, &taking, &checks);
        }));
        assert!(caught.is_ok(), "at={at}");
        let _ = arrow_body::read(&body[..at]);
    }
    let options = arrow::ipc::writer::IpcWriteOptions::default()
        .try_with_compression(Some(arrow::ipc::CompressionType::ZSTD))
        .expect("zstd");
    let mut packed = Vec::new();
    let mut writer = arrow::ipc::writer::StreamWriter::try_new_with_options(
        &mut packed,
        &whole.schema(),
        options,
    )
    .expect("a writer");
    writer.write(&whole).expect("write");
    writer.finish().expect("finish");
    drop(writer);
    let error = arrow_body::read(&packed).expect_err("compressed");
    assert!(error.contains("compressed"), "{error}");
}

#[test]
fn large_bodies_are_checked_in_pieces_with_the_same_answers() {
    let (lines, most) = measured(FormatConfig::Json(JsonConfig::default()));
    let count = 200_000;
    let mut body = String::new();
    let mut good = String::new();
    for n in 0..count {
        let line = format!("{{\"id\":{n}}}\n");
        if n % 1000 == 999 {
            body.push_str("bad\n");
        } else {
            body.push_str(&line);
            good.push_str(&line);
        }
    }
    let bad: Vec<usize> = (1..=MOST_NAMED).map(|n| n * 1000).collect();
    let text = Bytes::from(body);
    let taken = take(
        Kind::Lines,
        text.clone(),
        &taking(OnBadEvent::AcceptRest),
        &lines,
    );
    let taken = taken.expect("most are good");
    assert_eq!(lines_of(&taken.bad), bad);
    assert_eq!((taken.events, taken.refused), (count - count / 1000, 200));
    assert!(taken.payload == good, "the others are kept");
    let all = take(
        Kind::Lines,
        text,
        &taking(OnBadEvent::RejectRequest),
        &lines,
    );
    assert_eq!(lines_of(&all.expect_err("some are bad").bad), bad);
    assert!(most.load(Ordering::Relaxed) <= PIECE_BYTES);
    // A record is never cut, however large it is.
    let long = format!(
        "{{\"name\":\"{}\"}}\nx\n{{}}\n",
        "x".repeat(3 * PIECE_BYTES)
    );
    assert_eq!(
        lines_of(&rest(Kind::Lines, &long).expect("two").bad),
        [2],
        "lines count on"
    );

    let (arrow, most) = measured(FormatConfig::Arrow(ArrowConfig::default()));
    let id = |n: i64| {
        Some(if n == 40_000 {
            "none".to_owned()
        } else {
            n.to_string()
        })
    };
    let ids: StringArray = (0..50_000).map(id).collect();
    let names: StringArray = (0..50_000).map(|n| (n != 20_000).then_some("n")).collect();
    let ids: ArrayRef = Arc::new(ids);
    let rows = RecordBatch::try_from_iter([("id", ids), ("name", Arc::new(names) as ArrayRef)]);
    let body = arrow_body::write(&rows.expect("rows")).expect("write");
    let taken = take(
        Kind::Arrow,
        body.into(),
        &taking(OnBadEvent::AcceptRest),
        &arrow,
    );
    let taken = taken.expect("rows");
    assert_eq!(lines_of(&taken.bad), [40_001]);
    assert_eq!(
        (taken.events, taken.units, taken.refused),
        (49_999, 49_999, 1)
    );
    assert_eq!(
        arrow_body::read(&taken.payload).expect("read").num_rows(),
        49_999
    );
    assert!(most.load(Ordering::Relaxed) <= PIECE_ROWS);
}

#[test]
fn pieces_of_framed_messages_are_whole() {
    for framing in [Framing::Varint, Framing::U32Be] {
        let records = Records::Frames(framing);
        let mut all = Vec::new();
        for size in [10, 2 * PIECE_BYTES, 0, 300, PIECE_BYTES - 1, 7] {
            all.extend(framing.frame_of(&vec![7; size]));
        }
        let starts = framing.starts(&all);
        let mut at = 0;
        while at < all.len() {
            at += records.piece(&all[at..]);
            assert!(starts.contains(&at) || at == all.len(), "at={at}");
        }
    }
}

fn words(word: impl Fn(usize) -> String) -> RecordBatch {
    let words: DictionaryArray<Int8Type> = (0..100)
        .map(|n| Some(word(n)))
        .collect::<Vec<_>>()
        .iter()
        .map(|word| word.as_deref())
        .collect();
    let words: ArrayRef = Arc::new(words);
    let within = arrow::array::StructArray::from(vec![(
        Arc::new(arrow::datatypes::Field::new(
            "word",
            words.data_type().clone(),
            true,
        )),
        Arc::clone(&words),
    )]);
    RecordBatch::try_from_iter([("word", words), ("within", Arc::new(within) as ArrayRef)])
        .expect("rows")
}

#[test]
fn batches_that_fit_alone_but_not_together_are_given_one_by_one() {
    let all: Vec<_> = [words(|n| format!("a{n}")), words(|n| format!("b{n}"))].into();
    assert_eq!(arrow_body::combine(all.clone()), all);
    // Each has run ends of 16 bits.
    let runs = || -> RecordBatch {
        let ends = arrow::array::Int16Array::from(vec![20_000]);
        let run = arrow::array::RunArray::try_new(&ends, &Int64Array::from(vec![1]));
        RecordBatch::try_from_iter([("run", Arc::new(run.expect("a run")) as ArrayRef)])
            .expect("rows")
    };
    let combined = arrow_body::combine(vec![runs(), runs()]);
    assert_eq!(
        combined.iter().map(RecordBatch::num_rows).sum::<usize>(),
        40_000
    );
    let small = [rows(vec![Some(1)]), rows(vec![Some(2)])].to_vec();
    assert_eq!(arrow_body::combine(small), [rows(vec![Some(1), Some(2)])]);
}

#[test]
fn messages_are_framed_and_found() {
    for framing in [Framing::Varint, Framing::U32Be] {
        let mut all = Vec::new();
        let mut expected = Vec::new();
        for size in [0, 1, 127, 128, 300] {
            expected.push(all.len());
            all.extend(framing.frame_of(&vec![7; size]));
        }
        assert_eq!(framing.starts(&all), expected);
        assert_eq!(framing.last_end(&all), all.len());
    }
}

fn limits() -> Limits {
    Limits {
        body: 1 << 20,
        decompressed: 8 << 20,
        ratio: 20,
    }
}

#[test]
fn a_body_grows_within_limits() {
    let gzip = |bytes: &[u8]| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(bytes).expect("write");
        packed.finish().expect("finish")
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).expect("pack");
    let budget = Budget::new(64 << 20);
    let inflate = |encoding, packed: Vec<u8>| {
        decompress(encoding, packed.into(), &limits(), &mut budget.charge())
    };
    let text = b"{\"id\":1}\n".repeat(1000);
    for (encoding, packed) in [
        (Encoding::Gzip, gzip(&text)),
        (Encoding::Zstd, zstd(&text)),
        (Encoding::Identity, text.clone()),
    ] {
        assert_eq!(inflate(encoding, packed.clone()).expect("whole"), text);
        if encoding != Encoding::Identity {
            let cut = inflate(encoding, packed[..packed.len() / 2].to_vec());
            assert_eq!(
                cut.expect_err("cut").status,
                StatusCode::BAD_REQUEST,
                "{encoding:?}"
            );
        }
    }
    let members = [gzip(b"a"), gzip(b"b")].concat();
    assert_eq!(inflate(Encoding::Gzip, members).expect("two"), "ab");
    // 400 MB of nothing.
    let nothing = vec![0; 4 << 20];
    for (encoding, one) in [
        (Encoding::Gzip, gzip(&nothing)),
        (Encoding::Zstd, zstd(&nothing)),
    ] {
        let refusal = inflate(encoding, one.repeat(100)).expect_err("a bomb");
        assert_eq!(refusal.status, StatusCode::PAYLOAD_TOO_LARGE);
    }
    // Random bytes do not shrink: the size counts.
    let mut noise = vec![0; 9 << 20];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut noise);
    let refusal = inflate(Encoding::Zstd, zstd(&noise)).expect_err("too large");
    assert!(refusal.error.contains("max_decompressed"), "{refusal:?}");
    let little = Budget::new(1000);
    let refusal = decompress(
        Encoding::Gzip,
        gzip(&text).into(),
        &limits(),
        &mut little.charge(),
    );
    let refusal = refusal.expect_err("no memory");
    assert_eq!(refusal.status, StatusCode::TOO_MANY_REQUESTS);
}

#[test]
fn content_types_are_of_the_format() {
    let json = FormatConfig::Json(JsonConfig::default());
    let arrow = FormatConfig::Arrow(ArrowConfig::default());
    assert_eq!(
        Kind::parse("Application/JSON; charset=utf-8", &json).expect("json"),
        Kind::Values
    );
    assert_eq!(
        Kind::parse("application/x-ndjson", &json).expect("lines"),
        Kind::Lines
    );
    for wrong in [
        "",
        "text/csv",
        "application/x-protobuf",
        "application/x-www-form-urlencoded",
    ] {
        let refusal = Kind::parse(wrong, &json).expect_err(wrong);
        assert_eq!(refusal.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    assert!(Kind::parse("application/json", &arrow).is_err());
    assert!(Encoding::parse("br").is_err());
}
