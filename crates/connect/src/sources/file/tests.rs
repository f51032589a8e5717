//! Files: resumed at every batch, followed while they grow, refused when they are not the same.

use std::{fs, io::Write, path::Path, sync::Arc};

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch},
    ipc::writer::{FileWriter, StreamWriter},
};
use calve_engine::stores::ObjectFolder;
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};

use super::*;
use crate::{
    formats::{ArrowConfig, CsvConfig, JsonConfig, ParquetConfig, infer},
    sources::testing::{account, block_on, offsets_after, read, read_on, table, text},
    units::{ByteSize, Span},
};

pub(super) fn json() -> FormatConfig {
    FormatConfig::Json(JsonConfig::default())
}

pub(super) fn source(
    dir: &Path,
    path: &str,
    format: &FormatConfig,
    change: impl Fn(&mut FileConfig),
) -> FileSource {
    let mut config = FileConfig::new([path]);
    config.chunk_bytes = Some(ByteSize(16));
    config.poll_interval = Span(std::time::Duration::from_millis(1));
    change(&mut config);
    let context = SourceContext {
        base: dir.to_owned(),
        ..SourceContext::default()
    };
    FileSource::new(&config, format, &context).expect("source")
}

pub(super) fn lines(n: usize) -> String {
    let line = |i| format!("{{\"n\":{i},\"pad\":\"{}\"}}\n", "x".repeat(i % 40));
    (0..n).map(line).collect::<Vec<_>>().concat()
}

pub(super) fn gzip(text: &str) -> Vec<u8> {
    // Two members, as when compressed logs are appended.
    let (a, b) = text.split_at(text.len() / 3);
    let member = |part: &str| {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(part.as_bytes()).expect("write");
        writer.finish().expect("finish")
    };
    [member(a), member(b)].concat()
}

fn zstd_frames(text: &str) -> Vec<u8> {
    let (a, b) = text.split_at(text.len() / 3);
    let frame = |part: &str| zstd::encode_all(part.as_bytes(), 1).expect("encode");
    [frame(a), frame(b)].concat()
}

#[test]
fn a_resume_at_every_batch_reads_every_line_once() {
    let text_of = lines(60) + "{\"n\":-1}";
    for (name, bytes) in [
        ("a.ndjson", text_of.clone().into_bytes()),
        ("a.ndjson.gz", gzip(&text_of)),
        ("a.dat", zstd_frames(&text_of)),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join(name), bytes).expect("write");
        fs::write(dir.path().join("b.empty"), b"").expect("write");
        let open = || source(dir.path(), "*", &json(), |_| {});
        let all = read(&mut open(), &Offsets::default()).expect("read");
        assert_eq!(text(&all), text_of, "{name}");
        assert!(
            all.len() > 2 && all.iter().filter(|raw| raw.last).count() == 2,
            "{name}"
        );
        for i in 0..=all.len() {
            let from = offsets_after(&all[..i]);
            let rest = read(&mut open(), &from).expect("resume");
            assert_eq!(text(&all[..i]) + &text(&rest), text_of, "{name} at {i}");
            let mut offsets = from;
            for raw in &rest {
                account(&mut offsets, raw);
            }
            assert!(offsets.0.values().all(|p| p.done));
            assert_eq!(offsets.position(name), text_of.len() as u64);
        }
    }
}

#[test]
fn csv_with_quoted_line_ends_resumes_at_every_batch() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut text_of = "id,\"the\nnote\",amount\n".to_owned();
    for i in 0..40 {
        text_of += &format!("{i},\"a \"\"b\"\",\n{}\n\",{}.5\n", "y".repeat(i), i);
        text_of += &format!("{i},5\" pipe,\r\n");
    }
    fs::write(dir.path().join("a.csv"), &text_of).expect("write");
    // The second file has its columns in another order, and one less.
    fs::write(dir.path().join("b.csv"), "amount,id\n1.5,100\n2.5,101\n").expect("write");
    let config = CsvConfig::default();
    let format = FormatConfig::Csv(config.clone());
    let open = || source(dir.path(), "*.csv", &format, |_| {});
    let all = read(&mut open(), &Offsets::default()).expect("read");
    let schema = infer::infer(&format, &all[..1]).expect("infer");
    let names: Vec<_> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(names, ["id", "the\nnote", "amount"]);
    let declared = crate::formats::Columns(vec![
        ("id".into(), "bigint".into()),
        ("the\nnote".into(), "varchar".into()),
        ("amount".into(), "double".into()),
    ]);
    let mut decoder = format
        .decoder(declared.schema().expect("schema"))
        .expect("decoder");
    let expected = table(decoder.as_mut(), &all);
    assert!(
        expected.contains("101") && expected.contains("39.5"),
        "{expected}"
    );
    for i in 0..=all.len() {
        let rest = read(&mut open(), &offsets_after(&all[..i])).expect("resume");
        let both: Vec<_> = all[..i].iter().chain(&rest).cloned().collect();
        assert_eq!(table(decoder.as_mut(), &both), expected, "at {i}");
    }
}

pub(super) fn numbers(from: i64, to: i64) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(from..to));
    RecordBatch::try_from_iter([("n", column)]).expect("rows")
}

#[test]
fn parquet_and_arrow_resume_at_any_row() {
    let dir = tempfile::tempdir().expect("a folder");
    let create = |name: &str| fs::File::create(dir.path().join(name)).expect("create");
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(1000))
        .build();
    let mut parquet =
        ArrowWriter::try_new(create("p"), numbers(0, 0).schema(), Some(properties)).expect("new");
    parquet.write(&numbers(0, 2500)).expect("write");
    parquet.close().expect("close");
    let schema = numbers(0, 0).schema();
    let mut file = FileWriter::try_new(create("f"), &schema).expect("new");
    let mut stream = StreamWriter::try_new(create("s"), &schema).expect("new");
    for (from, to) in [(0, 1000), (1000, 1000), (1000, 2500)] {
        file.write(&numbers(from, to)).expect("write");
        stream.write(&numbers(from, to)).expect("write");
    }
    file.finish().expect("finish");
    stream.finish().expect("finish");
    let parquet = FormatConfig::Parquet(ParquetConfig::default());
    let arrow = FormatConfig::Arrow(ArrowConfig::default());
    for (name, format) in [("p", parquet), ("f", arrow.clone()), ("s", arrow)] {
        let open = || source(dir.path(), name, &format, |_| {});
        let all = read(&mut open(), &Offsets::default()).expect("read");
        let mut decoder = format.decoder(schema.clone()).expect("decoder");
        let whole = table(decoder.as_mut(), &all);
        assert!(whole.contains("| 2499 |"));
        for at in [0, 1, 999, 1000, 1001, 2499, 2500] {
            let mut from = offsets_after(&all);
            let position = from.0.get_mut(name).expect("read");
            (position.offset, position.done) = (at, false);
            let rest = read(&mut open(), &from).expect("resume");
            let expected = numbers(at as i64, 2500);
            let raw = RawBatch {
                payload: Payload::Rows(expected),
                range: OffsetRange { from: at, to: 2500 },
                ..rest[0].clone()
            };
            assert_eq!(
                table(decoder.as_mut(), &rest),
                table(decoder.as_mut(), &[raw]),
                "{name} {at}"
            );
            assert!(rest.last().expect("a batch").last);
        }
        let mut behind = offsets_after(&all);
        let position = behind.0.get_mut(name).expect("read");
        (position.offset, position.done) = (2501, false);
        assert!(read(&mut open(), &behind).is_err(), "{name} behind the end");
    }
}

#[test]
fn a_followed_file_gives_whole_lines_as_it_grows() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.ndjson");
    let append = |path: &Path, text: &str| {
        let file = fs::OpenOptions::new().append(true).create(true).open(path);
        file.expect("open")
            .write_all(text.as_bytes())
            .expect("append");
    };
    append(&path, "{\"n\":1}\n{\"n\"");
    let mut source = source(dir.path(), "*.ndjson", &json(), |c| c.follow = true);
    let mut offsets = Offsets::default();
    block_on(async {
        source.open(&offsets).await.expect("open");
        let mut step = async |expected: &str| {
            let mut got = String::new();
            // A look may come before the write is seen: the last one counts.
            for _ in 0..2 {
                let batches = read_on(&mut source).await.expect("read");
                for raw in &batches {
                    account(&mut offsets, raw);
                }
                got += &text(&batches);
            }
            assert_eq!(got, expected);
        };
        step("{\"n\":1}\n").await;
        append(&path, ":2}");
        step("").await;
        append(&path, "\n{\"n\":3}\n");
        step("{\"n\":2}\n{\"n\":3}\n").await;
        append(&dir.path().join("b.ndjson"), "{\"b\":1}\n");
        step("{\"b\":1}\n").await;
        fs::remove_file(dir.path().join("b.ndjson")).expect("remove");
        step("").await;
    });
    assert!(
        offsets.0["b.ndjson"].done,
        "a file that went away has ended"
    );
    append(&path, "{\"n\":4}\n");
    let mut again = self::source(dir.path(), "*.ndjson", &json(), |c| c.follow = true);
    assert_eq!(
        text(&read(&mut again, &offsets).expect("resume")),
        "{\"n\":4}\n"
    );
}

#[test]
fn a_file_that_is_not_the_same_is_refused() {
    let content = lines(100);
    let refused = |change: &dyn Fn(&Path), message: &str| {
        for follow in [false, true] {
            let dir = tempfile::tempdir().expect("a folder");
            let path = dir.path().join("a.ndjson");
            fs::write(&path, &content).expect("write");
            let open = || source(dir.path(), "*.ndjson", &json(), |c| c.follow = follow);
            let all = read(&mut open(), &Offsets::default()).expect("read");
            change(&path);
            for batches in [&all[..all.len() / 2], &all[..]] {
                let error = read(&mut open(), &offsets_after(batches));
                let error = error.map(|all| all.len()).expect_err(message);
                assert!(error.message().contains(message), "{error}");
                assert_eq!(error.kind(), calve_engine::ErrorKind::Config);
                assert!(error.hint_text().is_some());
            }
        }
    };
    refused(
        &|path| fs::write(path, &content[..500]).expect("write"),
        "truncated",
    );
    refused(
        &|path| fs::write(path, "{\"other\":1}\n".repeat(900)).expect("write"),
        "replaced",
    );
    let other_tail = content.clone().replace("xxxxxxxxxx", "yyyyyyyyyy");
    refused(
        &|path| {
            fs::remove_file(path).expect("remove");
            // The head is the same: only what lies before the position tells.
            let mixed = content[..1100].to_owned() + &other_tail[1100..];
            fs::write(path, mixed + "{}\n").expect("write");
        },
        "replaced",
    );
}

#[test]
fn a_running_follower_notices_a_truncation() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.ndjson");
    fs::write(&path, lines(100)).expect("write");
    let mut source = source(dir.path(), "a.ndjson", &json(), |c| c.follow = true);
    read(&mut source, &Offsets::default()).expect("read");
    fs::write(&path, "{}\n").expect("write");
    let error = block_on(read_on(&mut source)).expect_err("truncated");
    assert!(
        error.message().contains("truncated: file=a.ndjson")
            || error.message().contains("truncated"),
        "{error}"
    );
}

#[test]
fn vanished_files() {
    let dir = tempfile::tempdir().expect("a folder");
    for name in ["a.ndjson", "b.ndjson"] {
        fs::write(dir.path().join(name), lines(20)).expect("write");
    }
    let open = || source(dir.path(), "*.ndjson", &json(), |_| {});
    let all = read(&mut open(), &Offsets::default()).expect("read");
    fs::remove_file(dir.path().join("a.ndjson")).expect("remove");
    assert!(
        read(&mut open(), &offsets_after(&all))
            .expect("done files may go")
            .is_empty()
    );
    let error = read(&mut open(), &offsets_after(&all[..2])).expect_err("a.ndjson was not read");
    assert!(error.message().contains("file=a.ndjson"), "{error}");
    fs::write(dir.path().join("b.ndjson"), lines(21)).expect("write");
    let more = read(&mut open(), &offsets_after(&all)).expect("grown");
    assert_eq!(text(&more), lines(21)[lines(20).len()..]);
    let none = source(dir.path(), "*.csv", &json(), |_| {});
    assert!(
        read(&mut { none }, &Offsets::default()).is_err(),
        "nothing to read"
    );
}

#[test]
fn long_lines_and_cut_off_compression_are_errors() {
    let dir = tempfile::tempdir().expect("a folder");
    let long = format!("{{\"a\":\"{}\"}}\n", "x".repeat(100_000));
    fs::write(dir.path().join("long"), &long).expect("write");
    let mut fits = source(dir.path(), "long", &json(), |_| {});
    assert_eq!(
        text(&read(&mut fits, &Offsets::default()).expect("fits")),
        long
    );
    let mut strict = source(dir.path(), "long", &json(), |c| {
        c.max_line_bytes = ByteSize(1000);
    });
    let error = read(&mut strict, &Offsets::default()).expect_err("too long");
    assert!(error.message().contains("file=long offset=0"), "{error}");
    for (name, bytes) in [("g", gzip(&long)), ("z", zstd_frames(&long))] {
        fs::write(dir.path().join(name), &bytes[..bytes.len() - 5]).expect("write");
        let mut cut = source(dir.path(), name, &json(), |_| {});
        let error = read(&mut cut, &Offsets::default()).expect_err(name);
        assert!(error.message().contains("ends early"), "{error}");
    }
}

#[test]
fn an_object_store_reads_like_a_disk() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = ObjectFolder::in_memory();
    let content = lines(200);
    let put = |name: &str, bytes: Vec<u8>| block_on(store.put(name, bytes)).expect("put");
    put("in/a.ndjson", content.clone().into_bytes());
    put("in/b.ndjson.gz", gzip(&content));
    put("in/deep/c.ndjson", content.clone().into_bytes());
    let open = || {
        let mut source = source(dir.path(), "unused", &json(), |c| {
            c.chunk_bytes = Some(ByteSize(1000));
        });
        source.patterns = vec![Pattern::Remote {
            root: "s3://bucket".into(),
            folder: store.sub("in").expect("a place"),
            glob: Some(glob::Pattern::new("in/*").expect("glob")),
        }];
        source
    };
    let all = read(&mut open(), &Offsets::default()).expect("read");
    assert_eq!(
        text(&all),
        content.clone() + &content,
        "the deeper file does not match"
    );
    assert_eq!(all[0].partition.as_str(), "s3://bucket/in/a.ndjson");
    for i in 0..=all.len() {
        let rest = read(&mut open(), &offsets_after(&all[..i])).expect("resume");
        assert_eq!(
            text(&all[..i]) + &text(&rest),
            content.clone() + &content,
            "at {i}"
        );
    }
    // The same head, size and end; only the store knows that it is another object.
    put("in/a.ndjson", content.into_bytes());
    for i in [1, all.len()] {
        let error = read(&mut open(), &offsets_after(&all[..i])).expect_err("replaced");
        let message = error.message();
        assert!(
            message.contains("was replaced") && message.contains("a.ndjson"),
            "{error}"
        );
    }
}

/// Messages of a string field, each behind its length, and a format that reads them.
fn framed(framing: &str, count: usize) -> (FormatConfig, Vec<u8>) {
    let mut bytes = Vec::new();
    for n in 0..count {
        let text = format!("{n} {}", "x".repeat(n * 7 % 200));
        let mut message = vec![0x0a];
        prost::encoding::encode_varint(text.len() as u64, &mut message);
        message.extend_from_slice(text.as_bytes());
        if framing == "varint" {
            prost::encoding::encode_varint(message.len() as u64, &mut bytes);
        } else {
            bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
        }
        bytes.extend_from_slice(&message);
    }
    let yaml = format!(
        "protobuf: {{ message: google.protobuf.StringValue, framing: {framing}, columns: {{ text: value, at: {{ offset: true }} }} }}"
    );
    let mut format: FormatConfig = serde_yaml_ng::from_str(&yaml).expect("yaml");
    if let FormatConfig::Protobuf(config) = &mut format {
        config.pool = Some(prost_reflect::DescriptorPool::global());
    }
    (format, bytes)
}

#[test]
fn messages_behind_their_lengths_resume_at_every_batch() {
    for framing in ["varint", "u32_be"] {
        let (format, bytes) = framed(framing, 60);
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("a.pb"), &bytes).expect("write");
        let open = || {
            source(dir.path(), "*.pb", &format, |c| {
                c.chunk_bytes = Some(ByteSize(300));
            })
        };
        let all = read(&mut open(), &Offsets::default()).expect("read");
        let schema = format
            .declared_schema()
            .expect("described")
            .expect("schema");
        let mut decoder = format.decoder(schema).expect("decoder");
        let expected = table(decoder.as_mut(), &all);
        assert!(all.len() > 10 && expected.contains("| 59 x"), "{expected}");
        for i in 0..=all.len() {
            let rest = read(&mut open(), &offsets_after(&all[..i])).expect("resume");
            let both: Vec<_> = all[..i].iter().chain(&rest).cloned().collect();
            assert_eq!(table(decoder.as_mut(), &both), expected, "{framing} at {i}");
        }
        // A message that is cut off at the end of the file is a reject at its place.
        fs::write(dir.path().join("a.pb"), &bytes[..bytes.len() - 1]).expect("write");
        let all = read(&mut open(), &Offsets::default()).expect("read");
        let last = decoder.decode(all.last().expect("one")).expect("decoded");
        let reject = last.rejects.last().expect("a reject");
        assert_eq!(
            reject.offset + reject.raw.len() as u64,
            bytes.len() as u64 - 1
        );
        let rows: usize = all
            .iter()
            .map(|raw| decoder.decode(raw).expect("decoded").rows.num_rows())
            .sum();
        assert_eq!(rows, 59);
    }
}

#[test]
fn a_growing_file_of_messages_is_read_message_by_message() {
    let (format, bytes) = framed("varint", 3);
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.pb");
    fs::write(&path, &bytes[..1]).expect("write");
    let mut source = source(dir.path(), "a.pb", &format, |c| c.follow = true);
    block_on(async {
        source.open(&Offsets::default()).await.expect("open");
        let mut got = Vec::new();
        for to in 2..=bytes.len() {
            loop {
                match source.next().await.expect("next") {
                    SourceEvent::Batch(raw) => got.push(raw.range),
                    SourceEvent::Idle => break,
                    _ => {}
                }
            }
            fs::write(&path, &bytes[..to]).expect("write");
        }
        while got.last().is_none_or(|range| range.to < bytes.len() as u64) {
            if let SourceEvent::Batch(raw) = source.next().await.expect("next") {
                got.push(raw.range);
            }
        }
        assert_eq!(got.len(), 3, "each as soon as it was whole: {got:?}");
    });
}
