//! The decoder against arrow-json, on hostile lines and on generated ones, alone and in batches.

mod generated;
mod hostile;
mod reference;
mod values;

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, RecordBatch, StructArray},
    compute::{cast, concat_batches},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
};
use bytes::Bytes;
use calve_engine::{Decoded, Decoder, ErrorKind, Payload, RawBatch};
use calve_model::{OffsetRange, SourcePartition};

use self::reference::reference;
use super::JsonDecoder;

/// Decodes with a decoder that has seen nothing.
fn decode(schema: &SchemaRef, lines: &[u8]) -> Decoded {
    let mut decoder = JsonDecoder::new(schema.clone()).expect("a schema of supported types");
    decoder
        .decode_lines(lines, 1000)
        .expect("bad events are rejects")
}

/// The batch in the reference's terms: dictionaries as plain strings.
fn plain(rows: &RecordBatch, schema: &SchemaRef) -> RecordBatch {
    let columns = rows.columns().iter().zip(schema.fields());
    let columns: Vec<ArrayRef> = columns
        .map(|(column, field)| cast(column, field.data_type()).expect("a cast to strings"))
        .collect();
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options).expect("the same columns")
}

/// Equality of all buffers that count, floats by their bits.
fn same(left: &RecordBatch, right: &RecordBatch) -> bool {
    let strip = |batch: &RecordBatch| StructArray::from(batch.clone()).to_data();
    // Equality of array data compares floats by their bytes, so NaN equals itself and -0 differs.
    strip(left) == strip(right)
}

/// Checks a batch of lines against the reference, line by line and as a whole: rows, order of
/// rejects, offsets, raw text, and where each row came from.
fn check_batch(schema: &SchemaRef, lines: &[Vec<u8>], decoder: &mut JsonDecoder) {
    let without_end = |line: &[u8]| line.strip_suffix(b"\r").unwrap_or(line).to_vec();
    let mut text = Vec::new();
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for line in lines {
        let offset = 77 + text.len() as u64;
        match reference(schema, line) {
            Some(row) => good.push((offset, line.clone(), row)),
            None if line.trim_ascii().is_empty() => {}
            None => bad.push((offset, without_end(line))),
        }
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    let raw = RawBatch {
        partition: SourcePartition::new("test"),
        range: OffsetRange {
            from: 77,
            to: 77 + text.len() as u64,
        },
        payload: Payload::Bytes(Bytes::from(text)),
        last: true,
        tag: None,
        arrival: None,
    };
    let decoded = decoder.decode(&raw).expect("bad events are rejects");
    let rejects: Vec<_> = decoded
        .rejects
        .iter()
        .map(|r| (r.offset, r.raw.to_vec()))
        .collect();
    assert_eq!(rejects, bad, "errors: {:?}", decoded.rejects);
    let expected =
        concat_batches(schema, good.iter().map(|(_, _, row)| row)).expect("rows of one schema");
    assert!(
        same(&plain(&decoded.rows, schema), &expected),
        "{:?}\n{expected:?}",
        decoded.rows
    );
    for (row, (offset, line, _)) in good.iter().enumerate() {
        let found = decoder.locate(&raw, &decoded, row);
        assert_eq!(
            (found.offset, found.raw.as_ref()),
            (*offset, without_end(line).as_slice())
        );
    }
}

fn schema(fields: Vec<(&str, DataType)>) -> SchemaRef {
    let fields = fields
        .into_iter()
        .map(|(name, of)| Field::new(name, of, true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn events() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("ts", DataType::Int64, false),
        Field::new("region", DataType::Utf8, true),
        Field::new("amount", DataType::Float64, true),
    ]))
}

#[test]
fn bad_lines_do_not_disturb_the_good_ones() {
    let lines = b"{\"ts\":1,\"region\":\"eu\",\"amount\":1.5}\r\n\
        {\"ts\":2,\"region\":\"us\",\"amount\":true}\n\
        \n  \t\r\n\
        {\"region\":\"us\",\"amount\":2}\n\
        {\"ts\":3,\"region\":\"ap\xff\",\"amount\":2}\r\n\
        {\"ts\":4,\"region\":\"af\n\
        {\"ts\":5,\"amount\":2}{}\n\
        {\"ts\":6,\"region\":\"la\"}";
    let decoded = decode(&events(), lines);
    assert_eq!(decoded.rows.num_rows(), 2);
    let found: Vec<_> = decoded
        .rejects
        .iter()
        .map(|r| (r.offset - 1000, r.raw.len(), r.error.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (37, 36, "field=amount: expected Float64, got a boolean"),
            (80, 26, "field=ts: a required field is missing"),
            (107, 34, "the line is not utf-8"),
            (143, 20, "field=region: the line ends within a string"),
            (164, 21, "something follows the object"),
        ]
    );
    assert_eq!(
        decoded.rejects[2].raw.as_ref(),
        b"{\"ts\":3,\"region\":\"ap\xff\",\"amount\":2}"
    );
}

#[test]
fn the_message_names_the_path_and_never_the_value() {
    let inner = DataType::Struct(vec![Field::new("b", DataType::Int8, false)].into());
    let list = DataType::List(Arc::new(Field::new("item", inner, true)));
    let decoded = decode(
        &schema(vec![("a", list)]),
        b"{\"a\":[{\"b\":1},{\"b\":\"secret\"}]}\n",
    );
    assert_eq!(
        decoded.rejects[0].error,
        "field=a.b: the value does not fit Int8"
    );
}

#[test]
fn what_was_learned_survives_the_batch_and_never_misleads() {
    let mut decoder = JsonDecoder::new(events()).expect("supported");
    let orders: [&[u8]; 6] = [
        b"{\"ts\":1,\"region\":\"eu\",\"amount\":1.5}",
        b"{\"amount\":1.5,\"ts\":1,\"region\":\"eu\"}",
        b"{ \"ts\" : 1 , \"x\" : [1,{}] , \"amount\" : 1.5 }",
        b"{\"ts\":1,\"ts\":2,\"region\":\"eu\"}",
        b"{\"ts\":1{\"ts\":2}",
        b"{\"ts\":1,{\"ts\":2}",
    ];
    for step in 1..6 {
        let lines: Vec<Vec<u8>> = (0..120)
            .map(|n| orders[n * step / 2 % 6].to_vec())
            .collect();
        check_batch(&events(), &lines, &mut decoder);
    }
}

#[test]
fn more_keys_than_are_learned() {
    let fields: Vec<Field> = (0..90)
        .map(|n| Field::new(format!("field_with_a_long_name_{n}"), DataType::Int64, true))
        .collect();
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let lines: Vec<Vec<u8>> = (0..300_usize)
        .map(|line| {
            let pairs: Vec<String> = (0..90)
                .map(|n| {
                    let key = (n * 7 + line * 13) % 97;
                    format!(
                        "{}\"field_with_a_long_name_{key}\":{n}",
                        " ".repeat(line % 11)
                    )
                })
                .collect();
            format!("{{{}}}", pairs.join(",")).into_bytes()
        })
        .collect();
    let mut decoder = JsonDecoder::new(schema.clone()).expect("supported");
    check_batch(&schema, &lines, &mut decoder);
}

// More orders than the tree of edges holds, with fields that are missing, come twice, do not fit: an
// end that was learned must never be taken for that of a complete object when it is not.
#[test]
fn every_order_of_fields_with_gaps_and_repeats() {
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("a", DataType::Int64, false),
        Field::new("b", DataType::Utf8, true),
        Field::new("c", DataType::Float64, true),
        Field::new("d", DataType::Boolean, true),
        Field::new("e", DataType::Utf8, true),
    ]));
    let values = ["1", "\"x\"", "2.5", "true", "\"\\n\""];
    let mut lines = Vec::new();
    for n in 0..3000_usize {
        let (mut left, mut rest) = ((0..5).collect::<Vec<_>>(), n * 7919);
        let mut pairs = Vec::new();
        while !left.is_empty() {
            let field = left.remove(rest % left.len());
            rest /= left.len() + 1;
            let key = ["a", "b", "c", "d", "e"][field];
            match (n * 31 + field * 17) % 23 {
                0 => {}
                1 => pairs.push(format!("\"{key}\":[]")),
                2 => pairs.push(format!("\"{key}\":{{}},\"{key}\":{}", values[field])),
                3 => pairs.push(format!("\"{key}\":{},\"{key}\":null", values[field])),
                4 => pairs.push(format!("\"unknown {}\":[{{}}]", n % 40)),
                _ => pairs.push(format!("\"{key}\":{}", values[field])),
            }
        }
        lines.push(format!("{{{}}}", pairs.join(",")).into_bytes());
    }
    let mut decoder = JsonDecoder::new(schema.clone()).expect("supported");
    for _ in 0..2 {
        check_batch(&schema, &lines, &mut decoder);
    }
}

#[test]
fn dictionaries_hold_each_string_once() {
    let of = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let with = schema(vec![("d", of)]);
    let mut decoder = JsonDecoder::new(with.clone()).expect("supported");
    for round in 0..2 {
        let mut text = String::new();
        for n in 0..5000 {
            match n % 7 {
                3 => text.push_str("{\"d\":null}\n"),
                5 => text.push_str("{\"d\":\"gone\",\"d\":\"\\u0061\"}\n"),
                _ => text.push_str(&format!(
                    "{{\"d\":\"a string that is long {}\"}}\n",
                    n % 1000
                )),
            }
        }
        let decoded = decoder.decode_lines(text.as_bytes(), 0).expect("rows");
        let array = decoded.rows.column(0);
        let dictionary = array
            .as_any()
            .downcast_ref::<arrow::array::Int32DictionaryArray>();
        assert_eq!(
            dictionary.expect("a dictionary").values().len(),
            1002,
            "round {round}"
        );
        let strings = cast(array, &DataType::Utf8).expect("strings");
        let plain = decode(&schema(vec![("d", DataType::Utf8)]), text.as_bytes());
        assert_eq!(&strings, plain.rows.column(0));
    }
    assert_strings_that_look_alike();
    let narrow = DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8));
    let error = JsonDecoder::new(schema(vec![("d", narrow)]))
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Config);
    let all_null = decode(&with, b"{\"d\":null}\n{}\n");
    assert_eq!(
        (
            all_null.rows.num_rows(),
            all_null.rows.column(0).logical_null_count()
        ),
        (2, 2)
    );
}

/// Strings whose text differs from what they are, of lengths around a block, in batches that follow
/// each other.
fn assert_strings_that_look_alike() {
    let of = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let (coded, plain) = (schema(vec![("d", of)]), schema(vec![("d", DataType::Utf8)]));
    let mut decoder = JsonDecoder::new(coded).expect("supported");
    let alike = [
        "\"a\"",
        r#""a\\""#,
        r#""a\"""#,
        r#""a\\\"""#,
        r#""\u0061""#,
        r#""a\u0000""#,
        r#""a\n{""#,
        r#""a\nb""#,
        r#""a\u000ab""#,
        r#""\\""#,
        r#""\"""#,
        "\"\"",
        "\"fifteen bytes..\"",
        "\"fifteen bytes.\\\"\"",
        "\"sixteen bytes...\"",
        "\"sixteen bytes...and more\"",
        "null",
    ];
    for round in 0..4 {
        let mut text = String::new();
        for n in 0..2000 {
            let value = alike[(n * 7 + n / 13 + round) % alike.len()];
            text.push_str(&format!("{{\"d\":{value}}}\n"));
            if n % 101 == 0 {
                text.push_str("{\"d\":\"a\n{\"d\":\"a\"} x\n  {\"d\":7}\n{\"d\":\"a\nb\"}\n");
            }
        }
        if round == 2 {
            // So many that the next batch starts over.
            (0..5000).for_each(|n| text.push_str(&format!("{{\"d\":\"{n}\"}}\n")));
        }
        let ours = decoder.decode_lines(text.as_bytes(), 1000).expect("rows");
        let theirs = decode(&plain, text.as_bytes());
        let strings = cast(ours.rows.column(0), &DataType::Utf8).expect("strings");
        assert_eq!(&strings, theirs.rows.column(0), "round {round}");
        let offsets = |rejects: &[calve_engine::Reject]| -> Vec<_> {
            rejects
                .iter()
                .map(|r| (r.offset, r.raw.clone(), r.error.clone()))
                .collect()
        };
        assert_eq!(
            offsets(&ours.rejects),
            offsets(&theirs.rejects),
            "round {round}"
        );
        assert_eq!(ours.rejects.len(), 100, "round {round}");
    }
}

#[test]
fn a_line_of_a_hundred_megabytes() {
    let mut line = b"{\"ts\":1,\"region\":\"".to_vec();
    line.resize(100 << 20, b'x');
    line.extend_from_slice(b"\",\"skipped\":[");
    line.extend_from_slice(&b"[],".repeat(1 << 20));
    let broken = line.len() as u64;
    line.extend_from_slice(b"1]}\n{\"ts\":2}\n");
    let decoded = decode(&events(), &line);
    assert_eq!((decoded.rows.num_rows(), decoded.rejects.len()), (2, 0));
    let decoded = decode(&events(), &line[..broken as usize]);
    assert_eq!((decoded.rows.num_rows(), decoded.rejects.len()), (0, 1));
    assert_eq!(decoded.rejects[0].raw.len() as u64, broken);
}

#[test]
fn schemas_without_fields_count_rows() {
    let decoded = decode(&Arc::new(Schema::empty()), b"{\"a\":1}\n{}\n[]\n");
    assert_eq!((decoded.rows.num_rows(), decoded.rejects.len()), (2, 1));
}

#[test]
fn unsupported_types_are_refused_at_once() {
    let union = DataType::Interval(arrow::datatypes::IntervalUnit::DayTime);
    let zone = DataType::Timestamp(TimeUnit::Second, Some("Nowhere/City".into()));
    for of in [union, zone] {
        let error = JsonDecoder::new(schema(vec![("a", of)]))
            .err()
            .expect("refused");
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}
