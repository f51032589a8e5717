//! Offsets of rows: those that `locate` finds, whichever decoder is asked, and however the stream was cut.

use arrow::{
    array::{AsArray, Float64Array},
    datatypes::Int64Type,
};
use bytes::Bytes;
use calve_engine::{Payload, batch::Messages};
use calve_model::OffsetRange;
use proptest::prelude::*;

use super::*;
use crate::{
    formats::{Columns, Evolve, FormatConfig},
    sources::testing::raw,
};

/// Makes decoders of one format to one schema.
struct Format {
    config: FormatConfig,
    schema: SchemaRef,
    rescued: Option<&'static str>,
}

impl Format {
    fn new(yaml: &str, columns: &[(&str, &str)]) -> Self {
        let config: FormatConfig = serde_yaml_ng::from_str(yaml).expect("a format");
        let schema = config.declared_schema().unwrap_or_else(|| {
            let columns = columns.iter().map(|(n, t)| ((*n).into(), (*t).into()));
            Columns(columns.collect()).schema()
        });
        Self {
            config,
            schema: schema.expect("a schema"),
            rescued: None,
        }
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        let evolve = self.rescued.map(|_| Evolve::STRICT);
        let schema = Arc::clone(&self.schema);
        let decoder = self.config.decoder_with(schema, evolve, self.rescued);
        decoder.expect("a decoder")
    }

    /// Offsets of a batch's rows, which must be those of `locate`, also for a decoder that read something
    /// else since.
    fn offsets(&self, raw: &RawBatch) -> Vec<u64> {
        let mut decoder = self.decoder();
        let decoded = decoder.decode(raw).expect("decoded");
        let offsets = decoder.offsets(raw, &decoded);
        assert_eq!(offsets.len(), decoded.rows.num_rows());
        let mut other = self.decoder();
        other.decode(&nothing(raw)).expect("decoded");
        for one in [&decoder, &other] {
            let locate = |row| one.locate(raw, &decoded, row).offset;
            assert_eq!(offsets, (0..offsets.len()).map(locate).collect::<Vec<_>>());
            assert_eq!(offsets, one.offsets(raw, &decoded));
        }
        let mut with = OffsetsDecoder::new(self.decoder(), &self.schema);
        let decoded = with.decode(raw).expect("decoded");
        let column = decoded.rows.column_by_name(OFFSET).expect("the column");
        let column = column.as_primitive::<Int64Type>().values();
        assert!(column.iter().map(|at| *at as u64).eq(offsets.clone()));
        for (row, offset) in offsets.iter().enumerate() {
            assert_eq!(with.locate(raw, &decoded, row).offset, *offset);
        }
        offsets
    }

    /// The same of a text of these records, in one batch and in as many as can be.
    fn of_records(&self, from: u64, records: &[&str]) -> Vec<u64> {
        let offsets = self.offsets(&raw(&records.concat(), from));
        let (mut at, mut single) = (from, Vec::new());
        for record in records {
            single.extend(self.offsets(&raw(record, at)));
            at += record.len() as u64;
        }
        assert_eq!(single, offsets, "one by one");
        offsets
    }
}

/// A batch of the same kind that comes later, without events.
fn nothing(raw: &RawBatch) -> RawBatch {
    let mut later = raw.clone();
    later.range = OffsetRange {
        from: raw.range.to,
        to: raw.range.to,
    };
    later.payload = match &raw.payload {
        Payload::Bytes(_) => Payload::Bytes(Bytes::new()),
        Payload::Rows(rows) => Payload::Rows(rows.slice(0, 0)),
        Payload::Messages(_) => Payload::Messages(Messages::default()),
    };
    later
}

/// Offsets of some of the records.
fn at(from: u64, records: &[&str], numbers: &[usize]) -> Vec<u64> {
    let before = |n: &usize| {
        records[..*n]
            .iter()
            .map(|one| one.len() as u64)
            .sum::<u64>()
    };
    numbers.iter().map(|n| from + before(n)).collect()
}

#[test]
fn lines_of_json() {
    let lines = [
        "{\"id\":1}\n",
        "\n",
        "  {\"id\":2}\r\n",
        "{\"id\":\"x\"}\n",
        " \t\r\n",
        "\x0c\n",
        "no object\n",
        "{\"id\":3,\"more\":[1]}\n",
        "{\"id\":4}",
    ];
    let mut json = Format::new("json: {}", &[("id", "bigint"), ("_rescued", "varchar")]);
    let rows = at(500, &lines, &[0, 2, 7, 8]);
    assert_eq!(json.of_records(500, &lines), rows);
    // What does not fit a column is no reject then.
    json.rescued = Some("_rescued");
    let rows = at(500, &lines, &[0, 2, 3, 7, 8]);
    assert_eq!(json.of_records(500, &lines), rows);
    json.rescued = None;
    // A byte-order mark stands before the first line, as rejects have it.
    let marked = ["\u{feff}{\"id\":1}\n", "{\"id\":2}\n"];
    assert_eq!(json.of_records(0, &marked), [3, 12]);
    // A line that is not UTF-8 is a reject between the others.
    let mut damaged = raw("", 70);
    let text = b"{\"id\":1}\n\"\xff\"\n{\"id\":2}\n";
    damaged.range.to += text.len() as u64;
    damaged.payload = Payload::Bytes(text.to_vec().into());
    assert_eq!(json.offsets(&damaged), [70, 83]);
}

#[test]
fn records_of_csv() {
    let columns = [("id", "int"), ("name", "varchar")];
    let records = [
        "1,a\n",
        "2,\"b\nb\"\r\n",
        "\n",
        "x,c\n",
        "4\n",
        "5,\"e,\"\"\n\n\"\n",
        "6,f",
    ];
    let plain = Format::new("csv: { header: false }", &columns);
    let rows = at(90, &records, &[0, 1, 5, 6]);
    // A blank record is passed over, and the next one begins behind it.
    assert_eq!(plain.of_records(90, &records), rows);
    let without_bad = [records[0], records[1], records[2], records[5], records[6]];
    let rows = at(90, &without_bad, &[0, 1, 3, 4]);
    assert_eq!(plain.of_records(90, &without_bad), rows);
    let with_header = Format::new("csv: {}", &columns);
    let text = format!("name,id\n{}", "a,1\nb,2\n");
    assert_eq!(with_header.offsets(&raw(&text, 0)), [8, 12]);
}

#[test]
fn changes_of_debezium() {
    let wrapped = "{\"schema\":null,\"payload\":{\"op\":\"d\",\"before\":{\"id\":2}}}\n";
    let lines = [
        "null\n",
        "{\"op\":\"c\",\"after\":{\"id\":1}}\n",
        "{\"op\":\"m\"}\n",
        "{\"op\":\"x\"}\n",
        wrapped,
        "\n",
        "{\"key\":{\"id\":3},\"value\":{\"op\":\"c\",\"after\":{\"id\":3}}}\n",
        "{\"key\":{\"id\":3},\"value\":null}\n",
        " {\"op\":\"t\"}",
    ];
    let changes = Format::new("debezium: { columns: { id: int } }", &[]);
    let rows = at(40, &lines, &[1, 4, 6, 8]);
    assert_eq!(changes.of_records(40, &lines), rows);
    let unwrapped = Format::new("debezium: { unwrapped: true, columns: { id: int } }", &[]);
    let lines = [
        "{\"id\":1,\"__op\":\"c\"}\n",
        "null\n",
        "{\"id\":\"x\"}\n",
        "{\"id\":1,\"__deleted\":\"true\"}\n",
    ];
    let rows = at(40, &lines, &[0, 3]);
    assert_eq!(unwrapped.of_records(40, &lines), rows);
}

#[test]
fn rows_of_files() {
    let numbers = Float64Array::from(vec![1.0, 2.5, 3.0, f64::NAN, 5.0]);
    let numbers: ArrayRef = Arc::new(numbers);
    let rows = RecordBatch::try_from_iter([("n", numbers)]).expect("rows");
    for (of, found) in [
        ("bigint", vec![100, 102, 104]),
        ("double", vec![100, 101, 102, 103, 104]),
    ] {
        let format = Format::new("parquet: {}", &[("n", of)]);
        let batch = |from: usize, count| RawBatch {
            range: OffsetRange {
                from: 100 + from as u64,
                to: (100 + from + count) as u64,
            },
            payload: Payload::Rows(rows.slice(from, count)),
            ..raw("", 0)
        };
        assert_eq!(format.offsets(&batch(0, 5)), found);
        let halves = [batch(0, 2), batch(2, 3)].map(|half| format.offsets(&half));
        assert_eq!(halves.concat(), found);
    }
}

#[test]
fn messages_share_the_offset_of_their_group() {
    let pool = crate::sources::testing::pool_of(
        "syntax = \"proto3\"; package t; message M { string text = 1; }",
    );
    let yaml = "{ message: t.M, columns: { text: text } }";
    let mut config: crate::formats::ProtobufConfig = serde_yaml_ng::from_str(yaml).expect("yaml");
    config.pool = Some(pool);
    let schema = config.schema().expect("a schema");
    let format = Format {
        config: FormatConfig::Protobuf(config.clone()),
        schema,
        rescued: None,
    };
    // The third is cut off in the middle of its text.
    let all: [&[u8]; 4] = [b"\x0a\x01a", b"\x0a\x01b", b"\x0a\x09", b"\x0a\x01c"];
    let batch = |all: &[&[u8]], offsets: &[u64]| {
        let mut messages = Messages {
            offsets: offsets.to_vec(),
            ordinals: vec![0; all.len()],
            ..Messages::default()
        };
        let mut end = 0;
        for one in all {
            end += one.len() as u32;
            messages.ends.push(end);
        }
        messages.bytes = all.concat().into();
        RawBatch {
            range: OffsetRange { from: 7, to: 20 },
            payload: Payload::Messages(messages),
            ..raw("", 0)
        }
    };
    assert_eq!(format.offsets(&batch(&all, &[7, 9, 9, 9])), [7, 9, 9]);
    assert_eq!(format.offsets(&batch(&all[..2], &[7, 7])), [7, 7]);
    // Behind their lengths, in a stream of bytes; the last one is cut off.
    let mut framed: Vec<u8> = Vec::new();
    for one in all {
        framed.push(one.len() as u8);
        framed.extend_from_slice(one);
    }
    framed.extend([3, 0x0a]);
    let text = String::from_utf8(framed).expect("plain bytes");
    assert_eq!(format.offsets(&raw(&text, 1000)), [1000, 1004, 1011]);
}

proptest! {
    /// Whatever the text.
    #[test]
    fn each_row_of_any_text_has_one(text in "[ab1,;' \t\n\r\\\\]{0,60}", lines in any_lines()) {
        for escape in ["", ", escape: '\\'"] {
            let yaml = format!("csv: {{ header: false, quote: \"'\"{escape} }}");
            for columns in [&[("a", "varchar")][..], &[("a", "varchar"), ("b", "int")]] {
                let offsets = Format::new(&yaml, columns).offsets(&raw(&text, 5));
                prop_assert!(offsets.is_sorted_by(|a, b| a < b));
            }
        }
        let json = Format::new("json: {}", &[("a", "int")]);
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let offsets = json.of_records(5, &lines);
        prop_assert!(offsets.is_sorted_by(|a, b| a < b));
    }
}

/// Lines that are rows, blank, or neither.
fn any_lines() -> impl Strategy<Value = Vec<String>> {
    let line = prop_oneof![
        Just("{\"a\":1}\n".to_owned()),
        Just(" {} \r\n".to_owned()),
        "[ {}\t\r\x0c]{0,4}\n",
    ];
    prop::collection::vec(line, 0..20)
}
