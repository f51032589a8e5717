//! Files that are not what they were: written over in place, away for a while, gone in the middle of a line.

use std::{fs, io::Write, path::Path, time::Duration};

use arrow::array::RecordBatch;
use calve_engine::ErrorKind;
use parquet::arrow::ArrowWriter;

use super::{
    tests::{gzip, json, lines, numbers, source},
    *,
};
use crate::{
    formats::ParquetConfig,
    sources::testing::{account, block_on, offsets_after, read, read_on, text},
};

/// Writes over a file: it stays the same file, and is younger than before. The clock of a file system may
/// stand still between two writes.
fn overwrite(path: &Path, bytes: &[u8]) {
    let meta = fs::metadata(path).expect("it is there");
    assert_eq!(meta.len(), bytes.len() as u64);
    let file = fs::OpenOptions::new().write(true).open(path);
    let mut file = file.expect("open");
    file.write_all(bytes).expect("write");
    let at = meta.modified().expect("a time") + Duration::from_secs(1);
    file.set_modified(at).expect("a later time");
}

/// Two columns, of which the second begins with a number behind the first KiB.
fn parquet(from: i64) -> Vec<u8> {
    let column = |from| numbers(from, from + 500).remove_column(0);
    let rows = RecordBatch::try_from_iter([("n", column(0)), ("m", column(from))]).expect("rows");
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, rows.schema(), None).expect("a writer");
    writer.write(&rows).expect("written");
    writer.close().expect("closed");
    bytes
}

/// Tags as a version before this one wrote them.
fn without_times(mut offsets: Offsets) -> Offsets {
    for position in offsets.0.values_mut() {
        let mut tag = FileTag::parse(position.tag.as_deref().expect("a tag"));
        tag.changed = None;
        position.tag = tag.print();
    }
    offsets
}

fn is_refused<T>(result: Result<T>, how: &str) {
    let error = result.err().expect(how);
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.message().contains(how), "{error}");
    assert!(error.hint_text().is_some());
}

#[test]
fn a_file_that_was_written_over_in_its_size_is_noticed() {
    let content = lines(100);
    let (head, tail) = (
        content.replacen("{\"n\":0", "{\"n\":9", 1),
        content.replacen("{\"n\":99", "{\"n\":11", 1),
    );
    let rows = FormatConfig::Parquet(ParquetConfig::default());
    let cases = [
        (
            json(),
            content.clone().into_bytes(),
            head.clone().into_bytes(),
        ),
        (json(), content.clone().into_bytes(), tail.into_bytes()),
        (json(), gzip(&content), gzip(&head)),
        (rows, parquet(1), parquet(2)),
    ];
    for (format, before, mut after) in cases {
        // Compressed, it may have become a little longer or shorter: what is left of it is another file.
        after.resize(before.len(), 0);
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a");
        for follow in [false, true] {
            fs::write(&path, &before).expect("write");
            let open = || source(dir.path(), "*", &format, |c| c.follow = follow);
            let mut running = open();
            let all = read(&mut running, &Offsets::default()).expect("read");
            let offsets = offsets_after(&all);
            let rows: u64 = all.iter().map(|raw| raw.range.to - raw.range.from).sum();
            // The same bytes again: nothing is read twice, and nothing is wrong.
            overwrite(&path, &before);
            let again = read(&mut open(), &offsets).expect("the same");
            assert_eq!(text_bytes(&again), 0);
            let mut now = offsets.clone();
            for raw in &again {
                account(&mut now, raw);
            }
            assert_eq!(now.position("a"), rows);
            if !follow {
                assert!(
                    read(&mut open(), &now).expect("the same").is_empty(),
                    "known now"
                );
            }
            overwrite(&path, &after);
            is_refused(read(&mut open(), &offsets), "replaced");
            is_refused(read(&mut open(), &now), "replaced");
            is_refused(read(&mut open(), &without_times(offsets)), "replaced");
            if follow {
                is_refused(block_on(read_on(&mut running)), "replaced");
            }
        }
    }
}

fn text_bytes(batches: &[RawBatch]) -> u64 {
    batches
        .iter()
        .map(|raw| raw.range.to - raw.range.from)
        .sum()
}

/// A source that follows a folder, and what the engine accounts for.
struct Follower {
    source: FileSource,
    offsets: Offsets,
}

impl Follower {
    fn new(dir: &Path, offsets: Offsets) -> Self {
        let mut source = source(dir, "*.log", &json(), |c| c.follow = true);
        block_on(source.open(&offsets)).expect("open");
        Self { source, offsets }
    }

    /// What comes until there is nothing more.
    fn next(&mut self) -> Result<String> {
        let batches = block_on(read_on(&mut self.source))?;
        for raw in &batches {
            account(&mut self.offsets, raw);
        }
        Ok(text(&batches))
    }

    fn gives(&mut self, expected: &str) {
        assert_eq!(self.next().expect("read"), expected);
    }
}

fn append(path: &Path, text: &str) {
    let file = fs::OpenOptions::new().append(true).create(true).open(path);
    file.expect("open")
        .write_all(text.as_bytes())
        .expect("append");
}

#[test]
fn a_file_that_was_away_goes_on_or_is_another() {
    let longer = "{\"n\":8}\n".repeat(100);
    for (other, how) in [
        (longer.as_str(), "replaced"),
        ("{\"n\":1}\n", "truncated"),
        ("", "truncated"),
    ] {
        for restarts in [false, true] {
            let dir = tempfile::tempdir().expect("a folder");
            let (path, away) = (dir.path().join("a.log"), dir.path().join("a.log.1"));
            append(&path, "{\"n\":1}\n{\"n\":22}\n");
            let mut follower = Follower::new(dir.path(), Offsets::default());
            follower.gives("{\"n\":1}\n{\"n\":22}\n");
            let restart = |follower: &mut Follower| {
                if restarts {
                    let offsets = std::mem::take(&mut follower.offsets);
                    *follower = Follower::new(dir.path(), offsets);
                }
            };
            for line in ["{\"n\":3}\n", ""] {
                fs::rename(&path, &away).expect("away");
                restart(&mut follower);
                follower.gives("");
                follower.gives("");
                assert!(follower.offsets.0["a.log"].done);
                fs::rename(&away, &path).expect("back");
                append(&path, line);
                follower.gives(line);
                append(&path, "{\"m\":0}\n");
                follower.gives("{\"m\":0}\n");
            }
            // As logs are rotated: the name is free for one look, and then another file has it.
            fs::rename(&path, &away).expect("away");
            restart(&mut follower);
            follower.gives("");
            append(&path, other);
            is_refused(follower.next(), how);
        }
    }
}

#[test]
fn a_line_without_end_is_the_last_one_of_a_file_that_goes_away() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.log");
    append(&path, "{\"n\":1}\n{\"n\"");
    let mut follower = Follower::new(dir.path(), Offsets::default());
    follower.gives("{\"n\":1}\n");
    append(&path, ":2");
    follower.gives("");
    append(&path, "}\n{\"n\":3}");
    follower.gives("{\"n\":2}\n");
    fs::remove_file(&path).expect("remove");
    follower.gives("{\"n\":3}");
    follower.gives("");
    assert!(follower.offsets.0["a.log"].done);
    // It comes back as it was, and grows.
    append(&path, "{\"n\":1}\n{\"n\":2}\n{\"n\":3}");
    follower.gives("");
    append(&path, "\n{\"n\":4}\n");
    follower.gives("\n{\"n\":4}\n");
    let mut again = Follower::new(dir.path(), follower.offsets.clone());
    again.gives("");

    // One that is too long to be kept is not lost in silence.
    let long = format!("{{\"a\":\"{}", "x".repeat(100_000));
    append(&path, &long);
    follower.gives("");
    fs::remove_file(&path).expect("remove");
    is_refused(follower.next(), "vanished");
}
