//! How connectors write values: by the schema that changes carry, and by settings.

use arrow::datatypes::Schema;

use super::*;
use crate::formats::{Evolve, columns::schema_to_json, debezium::infer};

/// A change with its schema: each column is its name, its Connect schema, its value.
fn change(columns: &[(&str, &str, &str)]) -> String {
    let fields: Vec<String> = columns
        .iter()
        .map(|(name, schema, _)| schema.replacen('{', &format!("{{\"field\":\"{name}\","), 1))
        .collect();
    let pairs: Vec<String> = columns
        .iter()
        .map(|(name, _, value)| format!("\"{name}\":{value}"))
        .collect();
    format!(
        r#"{{"schema":{{"type":"struct","fields":[{{"type":"struct","field":"after","fields":[{}]}},{{"type":"string","field":"op"}}]}},"payload":{{"after":{{{}}},"op":"c"}}}}"#,
        fields.join(","),
        pairs.join(",")
    )
}

/// Name, Connect schema, value in JSON; the type that the column gets, and the value as it is shown.
const BY_SCHEMA: [(&str, &str, &str, &str, &str); 31] = [
    ("i8", r#"{"type":"int8"}"#, "-5", "tinyint", "-5"),
    ("i16", r#"{"type":"int16"}"#, "300", "smallint", "300"),
    (
        "i32",
        r#"{"type":"int32","optional":false}"#,
        "70000",
        "int",
        "70000",
    ),
    (
        "i64",
        r#"{"type":"int64"}"#,
        "5000000000",
        "bigint",
        "5000000000",
    ),
    ("f32", r#"{"type":"float"}"#, "1.5", "float", "1.5"),
    ("f64", r#"{"type":"double"}"#, "0.1", "double", "0.1"),
    ("bool", r#"{"type":"boolean"}"#, "true", "boolean", "true"),
    ("text", r#"{"type":"string"}"#, r#""a""#, "varchar", "a"),
    (
        "bytes",
        r#"{"type":"bytes"}"#,
        r#""AP8=""#,
        "binary",
        "00ff",
    ),
    (
        "bits",
        r#"{"type":"bytes","name":"io.debezium.data.Bits","parameters":{"length":"9"}}"#,
        r#""AQE=""#,
        "binary",
        "0101",
    ),
    (
        "date",
        r#"{"type":"int32","name":"io.debezium.time.Date"}"#,
        "20000",
        "date",
        "2024-10-04",
    ),
    (
        "kdate",
        r#"{"type":"int32","name":"org.apache.kafka.connect.data.Date"}"#,
        "-1",
        "date",
        "1969-12-31",
    ),
    (
        "time",
        r#"{"type":"int32","name":"io.debezium.time.Time"}"#,
        "3600001",
        "time(ms)",
        "01:00:00.001",
    ),
    (
        "utime",
        r#"{"type":"int64","name":"io.debezium.time.MicroTime"}"#,
        "3600000001",
        "time",
        "01:00:00.000001",
    ),
    (
        "ntime",
        r#"{"type":"int64","name":"io.debezium.time.NanoTime"}"#,
        "1",
        "time(ns)",
        "00:00:00.000000001",
    ),
    (
        "ts",
        r#"{"type":"int64","name":"io.debezium.time.Timestamp"}"#,
        "1700000000123",
        "timestamp(ms)",
        "2023-11-14T22:13:20.123",
    ),
    (
        "uts",
        r#"{"type":"int64","name":"io.debezium.time.MicroTimestamp"}"#,
        "1700000000123456",
        "timestamp(us)",
        "2023-11-14T22:13:20.123456",
    ),
    (
        "nts",
        r#"{"type":"int64","name":"io.debezium.time.NanoTimestamp"}"#,
        "-1",
        "timestamp(ns)",
        "1969-12-31T23:59:59.999999999",
    ),
    (
        "kts",
        r#"{"type":"int64","name":"org.apache.kafka.connect.data.Timestamp"}"#,
        "0",
        "timestamp(ms)",
        "1970-01-01T00:00:00",
    ),
    (
        "zts",
        r#"{"type":"string","name":"io.debezium.time.ZonedTimestamp"}"#,
        r#""2024-01-02T03:04:05.123456+01:00""#,
        "timestamptz(us)",
        "2024-01-02T02:04:05.123456Z",
    ),
    (
        "ztime",
        r#"{"type":"string","name":"io.debezium.time.ZonedTime"}"#,
        r#""03:04:05Z""#,
        "varchar",
        "03:04:05Z",
    ),
    (
        "year",
        r#"{"type":"int32","name":"io.debezium.time.Year"}"#,
        "2024",
        "int",
        "2024",
    ),
    (
        "dec",
        r#"{"type":"bytes","name":"org.apache.kafka.connect.data.Decimal","parameters":{"scale":"2","connect.decimal.precision":"10"}}"#,
        r#""z8c=""#,
        "decimal(10, 2)",
        "-123.45",
    ),
    (
        "huge",
        r#"{"type":"bytes","name":"org.apache.kafka.connect.data.Decimal","parameters":{"scale":"3","connect.decimal.precision":"60"}}"#,
        r#""AAhyf2Npqvg8oVAmdHr4x/GWzj8K0g==""#,
        "varchar",
        "12345678901234567890123456789012345678901234567.890",
    ),
    (
        "vary",
        r#"{"type":"struct","name":"io.debezium.data.VariableScaleDecimal","fields":[{"type":"int32","field":"scale"},{"type":"bytes","field":"value"}]}"#,
        r#"{"scale":3,"value":"MDk="}"#,
        "varchar",
        "12.345",
    ),
    (
        "json",
        r#"{"type":"string","name":"io.debezium.data.Json"}"#,
        r#""{\"a\":1}""#,
        "varchar",
        r#"{"a":1}"#,
    ),
    (
        "uuid",
        r#"{"type":"string","name":"io.debezium.data.Uuid"}"#,
        r#""7f3c""#,
        "varchar",
        "7f3c",
    ),
    (
        "isodate",
        r#"{"type":"string","name":"io.debezium.time.IsoDate"}"#,
        r#""2024-10-04Z""#,
        "date",
        "2024-10-04",
    ),
    (
        "list",
        r#"{"type":"array","items":{"type":"bytes","name":"org.apache.kafka.connect.data.Decimal","parameters":{"scale":"1","connect.decimal.precision":"4"}}}"#,
        r#"["Dw==",null]"#,
        "list<decimal(4, 1)>",
        "[1.5, null]",
    ),
    (
        "map",
        r#"{"type":"map","keys":{"type":"string"},"values":{"type":"bytes"}}"#,
        r#"{"k":"/w=="}"#,
        "map<varchar, binary>",
        "{k: ff}",
    ),
    (
        "in",
        r#"{"type":"struct","fields":[{"type":"int64","name":"io.debezium.time.MicroTime","field":"t"},{"type":"string","field":"s"}]}"#,
        r#"{"t":1000000,"s":"x"}"#,
        "struct<t: time, s: varchar>",
        "{t: 00:00:01, s: x}",
    ),
];

#[test]
fn by_the_schema_of_the_change() {
    let columns: Vec<_> = BY_SCHEMA.iter().map(|(a, b, c, ..)| (*a, *b, *c)).collect();
    let text = change(&columns);
    let config = DebeziumConfig::default();
    let schema = infer(&config, &[raw(&text, 0)]).expect("infer");
    let mut decoder = DebeziumDecoder::new(&config, Arc::clone(&schema)).expect("decoder");
    let decoded = decoder.decode(&raw(&text, 0)).expect("rows");
    assert_eq!(errors(&decoded), [""; 0]);
    let named = Columns::of(&schema).expect("names").0;
    for ((name, .., of, shown), (column, named)) in BY_SCHEMA.iter().zip(&named) {
        assert_eq!((name, of), (&column.as_str(), &named.as_str()));
        assert_eq!(values(&decoded.rows, name), [*shown], "{name}");
    }
    // Nulls of every type.
    let nulls: Vec<_> = columns.iter().map(|(a, b, _)| (*a, *b, "null")).collect();
    let decoded = decoder.decode(&raw(&change(&nulls), 0)).expect("rows");
    assert_eq!(errors(&decoded), [""; 0]);
    for (name, ..) in BY_SCHEMA {
        assert_eq!(
            decoded.rows.column_by_name(name).expect(name).null_count(),
            1,
            "{name}"
        );
    }
}

#[test]
fn a_declared_type_is_reached_from_what_the_schema_says() {
    let millis = r#"{"type":"int64","name":"io.debezium.time.Timestamp"}"#;
    let decimal = r#"{"type":"bytes","name":"org.apache.kafka.connect.data.Decimal","parameters":{"scale":"4"}}"#;
    let vary = r#"{"type":"struct","name":"io.debezium.data.VariableScaleDecimal"}"#;
    let text = change(&[
        ("up", millis, "-1"),
        ("down", millis, "-1"),
        ("zone", millis, "1"),
        ("dec", decimal, r#""MDk=""#),
        ("float", decimal, r#""MDk=""#),
        ("vary", vary, r#"{"scale":3,"value":"MDk="}"#),
        ("digits", r#"{"type":"string"}"#, r#""1234""#),
        ("hex", r#"{"type":"string"}"#, r#""0aff""#),
    ]);
    let decoded = decode(
        "{columns: {up: timestamp(ns), down: timestamp(s), zone: timestamptz(us), dec: 'decimal(10, 2)', \
          float: double, vary: 'decimal(10, 2)', digits: 'decimal(10, 2)', hex: binary}, binary: hex}",
        &text,
    );
    assert_eq!(errors(&decoded), [""; 0]);
    for (name, shown) in [
        ("up", "1969-12-31T23:59:59.999"),
        ("down", "1969-12-31T23:59:59"),
        ("zone", "1970-01-01T00:00:00.001Z"),
        ("dec", "1.23"),
        ("float", "1.2345"),
        ("vary", "12.34"),
        ("digits", "1234.00"),
        ("hex", "0aff"),
    ] {
        assert_eq!(values(&decoded.rows, name), [shown], "{name}");
    }
}

#[test]
fn by_settings() {
    let one = |settings: &str, of: &str, value: &str| {
        let yaml = format!("{{columns: {{v: '{of}'}}, {settings}}}");
        let decoded = decode(&yaml, &format!(r#"{{"after":{{"v":{value}}},"op":"c"}}"#));
        match errors(&decoded).first() {
            Some(error) => format!("reject: {error}"),
            None => values(&decoded.rows, "v").remove(0),
        }
    };
    for (settings, of, value, expected) in [
        (
            "",
            "timestamp(ms)",
            "1700000000123",
            "2023-11-14T22:13:20.123",
        ),
        (
            "",
            "timestamp(6)",
            "1700000000123456",
            "2023-11-14T22:13:20.123456",
        ),
        (
            "time: connect",
            "timestamp",
            "1700000000123",
            "2023-11-14T22:13:20.123",
        ),
        ("time: connect", "time", "3600000", "01:00:00"),
        (
            "time: isostring",
            "timestamp",
            r#""2024-01-02T03:04:05.5Z""#,
            "2024-01-02T03:04:05.500",
        ),
        (
            "time: isostring",
            "time",
            r#""03:04:05.25Z""#,
            "03:04:05.250",
        ),
        ("time: isostring", "date", r#""2024-10-04""#, "2024-10-04"),
        (
            "time: connect",
            "timestamptz",
            r#""2024-01-02T03:04:05Z""#,
            "2024-01-02T03:04:05Z",
        ),
        ("", "date", "20000", "2024-10-04"),
        ("", "decimal(10, 2)", r#""MDk=""#, "123.45"),
        ("", "decimal(10, 2)", "123.45", "123.45"),
        (
            "",
            "decimal(10, 2)",
            r#"{"scale":1,"value":"MDk="}"#,
            "1234.50",
        ),
        (
            "",
            "decimal(10, 2)",
            r#""123.45""#,
            "reject: field=after.v: the value does not fit Decimal128(10, 2) (its decimals are read as base64: see `decimal` of the format)",
        ),
        ("decimal: string", "decimal(10, 2)", r#""1234""#, "1234.00"),
        ("decimal: double", "decimal(10, 2)", "1.5", "1.50"),
        ("", "decimal256(50, 2)", r#""MDk=""#, "123.45"),
        ("", "binary", r#""AP8=""#, "00ff"),
        ("binary: base64url", "binary", r#""-_8""#, "fbff"),
        ("binary: hex", "binary", r#""00ff""#, "00ff"),
        (
            "",
            "binary",
            r#""?""#,
            "reject: field=after.v: the value is not a string of base64",
        ),
        ("", "list<binary>", r#"["AA==",null]"#, "[00, null]"),
        (
            "",
            "struct<a: decimal(4, 1)>",
            r#"{"a":"Dw=="}"#,
            "{a: 1.5}",
        ),
        ("", "fixed_size_binary(2)", r#""AP8=""#, "00ff"),
    ] {
        assert_eq!(
            one(settings, of, value),
            expected,
            "{settings} {of} {value}"
        );
    }
}

#[test]
fn a_schema_that_changes_in_the_stream() {
    let int = r#"{"type":"int32"}"#;
    let (millis, micros) = (
        r#"{"type":"int64","name":"io.debezium.time.Timestamp"}"#,
        r#"{"type":"int64","name":"io.debezium.time.MicroTimestamp"}"#,
    );
    let text = [
        change(&[("id", int, "1"), ("at", millis, "1000")]),
        change(&[
            ("id", int, "2"),
            ("at", micros, "2000000"),
            ("new", int, "7"),
        ]),
        change(&[("at", millis, "3000"), ("id", int, "3")]),
        change(&[
            ("id", r#"{"type":"string"}"#, r#""x""#),
            ("at", millis, "4000"),
        ]),
        change(&[("id", int, "5")]),
    ];
    let first: Vec<_> = text[..1].iter().map(|text| raw(text, 0)).collect();
    let config = DebeziumConfig::default();
    let schema = infer(&config, &first).expect("infer");
    let names = schema_to_json(&Schema::new(schema.fields().clone()))
        .expect("json")
        .to_string();
    assert_eq!(
        names,
        r#"[["id","int"],["at","timestamp(ms)"],["_op","dictionary(varchar)"]]"#
    );
    let mut decoder = DebeziumDecoder::new(&config, schema).expect("decoder");
    for _ in 0..2 {
        let decoded = decoder.decode(&raw(&text.join("\n"), 0)).expect("rows");
        assert_eq!(values(&decoded.rows, "id"), ["1", "2", "3", "5"]);
        let at = ["01", "02", "03"].map(|s| format!("1970-01-01T00:00:{s}"));
        assert_eq!(values(&decoded.rows, "at")[..3], at);
        assert_eq!(
            errors(&decoded),
            ["field=after.id: the value does not fit Int32"]
        );
    }
    assert_eq!(decoder.dropped.iter().collect::<Vec<_>>(), ["new"]);
    // More schemas than are remembered.
    let many: Vec<String> = (0..200)
        .map(|n| change(&[("id", int, &n.to_string()), (&format!("c{n}"), int, "1")]))
        .collect();
    let decoded = decoder.decode(&raw(&many.join("\n"), 0)).expect("rows");
    let ids: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    assert_eq!(values(&decoded.rows, "id"), ids);
}

#[test]
fn a_wider_type_in_the_stream_makes_the_column_wider() {
    let decimal = |digits: u8| {
        format!(
            r#"{{"type":"bytes","name":"org.apache.kafka.connect.data.Decimal","parameters":{{"scale":"2","connect.decimal.precision":"{digits}"}}}}"#
        )
    };
    let inner = |kind: &str, more: &str| {
        format!(r#"{{"type":"struct","fields":[{{"field":"x","type":"{kind}"}}{more}]}}"#)
    };
    let of = |int: &str, float: &str, digits: u8, n: &str, inside: &str| {
        change(&[
            ("id", r#"{"type":"int32"}"#, "1"),
            ("n", &format!(r#"{{"type":"{int}"}}"#), n),
            ("f", &format!(r#"{{"type":"{float}"}}"#), "1.5"),
            ("d", &decimal(digits), r#""MDk=""#),
            ("s", &inner(int, inside), r#"{"x":1,"y":2}"#),
        ])
    };
    let narrow = of("int32", "float", 5, "7", "");
    let wide = of("int64", "double", 12, "5000000000", "");
    let more = of("int64", "float", 5, "7", r#",{"field":"y","type":"int16"}"#);
    let config = DebeziumConfig::default();
    let first = infer(&config, &[raw(&narrow, 0)]).expect("infer");
    let types = |schema: &Schema| schema_to_json(schema).expect("types").to_string();
    let had = r#"[["id","int"],["n","int"],["f","float"],["d","decimal(5, 2)"],["s","struct<x: int>"],["_op","dictionary(varchar)"]]"#;
    assert_eq!(types(&first), had);
    let wider = r#"[["id","int"],["n","bigint"],["f","double"],["d","decimal(12, 2)"],["s","struct<x: bigint>"],["_op","dictionary(varchar)"]]"#;
    let format = crate::formats::FormatConfig::Debezium(config.clone());
    let evolve = |words: &str| serde_yaml_ng::from_str::<Evolve>(words).expect(words);
    let decoder = |schema: &arrow::datatypes::SchemaRef, words: &str| {
        let decoder = format.decoder_with(Arc::clone(schema), Some(evolve(words)), None);
        decoder.expect("a decoder")
    };
    // The schema that a batch needs, whichever of its changes says so.
    let needs = |schema: &arrow::datatypes::SchemaRef, words: &str, text: &[&String]| {
        let (mut decoder, text) = (
            decoder(schema, words),
            text.iter().map(|line| line.as_str()),
        );
        let batch = raw(&text.collect::<Vec<_>>().join("\n"), 0);
        decoder.decode(&batch).expect("rows");
        decoder.evolved(&batch).expect("looked")
    };
    for text in [&[&wide][..], &[&narrow, &wide], &[&narrow, &wide, &narrow]] {
        for words in ["[add, widen]", "widen"] {
            let evolved = needs(&first, words, text).expect("a wider schema");
            assert_eq!(types(&evolved), wider, "{words}");
        }
        assert!(needs(&first, "add", text).is_none(), "nothing is added");
        assert!(needs(&first, "strict", text).is_none());
    }
    let evolved = needs(&first, "[add, widen]", &[&more]).expect("a field inside");
    assert!(types(&evolved).contains("struct<x: bigint, y: smallint>"));
    let evolved = needs(&first, "widen", &[&more]).expect("a wider field inside");
    assert!(types(&evolved).contains("struct<x: bigint>"));
    assert!(needs(&first, "[add, widen]", &[&narrow]).is_none());

    // With the wider schema both are read, and nothing is asked for again.
    let second = needs(&first, "[add, widen]", &[&wide]).expect("a wider schema");
    let mut decoder = decoder(&second, "[add, widen]");
    let batch = raw(&[narrow.as_str(), &wide].join("\n"), 0);
    let decoded = decoder.decode(&batch).expect("rows");
    assert_eq!(errors(&decoded), [""; 0]);
    assert_eq!(values(&decoded.rows, "n"), ["7", "5000000000"]);
    assert_eq!(values(&decoded.rows, "d"), ["123.45", "123.45"]);
    assert!(decoder.evolved(&batch).expect("looked").is_none());
    // So has the first schema, when both come at once.
    let both = infer(&config, &[batch]).expect("infer");
    assert_eq!(types(&both), wider);
}
