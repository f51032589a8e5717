//! Lines that someone means harm with, or a broken producer writes: each alone, and among good ones.

use std::sync::Arc;

use arrow::{
    array::AsArray,
    datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef, TimeUnit},
};

use super::{check_batch, decode, is_json, reference, same, schema};
use crate::formats::json::JsonDecoder;

/// One nullable column of nearly every type, each named by a letter or two.
fn wide() -> SchemaRef {
    let item = |of| Arc::new(Field::new("item", of, true));
    let point = DataType::Struct(
        vec![
            Field::new("x", DataType::Int32, false),
            Field::new("y", DataType::Utf8, true),
        ]
        .into(),
    );
    let entries = DataType::Struct(
        vec![
            Field::new("key", DataType::Utf8, false),
            Field::new("value", DataType::Int64, true),
        ]
        .into(),
    );
    schema(vec![
        ("i", DataType::Int64),
        ("s", DataType::Utf8),
        ("f", DataType::Float64),
        ("b", DataType::Boolean),
        ("i8", DataType::Int8),
        ("u64", DataType::UInt64),
        ("u32", DataType::UInt32),
        ("f32", DataType::Float32),
        ("f16", DataType::Float16),
        ("ls", DataType::LargeUtf8),
        ("vs", DataType::Utf8View),
        ("x", DataType::Binary),
        ("xv", DataType::BinaryView),
        ("d", DataType::Date32),
        ("d64", DataType::Date64),
        ("t", DataType::Time64(TimeUnit::Microsecond)),
        ("ts", DataType::Timestamp(TimeUnit::Microsecond, None)),
        ("tn", DataType::Timestamp(TimeUnit::Nanosecond, None)),
        (
            "tz",
            DataType::Timestamp(TimeUnit::Millisecond, Some("+02:00".into())),
        ),
        ("du", DataType::Duration(TimeUnit::Second)),
        ("m", DataType::Decimal128(10, 2)),
        ("m256", DataType::Decimal256(50, 5)),
        ("p", point.clone()),
        ("l", DataType::List(item(DataType::Int64))),
        ("lp", DataType::LargeList(item(point))),
        ("l2", DataType::FixedSizeList(item(DataType::Utf8), 2)),
        (
            "map",
            DataType::Map(Arc::new(Field::new("entries", entries, false)), false),
        ),
        ("n", DataType::Null),
    ])
}

/// Values that are put into every column.
const VALUES: &[&str] = &[
    "null",
    "true",
    "false",
    "nul",
    "True",
    "NaN",
    "Infinity",
    "-Infinity",
    "0",
    "-0",
    "1",
    "-1",
    "127",
    "128",
    "-129",
    "255",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551615",
    "0.0",
    "-0.0",
    "1.0",
    "1.5",
    "-1.5",
    "1e3",
    "1E+2",
    "1e-2",
    "123456789012345678",
    "1234567890123456789",
    "12345678901234567890123",
    "0.1234567890123456789",
    "9007199254740993",
    "9007199254740993.0",
    "3.4028235677973366e38",
    "16777217",
    "0.30000000000000004",
    "2.2250738585072011e-308",
    "4.9e-324",
    "1e-400",
    "0.000001",
    "7.2057594037927933e16",
    "1e",
    "1e+",
    "--1",
    "1-2",
    "+1",
    ".5",
    "0x10",
    "99999999.99",
    "123.456",
    "\"\"",
    "\"1\"",
    "\"-1\"",
    "\" 1\"",
    "\"1.5\"",
    "\"NaN\"",
    "\"inf\"",
    "\"1e3\"",
    "\"abc\"",
    "\"00ff\"",
    "\"abcdef\"",
    "\"ABC\"",
    "\"xyz\"",
    "\"true\"",
    "\"2024-02-29\"",
    "\"2023-02-29\"",
    "\"2024-02-29T12:34:56Z\"",
    "\"2024-02-29T12:34:56.123456789+01:00\"",
    "\"2024-02-29 12:34:56\"",
    "\"1600-01-01T00:00:00Z\"",
    "\"12:34:56\"",
    "\"12:34:56.789\"",
    "\"25:00:00\"",
    "\"a\\n\\t\\\"\\\\\\/b\"",
    "\"\\u0041\\u00e9\\u20ac\"",
    "\"\\ud83d\\ude00\"",
    "\"\\ud83d\"",
    "\"\\ude00\"",
    "\"\\ud83dx\"",
    "\"\\ud83d\\n\"",
    "\"\\ud83d\\u0041\"",
    "\"\\ude00\\ud83d\"",
    "\"\\u12\"",
    "\"\\u00G0\"",
    "\"\\x\"",
    "\"\u{7f}é€😀\"",
    "\"exactly sixteen!\"",
    "\"a string that is longer than one block of bytes\"",
    "\"escapes at the end of a bl\\u00f6ck and \\\\ further\"",
    "\"tab\tand \u{1} control\"",
    "\"",
    "\"\\",
    "[]",
    "[1]",
    "[1,2]",
    "[1,null]",
    "[\"a\",\"b\"]",
    "[\"a\",null]",
    "[ 1 , 2 ]",
    "[[1]]",
    "[1",
    "[1}",
    "{}",
    "{\"x\":1}",
    "{\"x\":null}",
    "{\"x\":1,\"y\":\"z\",\"q\":[{}]}",
    "{\"y\":\"z\"}",
    "{\"x\":1,\"x\":2}",
    "{\"x\":\"bad\",\"x\":2}",
    "{\"x\":2,\"x\":\"bad\"}",
    "{\"x\":1",
    "{\"x\"}",
    "{\"x\":}",
    "{x:1}",
    "{\"x\":1]",
    "{\"k\":1,\"k\":2}",
    "{\"k\":null,\"\\u006b\":3}",
    "[{\"x\":1},null,{\"x\":2,\"y\":\"\"}]",
    "[{\"x\":1},{\"y\":\"\"}]",
    "[null,null]",
    "",
    " ",
    "x",
    "\u{feff}1",
];

/// Whole lines, around fields `i`, `s` and `p`.
const LINES: &[&str] = &[
    "{}",
    " { } ",
    "{\"i\":1}",
    "{\"i\":1} ",
    "\t{\"i\" : 1 }\r",
    "{\"i\":1",
    "{\"i\":",
    "{\"i\"",
    "{\"i",
    "{",
    "}",
    "null",
    "1",
    "\"i\"",
    "[]",
    "[{\"i\":1}]",
    "true",
    "{\"i\":1}}",
    "{\"i\":1}x",
    "{\"i\":1},",
    "nope",
    "{\"i\":1,\"i\":null}",
    "{\"i\":null,\"i\":1}",
    "{\"i\":\"x\",\"i\":1}",
    "{\"i\":1,\"i\":\"x\"}",
    "{\"i\":[1,\"i\":1}",
    "{\"unknown\":[1,{\"a\":[]},\"\\u0000\"],\"i\":1}",
    "{\"unknown\":[1,],\"i\":[]}",
    "{\"\":1}",
    "{\"\\u0069\":5}",
    "{\"\\ud83d\":5}",
    "{\"i\\\":1}",
    "{'i':1}",
    "{\"i\":1 \"s\":[]}",
    "{\"p\":{\"x\":1,\"deep\":{\"x\":[1,2,{\"x\":3}]}},\"i\":2}",
    "{\"i\":1,\"s\":\"a}\",\"p\":{\"x\":1,\"y\":\"{\"}}",
    "{\"i\":1,\"\":{},\"s\":\"\"}",
    "\u{feff}{\"i\":1}",
    "{\"s\":\"\\",
    "{\"s\":\"\\u",
    "{\"s\":\"\\ud83d\\u",
    "{\"i\" 1}",
    "{\"i\"::1}",
    "{\"i\":\u{a0}1}",
    "{\"I\":1}",
    "{\"i \":1}",
];

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
            reference(&schema, line.as_bytes()).is_some(),
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
