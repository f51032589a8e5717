//! Real changes of a Postgres table: applied in their order they leave the table.

use std::collections::HashMap;

use arrow::{
    array::{AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Float64Type, Int64Type},
};
use calve_engine::RawBatch;

use crate::{
    formats::{DebeziumConfig, FormatConfig, infer::infer},
    sources::testing::raw,
};

/// The changes; none, with a note, where the fixture is not there.
pub(super) fn orders() -> Option<String> {
    let folder = std::env::var("CALVE_FIXTURES").unwrap_or("../../../shared/fixtures".into());
    let path = std::path::Path::new(&folder).join("cdc/debezium-orders.jsonl");
    let text = std::fs::read_to_string(&path);
    if text.is_err() {
        eprintln!("not run: no fixture at {}", path.display());
    }
    text.ok()
}

/// The rows of one batch, by a schema that is inferred from it.
pub(super) fn rows(config: DebeziumConfig, batch: &RawBatch) -> RecordBatch {
    let format = FormatConfig::Debezium(config);
    let schema = infer(&format, std::slice::from_ref(batch)).expect("infer");
    let mut decoder = format.decoder(schema).expect("decoder");
    let decoded = decoder.decode(batch).expect("decode");
    assert_eq!(decoded.rejects, []);
    decoded.rows
}

fn column<'a>(rows: &'a RecordBatch, name: &str) -> &'a arrow::array::ArrayRef {
    rows.column_by_name(name).expect(name)
}

/// Applies rows to a table, and answers its rows, the sum of quantities and that of prices.
fn apply(rows: &RecordBatch) -> (usize, i64, f64) {
    let ids = column(rows, "id").as_primitive::<Int64Type>();
    let quantities = column(rows, "quantity").as_primitive::<Int64Type>();
    let prices = column(rows, "price").as_primitive::<Float64Type>();
    let ops = cast(column(rows, "_op"), &DataType::Utf8).expect("strings");
    let mut table = HashMap::new();
    for (row, op) in ops.as_string::<i32>().iter().enumerate() {
        if op == Some("d") {
            table.remove(&ids.value(row));
        } else {
            table.insert(ids.value(row), row);
        }
    }
    let quantity = table.values().map(|row| quantities.value(*row)).sum();
    let price = table.values().map(|row| prices.value(*row)).sum();
    (table.len(), quantity, price)
}

#[test]
fn real_changes_leave_the_table() {
    let Some(text) = orders() else { return };
    let config = DebeziumConfig {
        metadata: vec!["source.lsn".into(), "ts_ms".into(), "source.table".into()],
        ..DebeziumConfig::default()
    };
    let plain = rows(config.clone(), &raw(&text, 0));
    let names: Vec<_> = plain
        .schema()
        .fields()
        .iter()
        .map(|f| f.name().clone())
        .collect();
    assert_eq!(
        names,
        [
            "id",
            "customer_name",
            "product_name",
            "quantity",
            "price",
            "order_date",
            "status",
            "_op",
            "source.lsn",
            "ts_ms",
            "source.table"
        ]
    );
    assert_eq!(plain.num_rows(), 830);
    let (count, quantity, price) = apply(&plain);
    assert_eq!((count, quantity), (559, 1648));
    assert!((price - 588_699.85).abs() < 1e-6, "{price}");
    let ops = cast(column(&plain, "_op"), &DataType::Utf8).expect("strings");
    let of = |wanted| {
        ops.as_string::<i32>()
            .iter()
            .filter(|op| *op == Some(wanted))
            .count()
    };
    assert_eq!((of("c"), of("u"), of("d")), (582, 225, 23));
    let lsn = column(&plain, "source.lsn").as_primitive::<Int64Type>();
    assert!(lsn.values().windows(2).all(|two| two[0] <= two[1]));
    assert_eq!(lsn.value(0), 66_756_335_160);
    let tables = column(&plain, "source.table").as_string::<i32>();
    assert!(tables.iter().all(|table| table == Some("orders")));

    // The same with a schema around, in two ways of writing, and with tombstones between.
    let schema = r#"{"type":"struct","fields":[{"type":"struct","field":"after","fields":[
        {"type":"int64","field":"id"},{"type":"string","field":"customer_name"},
        {"type":"string","field":"product_name"},{"type":"int64","field":"quantity"},
        {"type":"double","field":"price"},{"type":"int64","field":"order_date"},
        {"type":"string","field":"status"}]}]}"#
        .replace('\n', "");
    let mut wrapped = String::new();
    for (n, line) in text.lines().enumerate() {
        wrapped += &match n % 5 {
            0 => format!("{{ \"schema\": {schema} , \"payload\": {line} }}\nnull\n"),
            1 => format!("{line}\n"),
            2 => format!("{{\"schema\":null,\"payload\":{line}}}\n\n"),
            3 => format!("{{\"payload\":{line},\"schema\":{schema}}}\n{{\"payload\":null}}\n"),
            _ => format!("{{\"schema\":{schema},\"payload\":{line}}}\n"),
        };
    }
    assert_eq!(rows(config, &raw(&wrapped, 0)), plain);
}
