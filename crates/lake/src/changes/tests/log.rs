//! The log of changes: every change is a row, with what it does and its order.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray},
    compute::cast,
    datatypes::{DataType, Int64Type},
};

use super::{
    others::{others_append, others_rows},
    world::{Change, World},
};

/// Key, operation and order of each row, in the order of the operations' keys.
async fn log(world: &World) -> Vec<(i64, String, Option<i64>)> {
    let mut rows = Vec::new();
    for batch in world.scan().await {
        let column = |name: &str| batch.column_by_name(name).expect("a column").clone();
        let (ids, orders) = (column("id"), column("_order"));
        let orders = orders.as_primitive::<Int64Type>();
        let ops = cast(&column("_op"), &DataType::Utf8).expect("text");
        for row in 0..batch.num_rows() {
            let id = ids.as_primitive::<Int64Type>().value(row);
            let order = orders.is_valid(row).then(|| orders.value(row));
            rows.push((id, ops.as_string::<i32>().value(row).to_owned(), order));
        }
    }
    rows.sort();
    rows
}

#[tokio::test]
async fn a_log_has_the_order_also_where_it_is_a_column_and_in_a_table_that_lacked_it() {
    for there in [false, true] {
        let config = serde_json::json!({
            "key": ["id"], "op_column": "op", "order_by": ["n"], "mode": "append",
        });
        let mut world = World::new(config, 2, 1 << 20);
        world.columns = Some(vec![0, 1, 3, 4]);
        let mut wanted = vec![
            (1, "insert".to_owned(), Some(10)),
            (1, "delete".to_owned(), Some(11)),
        ];
        if there {
            // As older versions made it: with the operation, and the order as its own column alone.
            let rows = others_rows(&[7]);
            let op: ArrayRef = Arc::new(StringArray::from(vec!["insert"]));
            let columns = ["id", "region", "n"].iter().zip(rows.columns().to_vec());
            let rows = RecordBatch::try_from_iter(columns.chain([(&"_op", op)]));
            others_append(&world, 1, rows.expect("a batch")).await;
            wanted.push((7, "insert".to_owned(), None));
        }
        let change = |op, n| Change {
            op,
            id: 1,
            seq: 0,
            region: "eu",
            n,
        };
        let changes = vec![change("c", 10), change("d", 11)];
        let commit = world.prepare(&[changes]).await;
        world.commit(&commit).await;
        wanted.sort();
        assert_eq!(log(&world).await, wanted, "{there}");
    }
}
