//! Lines that someone means harm with, or a broken producer writes: each alone, and among good ones.

use std::sync::Arc;

use arrow::{
    array::AsArray,
    datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef, TimeUnit},
};

use calve_engine::Decoder;

use super::{
    check_batch, decode,
    reference::{arrow_json, is_json, reference},
    same, schema,
    values::{LINES, VALUES, wide},
};
use crate::{formats::json::JsonDecoder, sources::testing::raw};

#[test]
fn every_value_in_every_column_as_arrow_json() {
    let schema = wide();
    let mut all = Vec::new();
    for field in schema.fields() {
        for value in VALUES {
            all.push(format!("{{\"{}\":{value}}}", field.name()).into_bytes());
            all.push(
                format!(
                    "{{\"s\":\"before\", \"{}\": {value} ,\"i\":7}}",
                    field.name()
                )
                .into_bytes(),
            );
        }
    }
    all.extend(LINES.iter().map(|line| line.as_bytes().to_vec()));
    all.retain(|line| !rounds(line));
    let on_purpose = |line: &[u8]| !is_json(line) || saturates(line);
    let refused = all.iter().filter(|line| on_purpose(line));
    for line in refused.filter(|line| !line.trim_ascii().is_empty() && !line.contains(&b'\t')) {
        let text = String::from_utf8_lossy(line);
        assert_eq!(decode(&schema, line).rejects.len(), 1, "{text}");
    }
    all.retain(|line| !on_purpose(line));
    for line in &all {
        let ours = decode(&schema, line);
        let text = String::from_utf8_lossy(line);
        match reference(&schema, line) {
            Some(row) => {
                assert!(ours.rejects.is_empty(), "{text}: {:?}", ours.rejects);
                assert!(same(&ours.rows, &row), "{text}: {:?} {row:?}", ours.rows);
            }
            None => assert!(
                ours.rejects.len() == 1,
                "{text}: arrow-json fails, and we do not"
            ),
        }
    }
    let mut decoder = JsonDecoder::new(schema.clone()).expect("supported");
    for stride in [1, 7, 101] {
        let mixed: Vec<Vec<u8>> = (0..all.len())
            .map(|n| all[n * stride % all.len()].clone())
            .collect();
        check_batch(&schema, &mixed, &mut decoder);
    }
}

/// Integers that arrow-json saturates in a column of timestamps.
fn saturates(line: &[u8]) -> bool {
    let text = String::from_utf8_lossy(line);
    let large = [
        "9223372036854775808",
        "18446744073709551615",
        "12345678901234567890123",
        "e38",
    ];
    ["ts", "tn", "tz"]
        .iter()
        .any(|name| text.contains(&format!("\"{name}\":")))
        && large
            .iter()
            .any(|number| text.contains(number) && !text.contains(&format!("-{number}")))
}

/// Integers beyond 2^53, written as floats, that arrow-json rounds in columns of integers.
fn rounds(line: &[u8]) -> bool {
    let text = String::from_utf8_lossy(line);
    let floats = ["f", "f32", "f16", "m", "m256"];
    ["9007199254740993.0", "7.2057594037927933e16"]
        .iter()
        .any(|number| text.contains(number))
        && !floats
            .iter()
            .any(|name| text.contains(&format!("\"{name}\":")))
}

#[test]
fn integers_are_whole_and_exact() {
    let schema = schema(vec![
        ("i", DataType::Int64),
        ("u8", DataType::UInt8),
        ("d", DataType::Date32),
        ("ts", DataType::Timestamp(TimeUnit::Second, None)),
    ]);
    for field in schema.fields() {
        for fits in ["1.0", "1e2", "100e-2", "0.0", "-0.0", "0e-7", "10.50e1"] {
            let line = format!("{{\"{}\":{fits}}}", field.name());
            let ours = decode(&schema, line.as_bytes());
            let theirs = arrow_json(&schema, line.as_bytes()).expect("fits there too");
            assert!(same(&ours.rows, &theirs), "{line}: {:?}", ours.rows);
        }
        for cut in [
            "1.5",
            "-1.5",
            "1e-2",
            "0.1",
            "125e-1",
            "1e-400",
            "1.00000000000000000001",
        ] {
            let line = format!("{{\"{}\":{cut}}}", field.name());
            let ours = decode(&schema, line.as_bytes());
            assert_eq!(ours.rejects.len(), 1, "{line}");
        }
    }
    // Both paths: of two equal lines the second goes along what the first has taught.
    let lines = "{\"i\":7,\"u8\":1}\n{\"i\":1.5,\"u8\":1}\n{\"i\":7,\"u8\":2.5}\n\
        {\"i\":2.0,\"u8\":1e2}\n{\"i\":9007199254740993.0}\n{\"i\":7.2057594037927933e16}\n\
        {\"i\":-9223372036854775808.0}\n{\"i\":9223372036854775808.0}\n";
    let decoded = decode(&schema, lines.repeat(2).as_bytes());
    let values: Vec<i64> =
        decoded.rows.column(0).as_primitive::<Int64Type>().values()[..5].to_vec();
    let exact = [
        7,
        2,
        9_007_199_254_740_993,
        72_057_594_037_927_933,
        i64::MIN,
    ];
    assert_eq!(values, exact);
    let errors: Vec<_> = decoded.rejects.iter().map(|r| r.error.as_str()).collect();
    let once = [
        "field=i: the value does not fit Int64",
        "field=u8: the value does not fit UInt8",
        "field=i: the value does not fit Int64",
    ];
    assert_eq!(errors, [once, once].concat());
}

#[test]
fn a_byte_order_mark_is_skipped_where_the_text_begins_and_nowhere_else() {
    let schema = schema(vec![("i", DataType::Int64)]);
    let text = "\u{feff}{\"i\":1}\n\u{feff}{\"i\":2}\n{\"i\":3}\n";
    let mut decoder = JsonDecoder::new(schema).expect("supported");
    for (offset, rejected) in [(0, vec![11]), (7, vec![7, 18])] {
        let decoded = decoder.decode_lines(text.as_bytes(), offset).expect("rows");
        let offsets: Vec<u64> = decoded.rejects.iter().map(|r| r.offset).collect();
        assert_eq!(offsets, rejected);
        let found = decoder.locate(&raw(text, offset), &decoded, 0);
        let first = if offset == 0 {
            (3, "{\"i\":1}")
        } else {
            (29, "{\"i\":3}")
        };
        assert_eq!(
            (found.offset, found.raw.as_ref()),
            (first.0, first.1.as_bytes())
        );
    }
}

#[test]
fn stricter_than_arrow_json_on_purpose() {
    let schema = schema(vec![
        ("i", DataType::Int64),
        ("ts", DataType::Timestamp(TimeUnit::Second, None)),
    ]);
    for line in [
        "{,\"i\":1}",
        "{\"i\":1,}",
        "{\"i\":1,,\"ts\":1}",
        "{\"i\":1\"ts\":1}",
        "{\"i\":007}",
        "{\"i\":1.}",
        "{\"i\":1}{\"i\":2}",
        "{\"x\":1-2}",
        "{\"x\":[1 2]}",
        "{\"x\":[,]}",
        "{\"ts\":1e300}",
        "{\"ts\":9223372036854775808}",
    ] {
        assert!(
            arrow_json(&schema, line.as_bytes()).is_some(),
            "{line}: not different any more"
        );
        assert_eq!(decode(&schema, line.as_bytes()).rejects.len(), 1, "{line}");
    }
}

#[test]
fn deep_nesting_is_a_reject_and_no_overflow() {
    let wide = wide();
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
        for field in ["unknown", "i", "p", "l", "map", "s"] {
            for depth in [10_000, 1_000_000] {
                let value = format!("{}1{}", open.repeat(depth), close.repeat(depth));
                let line = format!("{{\"i\":1,\"{field}\":{value}}}");
                let lines = format!(
                    "{{\"i\":1}}\n{line}\n{}\n{{\"i\":2}}",
                    &line[..line.len() / 2]
                );
                let decoded = decode(&wide, lines.as_bytes());
                assert_eq!((decoded.rows.num_rows(), decoded.rejects.len()), (2, 2));
            }
        }
    }
    let line = format!(
        "{{\"unknown\":{}{},\"i\":1}}",
        "[".repeat(512),
        "]".repeat(512)
    );
    assert_eq!(decode(&wide, line.as_bytes()).rows.num_rows(), 1);
}

#[test]
fn surrogates_of_the_higher_planes_are_right() {
    let schema = schema(vec![("s", DataType::Utf8)]);
    let decoded = decode(&schema, b"{\"s\":\"\\ud840\\udc00\\udbff\\udfff\"}");
    assert_eq!(
        decoded.rows.column(0).as_string::<i32>().value(0),
        "\u{20000}\u{10ffff}"
    );
}

#[test]
fn floats_are_the_nearest_to_what_was_written() {
    let schema = schema(vec![("f", DataType::Float64)]);
    let mut text = String::new();
    let mut expected = Vec::new();
    let mut seed = 1_u64;
    for n in 0..20_000_u32 {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let digits = seed >> (n % 60);
        let written = match n % 3 {
            0 => format!(
                "{}.{:0width$}",
                digits % 1_000_000,
                seed % 100_000,
                width = 1 + n as usize % 14
            ),
            1 => format!("{}", f64::from_bits(seed >> 2)),
            _ => format!("-{digits}"),
        };
        expected.push(written.parse::<f64>().expect("a float"));
        text.push_str(&format!("{{\"f\":{written}}}\n"));
    }
    let decoded = decode(&schema, text.as_bytes());
    let values = decoded
        .rows
        .column(0)
        .as_primitive::<Float64Type>()
        .values();
    assert!(
        values
            .iter()
            .zip(&expected)
            .all(|(a, b)| a.to_bits() == b.to_bits())
    );
    assert_eq!(values.len(), expected.len());
}

#[test]
fn lines_cut_anywhere() {
    let schema = wide();
    let line = "{\"i\":12,\"s\":\"a\\u00e9é\",\"f\":1.5e3,\"b\":true,\"p\":{\"x\":1},\"l\":[1,2],\"map\":{\"k\":1},\"q\":[{}]}";
    let mut decoder = JsonDecoder::new(schema.clone()).expect("supported");
    let mut lines = vec![line.as_bytes().to_vec()];
    for n in 1..line.len() {
        lines.push(line.as_bytes()[..n].to_vec());
        lines.push(line.as_bytes()[n..].to_vec());
        if n % 9 == 0 {
            lines.push(line.as_bytes().to_vec());
        }
    }
    check_batch(&schema, &lines, &mut decoder);
    for n in 0..line.len() {
        let mut text = line.as_bytes().to_vec();
        text.push(b'\n');
        text.extend_from_slice(&line.as_bytes()[..n]);
        let decoded = decode(&schema, &text);
        assert_eq!(
            (decoded.rows.num_rows(), decoded.rejects.len()),
            (1, usize::from(n > 0))
        );
        assert_eq!(
            decoded.rows.column(0).as_primitive::<Int64Type>().value(0),
            12
        );
    }
}

#[test]
fn required_fields_refuse_null_at_every_level() {
    let inner = DataType::Struct(vec![Field::new("x", DataType::Int64, false)].into());
    let entries = |of| {
        let fields = vec![
            Field::new("key", DataType::Utf8, false),
            Field::new("value", of, false),
        ];
        DataType::Map(
            Arc::new(Field::new(
                "entries",
                DataType::Struct(fields.into()),
                false,
            )),
            false,
        )
    };
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("r", DataType::Utf8, false),
        Field::new("p", inner.clone(), true),
        Field::new(
            "l",
            DataType::List(Arc::new(Field::new("item", inner, false))),
            true,
        ),
        Field::new("m", entries(DataType::Int64), true),
    ]));
    let lines: Vec<Vec<u8>> = [
        "{\"r\":\"a\"}",
        "{\"r\":null}",
        "{}",
        "{\"r\":\"a\",\"p\":null}",
        "{\"r\":\"a\",\"p\":{}}",
        "{\"r\":\"a\",\"p\":{\"x\":null}}",
        "{\"r\":\"a\",\"p\":{\"x\":1}}",
        "{\"r\":\"a\",\"l\":[null]}",
        "{\"r\":\"a\",\"l\":[{\"x\":1},{\"x\":2}]}",
        "{\"r\":\"a\",\"l\":[{\"x\":1},{}]}",
        "{\"r\":\"a\",\"m\":{\"k\":1}}",
    ]
    .iter()
    .map(|line| line.as_bytes().to_vec())
    .collect();
    check_batch(
        &schema,
        &lines,
        &mut JsonDecoder::new(schema.clone()).expect("supported"),
    );
    let decoded = decode(&schema, b"{\"r\":\"a\",\"m\":{\"k\":null}}");
    assert_eq!(
        decoded.rejects[0].error,
        "field=m: null in a required field"
    );
}

// Alone, because arrow-json panics for values of other types.
#[test]
fn bytes_of_a_fixed_size() {
    let schema = schema(vec![("x", DataType::FixedSizeBinary(3))]);
    let lines = [
        "\"abcdef\"",
        "\"ABCDE\"",
        "\"\"",
        "\"abcd\"",
        "\"abcdefg\"",
        "null",
        "\"\\u0061bcdef\"",
    ];
    let lines: Vec<Vec<u8>> = lines
        .iter()
        .map(|v| format!("{{\"x\":{v}}}").into_bytes())
        .collect();
    check_batch(
        &schema,
        &lines,
        &mut JsonDecoder::new(schema.clone()).expect("supported"),
    );
    assert_eq!(decode(&schema, b"{\"x\":1}\n{\"x\":[]}").rejects.len(), 2);
}
