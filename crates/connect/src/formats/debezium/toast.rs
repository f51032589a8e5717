//! Values that the connector has not sent: of a large value that an update left as it was, Postgres
//! gives no more than a placeholder, unless the table has REPLICA IDENTITY FULL. Written to a table
//! it would destroy the value, so such a change is a reject.

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, make_array},
    compute::cast,
    datatypes::DataType,
};
use memchr::memmem;

/// The connector's `unavailable.value.placeholder`; of bytes it stands there in base64.
const PLACEHOLDER: &[u8] = b"__debezium_unavailable_value";
const IN_BASE64: &[u8] = b"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ";

/// Whether a column may hold the placeholder. Looks at bytes, not at values: it may say so wrongly.
pub(super) fn suspected(columns: &[ArrayRef]) -> bool {
    columns.iter().any(|column| {
        let text = match column.data_type() {
            DataType::Utf8 => column.as_string::<i32>().values().as_slice(),
            DataType::Binary => column.as_binary::<i32>().values().as_slice(),
            DataType::Dictionary(_, value) => {
                // Strings of other rows, and of earlier batches, may be there, too.
                let values = column.as_any_dictionary().values();
                return suspected(std::slice::from_ref(values))
                    && cast(column, value).is_ok_and(|own| suspected(&[own]));
            }
            of if of.is_nested() => {
                let parts = column.to_data();
                let parts = parts.child_data().iter().cloned();
                return suspected(&parts.map(make_array).collect::<Vec<_>>());
            }
            DataType::LargeUtf8 => column.as_string::<i64>().values().as_slice(),
            DataType::LargeBinary => column.as_binary::<i64>().values().as_slice(),
            _ => return false,
        };
        memmem::find(text, PLACEHOLDER).is_some()
    })
}

/// Whether a line may hold the placeholder.
pub(super) fn suspected_line(line: &[u8]) -> bool {
    memmem::find(line, PLACEHOLDER).is_some() || memmem::find(line, IN_BASE64).is_some()
}

/// The column whose value in row `row` is the placeholder, or a list of it.
pub(super) fn column(rows: &RecordBatch, row: usize) -> Option<String> {
    let schema = rows.schema();
    let mut columns = rows.columns().iter().zip(schema.fields());
    let found = columns.find(|(column, _)| is_placeholder(column, row));
    found.map(|(_, field)| field.name().clone())
}

fn is_placeholder(column: &ArrayRef, row: usize) -> bool {
    if column.is_null(row) {
        return false;
    }
    let whole = |items: ArrayRef| (0..items.len()).any(|n| is_placeholder(&items, n));
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).as_bytes() == PLACEHOLDER,
        DataType::LargeUtf8 => column.as_string::<i64>().value(row).as_bytes() == PLACEHOLDER,
        DataType::Binary => column.as_binary::<i32>().value(row) == PLACEHOLDER,
        DataType::LargeBinary => column.as_binary::<i64>().value(row) == PLACEHOLDER,
        DataType::List(_) => whole(column.as_list::<i32>().value(row)),
        DataType::Struct(_) => {
            let inside = column.as_struct().columns();
            inside.iter().any(|column| is_placeholder(column, row))
        }
        DataType::Map(..) => {
            let entries = column.as_map().value(row);
            entries
                .columns()
                .iter()
                .any(|column| whole(ArrayRef::clone(column)))
        }
        DataType::Dictionary(..) => {
            let dictionary = column.as_any_dictionary();
            let keys = dictionary.normalized_keys();
            is_placeholder(dictionary.values(), keys[row])
        }
        _ => false,
    }
}
