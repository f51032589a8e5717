//! Transforms against the crate's own, one value at a time; folders against hostile values.

use std::{path::Component, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, BinaryArray, Date32Array, Decimal128Array, DictionaryArray, Int32Array,
        Int64Array, LargeStringArray, RecordBatch, StringArray, StringViewArray,
        TimestampMicrosecondArray, TimestampNanosecondArray,
    },
    datatypes::{Field, Int32Type, Schema},
};
use iceberg::{
    TableCreation,
    spec::{
        Datum, FormatVersion, NestedField, PrimitiveLiteral, PrimitiveType, TableMetadataBuilder,
        Transform, Type, UnboundPartitionSpec,
    },
    transform::create_transform_function,
};
use proptest::prelude::*;

use super::Lake;
use crate::{
    iceberg::{config::Term, create, place::IcebergPlacement},
    write::{KeyValue, Placement, TablePartition},
};

/// A table with one column, in version 3 of nanoseconds, partitioned by the term.
fn placement(term: &str, column: &ArrayRef, version: u8) -> (IcebergPlacement, RecordBatch, Type) {
    let schema = Arc::new(Schema::new(vec![Field::new(
        "c",
        column.data_type().clone(),
        true,
    )]));
    let metadata = if version == 3 {
        let nanos = Type::Primitive(PrimitiveType::TimestampNs);
        let columns = [NestedField::optional(1, "c", nanos).into()];
        let term = Term::parse(term).expect("a term");
        let spec = UnboundPartitionSpec::builder()
            .add_partition_field(1, term.field_name(), term.transform)
            .expect("a field");
        let creation = TableCreation::builder()
            .name("t".to_owned())
            .location("file:///t".to_owned())
            .schema(
                iceberg::spec::Schema::builder()
                    .with_fields(columns)
                    .build()
                    .expect("fields"),
            )
            .partition_spec(spec.build())
            .format_version(FormatVersion::V3)
            .build();
        let built = TableMetadataBuilder::from_table_creation(creation)
            .and_then(TableMetadataBuilder::build);
        Arc::new(built.expect("a table").metadata)
    } else {
        let lake = Lake::new(&[term]);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let metadata = runtime.expect("a runtime").block_on(async {
            let catalog = lake.catalog().await;
            create::create_or_check(&catalog, &lake.config, &lake.table(), &schema).await
        });
        metadata.expect("a table").0
    };
    let of = metadata.current_schema().as_struct().fields()[0]
        .field_type
        .as_ref()
        .clone();
    let rows = RecordBatch::try_new(schema.clone(), vec![column.clone()]).expect("a batch");
    (
        IcebergPlacement::new(&metadata, &schema).expect("a placement"),
        rows,
        of,
    )
}

/// The key of each row must be what the crate says of that value alone.
fn agrees(
    transform: Transform,
    term: &str,
    column: ArrayRef,
    version: u8,
    datum: impl Fn(usize, &PrimitiveType) -> Datum,
) {
    let (placement, rows, of) = placement(term, &column, version);
    let primitive = of.as_primitive_type().expect("a primitive").clone();
    let placed = placement.place(rows).expect("rows are placed");
    let function = create_transform_function(&transform).expect("a transform");
    for row in 0..column.len() {
        let key = KeyValue::of(placed.keys[0].as_ref(), row).expect("a key");
        if column.is_null(row) {
            assert_eq!(key, KeyValue::Null, "{term} row {row}");
            continue;
        }
        let datum = datum(row, &primitive);
        let expected = function
            .transform_literal(&datum)
            .expect("a value")
            .expect("a value");
        // The crate takes the last second of a day before 1970 for the day after; the format, and
        // PyIceberg, round down.
        let day = match (transform, datum.data_type(), datum.literal()) {
            (
                Transform::Day,
                PrimitiveType::Timestamp | PrimitiveType::Timestamptz,
                PrimitiveLiteral::Long(v),
            ) => Some(v.div_euclid(86_400_000_000)),
            (Transform::Day, PrimitiveType::TimestampNs, PrimitiveLiteral::Long(v)) => {
                Some(v.div_euclid(86_400_000_000_000))
            }
            _ => None,
        };
        let expected = match expected.literal() {
            PrimitiveLiteral::Int(_) if day.is_some() => KeyValue::Int(day.expect("matched")),
            PrimitiveLiteral::Int(v) => KeyValue::Int(i64::from(*v)),
            PrimitiveLiteral::Long(v) => KeyValue::Int(*v),
            PrimitiveLiteral::Int128(v) => KeyValue::Decimal(*v),
            PrimitiveLiteral::String(v) => KeyValue::Text(v.as_str().into()),
            PrimitiveLiteral::Binary(v) => KeyValue::Bytes(v.as_slice().into()),
            other => panic!("{other:?}"),
        };
        assert_eq!(key, expected, "{term} row {row}");
        let path = placement.path(&TablePartition(Box::new([key])), "main-1");
        assert!(
            path.starts_with("data/c") && path.ends_with("/main-1.parquet"),
            "{path}"
        );
    }
}

const MICROS: [i64; 12] = [
    0,
    1,
    -1,
    3_599_999_999,
    3_600_000_000,
    -3_600_000_000,
    -3_600_000_001,
    -86_400_000_000,
    -86_400_000_002,
    1_700_000_000_123_456,
    -62_135_596_800_000_000,
    253_402_300_799_999_999,
];

#[test]
fn times_are_transformed_as_the_crate_does() {
    let with_null = |values: &[i64]| -> Vec<Option<i64>> {
        values.iter().copied().map(Some).chain([None]).collect()
    };
    let micros = MICROS;
    // Nanoseconds of a 64-bit integer reach from 1677 to 2262.
    let nanos: Vec<i64> = MICROS[..10].iter().map(|m| m * 1000 - 1).collect();
    for (term, transform) in [
        ("year(c)", Transform::Year),
        ("month(c)", Transform::Month),
        ("day(c)", Transform::Day),
        ("hour(c)", Transform::Hour),
    ] {
        let column: ArrayRef = Arc::new(TimestampMicrosecondArray::from(with_null(&micros)));
        agrees(transform, term, column, 2, |row, _| {
            Datum::timestamp_micros(micros[row])
        });
        let zoned = TimestampMicrosecondArray::from(with_null(&micros)).with_timezone("UTC");
        agrees(transform, term, Arc::new(zoned), 2, |row, _| {
            Datum::timestamptz_micros(micros[row])
        });
        let column: ArrayRef = Arc::new(TimestampNanosecondArray::from(with_null(&nanos)));
        agrees(transform, term, column.clone(), 3, |row, _| {
            Datum::timestamp_nanos(nanos[row])
        });
        agrees(transform, term, column, 2, |row, _| {
            Datum::timestamp_micros(nanos[row].div_euclid(1000))
        });
        if transform != Transform::Hour {
            let days = [0, 1, -1, 19_000, -19_000, -719_162];
            let column = Date32Array::from(
                days.iter()
                    .copied()
                    .map(Some)
                    .chain([None])
                    .collect::<Vec<_>>(),
            );
            agrees(transform, term, Arc::new(column), 2, |row, _| {
                Datum::date(days[row])
            });
        }
    }
}

#[test]
fn values_are_cut_and_hashed_as_the_crate_does() {
    let texts = ["", "a", "ünïcödé", "日本語テキスト", "eu/../west", "\0"];
    let with_null = || texts.iter().copied().map(Some).chain([None]);
    let dictionary: DictionaryArray<Int32Type> = with_null().collect();
    let columns: [ArrayRef; 4] = [
        Arc::new(with_null().collect::<StringArray>()),
        Arc::new(with_null().collect::<LargeStringArray>()),
        Arc::new(with_null().collect::<StringViewArray>()),
        Arc::new(dictionary),
    ];
    for column in columns {
        for (term, transform) in [
            ("c", Transform::Identity),
            ("truncate(3, c)", Transform::Truncate(3)),
            ("bucket(16, c)", Transform::Bucket(16)),
        ] {
            agrees(transform, term, column.clone(), 2, |row, _| {
                Datum::string(texts[row])
            });
        }
    }
    let longs = [0, 1, -1, 34, -34, i64::from(i32::MAX), i64::MIN / 2];
    for (term, transform) in [
        ("c", Transform::Identity),
        ("truncate(10, c)", Transform::Truncate(10)),
        ("bucket(7, c)", Transform::Bucket(7)),
    ] {
        let column = Int64Array::from(
            longs
                .iter()
                .copied()
                .map(Some)
                .chain([None])
                .collect::<Vec<_>>(),
        );
        agrees(transform, term, Arc::new(column), 2, |row, _| {
            Datum::long(longs[row])
        });
        let ints = [0, 5, -5];
        let column = Int32Array::from(ints.to_vec());
        agrees(transform, term, Arc::new(column), 2, |row, _| {
            Datum::int(ints[row])
        });
    }
    let bytes: [&[u8]; 3] = [b"", b"\xff\x00\x01\x02", b"abc"];
    let column: ArrayRef = Arc::new(BinaryArray::from(bytes.to_vec()));
    agrees(Transform::Bucket(5), "bucket(5, c)", column, 2, |row, _| {
        Datum::binary(bytes[row].to_vec())
    });
    let decimals = [0i128, 1, -1, 12_345, -12_345];
    let column = Decimal128Array::from(decimals.to_vec())
        .with_precision_and_scale(9, 2)
        .expect("fits");
    agrees(
        Transform::Bucket(5),
        "bucket(5, c)",
        Arc::new(column),
        2,
        |row, of| {
            Datum::try_from_bytes(&decimals[row].to_be_bytes(), of.clone()).expect("a decimal")
        },
    );
}

#[test]
fn a_time_out_of_range_is_an_error_not_another_partition() {
    for (term, version) in [("hour(c)", 2), ("year(c)", 2), ("month(c)", 2)] {
        let column: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0, i64::MAX]));
        let (placement, rows, _) = placement(term, &column, version);
        let error = placement.place(rows).expect_err("out of range");
        assert_eq!(error.kind(), calve_engine::error::ErrorKind::Data, "{term}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_value_leaves_its_folder(values in proptest::collection::vec("\\PC{0,300}|[./\\\\%]{1,9}", 1..20)) {
        let column: ArrayRef = Arc::new(StringArray::from(values));
        let (placement, rows, _) = placement("c", &column, 2);
        let placed = placement.place(rows).expect("rows are placed");
        for row in 0..column.len() {
            let key = TablePartition::of(&placed.keys, row).expect("a key");
            let path = placement.path(&key, "main-1");
            let parts: Vec<Component> = std::path::Path::new(&path).components().collect();
            prop_assert_eq!(parts.len(), 3);
            prop_assert!(parts.iter().all(|p| matches!(p, Component::Normal(n) if n.len() < 256)));
            prop_assert!(path.bytes().all(|b| b.is_ascii_graphic() && !b"?#\\:*\"<>|".contains(&b)));
            // Every escape is whole.
            for (at, _) in path.match_indices('%') {
                prop_assert!(path.as_bytes()[at + 1..].iter().take(2).all(u8::is_ascii_hexdigit));
            }
        }
    }
}
