//! Names of types: what people write, what is printed, what is refused.

use super::*;

fn data_type(text: &str) -> DataType {
    parse("c", text)
        .unwrap_or_else(|e| panic!("{text}: {e:?}"))
        .data_type()
        .clone()
}

#[test]
fn names_of_arrow_and_of_sql() {
    let utc = || Some(UTC.into());
    let cases = [
        ("BIGINT", DataType::Int64),
        ("int8", DataType::Int8),
        ("Double  Precision", DataType::Float64),
        ("float", DataType::Float32),
        ("varchar(20)", DataType::Utf8),
        ("numeric(10,2)", DataType::Decimal128(10, 2)),
        ("decimal(50, 3)", DataType::Decimal256(50, 3)),
        ("decimal(5)", DataType::Decimal128(5, 0)),
        (
            "timestamp",
            DataType::Timestamp(TimeUnit::Microsecond, None),
        ),
        ("timestamp(s)", DataType::Timestamp(TimeUnit::Second, None)),
        (
            "timestamp(3)",
            DataType::Timestamp(TimeUnit::Millisecond, None),
        ),
        (
            "timestamp without time zone",
            DataType::Timestamp(TimeUnit::Microsecond, None),
        ),
        (
            "timestamptz",
            DataType::Timestamp(TimeUnit::Microsecond, utc()),
        ),
        (
            "timestamp(ns) with time zone",
            DataType::Timestamp(TimeUnit::Nanosecond, utc()),
        ),
        (
            "timestamptz(ms, +02:00)",
            DataType::Timestamp(TimeUnit::Millisecond, Some("+02:00".into())),
        ),
        (
            "dict",
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
        ),
        (
            "dictionary(string)",
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
        ),
        ("time", DataType::Time64(TimeUnit::Microsecond)),
        ("bytea", DataType::Binary),
    ];
    for (text, expected) in cases {
        assert_eq!(data_type(text), expected, "{text}");
    }
    let list = |item: Field| DataType::List(Arc::new(item.with_name("item")));
    assert_eq!(
        data_type("int[]"),
        list(Field::new("", DataType::Int32, true))
    );
    assert_eq!(
        data_type("list<int not null>"),
        list(Field::new("", DataType::Int32, false))
    );
    assert_eq!(
        data_type("int[][]"),
        list(Field::new("", data_type("int[]"), true))
    );
}

#[test]
fn not_null_and_null() {
    assert!(parse("c", "int").expect("int").is_nullable());
    assert!(parse("c", "int null").expect("int null").is_nullable());
    assert!(
        !parse("c", "list<int> NOT  NULL")
            .expect("list")
            .is_nullable()
    );
}

#[test]
fn what_is_printed_reads_back() {
    let texts = [
        "boolean",
        "tinyint",
        "uint64",
        "float16",
        "decimal(38, 10)",
        "decimal256(40, 0)",
        "decimal32(9, 2)",
        "time(s)",
        "time",
        "time(ns)",
        "timestamp(us)",
        "timestamptz(ns)",
        "timestamptz(us, Europe/Berlin)",
        "dictionary(varchar)",
        "dictionary(uint8, varchar)",
        "list<struct<a: int not null, \"b \"\"c\": varchar>>",
        "map<varchar, list<double>>",
        "map<int, double not null>",
        "fixed_size_binary(16)",
        "fixed_size_list<float, 3>",
        "large_list<large_string>",
        "date",
        "date64",
        "large_binary",
    ];
    for text in texts {
        for declared in [text.to_owned(), format!("{text} not null")] {
            let field = parse("c", &declared).unwrap_or_else(|e| panic!("{declared}: {e:?}"));
            assert_eq!(declaration(&field).as_deref(), Some(declared.as_str()));
        }
    }
    assert_eq!(name(&DataType::Null), None);
}

#[test]
fn mistakes_name_the_column_and_suggest() {
    let error = parse("price", "bigit").expect_err("a typo");
    assert_eq!(
        error.message(),
        "column price: unknown type `bigit` in type `bigit`"
    );
    assert_eq!(error.hint_text(), Some("did you mean `bigint`?"));
    for text in [
        "",
        "list<",
        "list",
        "list<int",
        "map<int>",
        "struct<>",
        "struct<a: int, a: int>",
        "decimal(0)",
        "decimal(5, 6)",
        "decimal(77, 1)",
        "int int",
        "int not",
        "timestamp(m)",
        "dictionary(varchar, int)",
        "struct<\"a: int>",
        "[]",
        "fixed_size_binary(-1)",
        "ünt",
        "timestamp with zone",
        "list<int>>",
    ] {
        let error = parse("c", text).expect_err(text);
        assert!(error.message().starts_with("column c: "), "{error}");
        assert!(
            error.hint_text().is_some() || !error.message().contains("unknown"),
            "{error:?}"
        );
    }
    let deep = "list<".repeat(100) + "int" + &">".repeat(100);
    assert!(parse("c", &deep).is_ok());
}
