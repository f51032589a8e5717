//! From the columns of changes to those of the table: which ones are the key, the order and the
//! operation, and what is stored of them.
//!
//! The order is stored in columns of its own unless it is a column of the table already, so that the
//! index of keys can be made anew from the table.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, StringArray},
    compute::cast,
    datatypes::{DataType, Field, Int32Type, Schema, SchemaRef},
};
use calve_engine::{
    batch::OFFSET,
    error::{Error, Result},
};

use super::config::{ChangesConfig, Mode, Operation};

/// The order of a change, where it is no column of the table; with several, `_calve_order_1`, ….
pub(crate) const ORDER: &str = "_calve_order";
/// The operation, where the rows do not name another column.
const OP: &str = "_op";
/// The order of a change, in a log of changes; with several columns `_order_1`, ….
pub const LOG_ORDER: &str = "_order";

/// How the columns of changes become those of a table.
#[derive(Clone, Debug)]
pub(crate) struct ChangePlan {
    mode: Mode,
    key: Vec<(usize, String)>,
    order: Vec<(usize, String)>,
    op: Option<usize>,
    ops: BTreeMap<String, Operation>,
    /// Columns of the changes that are stored, by number.
    kept: Vec<usize>,
    /// The column of the flag of deleted rows.
    flag: Option<String>,
    table: SchemaRef,
}

impl ChangePlan {
    /// The plan for changes with these columns. `hidden` are columns that are none of the table, such
    /// as metadata of the change and its offset ([`OFFSET`]).
    ///
    /// # Errors
    /// `Config` when a column is not there, or cannot be a key.
    pub(crate) fn new(config: &ChangesConfig, hidden: &[String], rows: &Schema) -> Result<Self> {
        let find = |what: &str, name: &String| {
            let at = rows.index_of(name).map_err(|_| {
                let names: Vec<&str> = rows.fields().iter().map(|f| f.name().as_str()).collect();
                Error::config(format!(
                    "changes.{what} is not a column of the rows: column={name}"
                ))
                .hint(format!("the rows have: {}", names.join(", ")))
            })?;
            let of = rows.field(at).data_type();
            if what != "op_column" && (of.is_nested() || of.is_floating()) {
                return Err(Error::config(format!(
                    "changes.{what} cannot be of this type: column={name} type={of}"
                ))
                .hint("use columns of whole numbers, text, bytes, dates or timestamps"));
            }
            Ok(at)
        };
        let all = |what: &str, names: &[String]| -> Result<Vec<(usize, String)>> {
            let pairs = names
                .iter()
                .map(|name| Ok((find(what, name)?, name.clone())));
            pairs.collect()
        };
        let key = all("key", &config.key)?;
        let mut order = all("order_by", &config.order_by)?;
        let op = match &config.op_column {
            Some(name) => Some(find("op_column", name)?),
            None => rows.index_of(OP).ok(),
        };
        let is_hidden =
            |name: &String| hidden.contains(name) || name.contains('.') || name.starts_with('_');
        if let Some((_, name)) = key.iter().find(|(at, _)| Some(*at) == op) {
            return Err(Error::config(format!(
                "changes.key is not a column of the table: column={name}"
            )));
        }
        let append = config.mode == Mode::Append;
        // Offsets order a log in which nothing else does.
        let offset = rows.index_of(OFFSET).ok();
        let offset = offset.filter(|_| hidden.iter().any(|name| name == OFFSET));
        if let Some(at) = offset
            && append
            && order.is_empty()
            && rows.index_of(LOG_ORDER).is_err()
        {
            order.push((at, OFFSET.to_owned()));
        }
        // Columns that are stored as the order, and not as themselves.
        let only_order: Vec<usize> = order
            .iter()
            .filter(|(at, name)| is_hidden(name) && key.iter().all(|(k, _)| k != at))
            .map(|(at, _)| *at)
            .collect();
        // Columns that become the stored order. A log has them all, for readers who know only the log.
        let extra = if append {
            order.iter().map(|(at, _)| *at).collect()
        } else {
            only_order.clone()
        };
        let mut kept = Vec::new();
        let mut fields = Vec::new();
        for (at, field) in rows.fields().iter().enumerate() {
            if Some(at) == op || Some(at) == offset || only_order.contains(&at) {
                continue;
            }
            kept.push(at);
            fields.push(field.as_ref().clone());
        }
        let base = if append { LOG_ORDER } else { ORDER };
        for (n, at) in extra.iter().enumerate() {
            let name = if extra.len() == 1 {
                base.to_owned()
            } else {
                format!("{base}_{}", n + 1)
            };
            kept.push(*at);
            fields.push(Field::new(&name, rows.field(*at).data_type().clone(), true));
            for pair in order.iter_mut().filter(|pair| pair.0 == *at) {
                pair.1.clone_from(&name);
            }
        }
        if append {
            fields.push(Field::new(OP, DataType::Utf8, true));
        }
        let soft = config.mode == Mode::SoftDelete;
        let flag = soft.then(|| config.deleted_column.clone());
        if let Some(name) = &flag {
            fields.push(Field::new(name, DataType::Boolean, true));
        }
        for (n, field) in fields.iter().enumerate() {
            if fields[..n]
                .iter()
                .any(|before| before.name() == field.name())
            {
                return Err(Error::config(format!(
                    "the table would have two columns of one name: column={}",
                    field.name()
                ))
                .hint("rename the column of the rows with `transform.sql`"));
            }
        }
        Ok(Self {
            mode: config.mode,
            key,
            order,
            op,
            ops: config
                .ops
                .iter()
                .map(|(name, op)| (name.to_lowercase(), *op))
                .collect(),
            kept,
            flag,
            table: Arc::new(Schema::new(fields)),
        })
    }

    /// The table's columns.
    pub(crate) fn table(&self) -> &SchemaRef {
        &self.table
    }

    /// The key's columns, as the table names them.
    pub(crate) fn key_names(&self) -> impl Iterator<Item = &str> {
        self.key.iter().map(|(_, name)| name.as_str())
    }

    /// The columns of the order, as the table names them; empty: changes are ordered as they come.
    pub(crate) fn order_names(&self) -> impl Iterator<Item = &str> {
        self.order.iter().map(|(_, name)| name.as_str())
    }

    /// The columns of the key, then those of the order, in changes.
    pub(crate) fn key_and_order<'a>(
        &'a self,
        changes: &'a RecordBatch,
    ) -> impl Iterator<Item = &'a ArrayRef> {
        let places = self.key.iter().chain(&self.order);
        places.map(|(at, _)| changes.column(*at))
    }

    /// The column that is true in deleted rows; none: they do not stay.
    pub(crate) fn flag(&self) -> Option<&str> {
        self.flag.as_deref()
    }

    /// What each change does.
    ///
    /// # Errors
    /// `Data` when one does something unknown.
    pub(crate) fn operations(&self, changes: &RecordBatch) -> Result<Vec<Operation>> {
        let Some(at) = self.op else {
            return Ok(vec![Operation::Update; changes.num_rows()]);
        };
        let column = changes.column(at);
        // A column of few values is looked at once for each.
        if let DataType::Dictionary(key, _) = column.data_type()
            && **key == DataType::Int32
        {
            let dictionary = column.as_dictionary::<Int32Type>();
            let known = self.known(dictionary.values())?;
            return (dictionary.keys().iter())
                .map(|key| sure(key.and_then(|k| known.get(k as usize).copied().flatten())))
                .collect();
        }
        self.known(column)?.into_iter().map(sure).collect()
    }

    fn known(&self, values: &ArrayRef) -> Result<Vec<Option<Operation>>> {
        let text = cast(values, &DataType::Utf8)
            .map_err(|e| Error::config("the operation is not text").because(e))?;
        let text: &StringArray = text.as_string();
        Ok(text.iter().map(|value| self.meaning(value?)).collect())
    }

    fn meaning(&self, value: &str) -> Option<Operation> {
        let value = value.trim().to_lowercase();
        if let Some(op) = self.ops.get(&value) {
            return Some(*op);
        }
        Some(match value.as_str() {
            "c" | "create" | "i" | "insert" | "r" | "read" | "+" => Operation::Insert,
            "u" | "update" | "upsert" => Operation::Update,
            "d" | "delete" | "-" => Operation::Delete,
            "t" | "truncate" => Operation::Truncate,
            _ => return None,
        })
    }

    /// The table's rows of changes. A flag is false: the row of a deleted key gets it when that is committed.
    ///
    /// # Errors
    /// `Internal` when the changes have not the columns that the plan was made for.
    pub(crate) fn rows(&self, changes: &RecordBatch, ops: &[Operation]) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = self
            .kept
            .iter()
            .map(|at| changes.column(*at).clone())
            .collect();
        match self.mode {
            Mode::Merge => {}
            Mode::Append => {
                let names = ops.iter().map(|op| {
                    Some(match op {
                        Operation::Insert => "insert",
                        Operation::Update => "update",
                        Operation::Delete => "delete",
                        Operation::Truncate => "truncate",
                        Operation::Skip => return None,
                    })
                });
                columns.push(Arc::new(names.collect::<StringArray>()));
            }
            Mode::SoftDelete => {
                let flags = vec![false; changes.num_rows()];
                columns.push(Arc::new(BooleanArray::from(flags)));
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(changes.num_rows()));
        RecordBatch::try_new_with_options(self.table.clone(), columns, &options)
            .map_err(|e| Error::internal("cannot make rows of changes").because(e))
    }
}

fn sure(known: Option<Operation>) -> Result<Operation> {
    known.ok_or_else(|| {
        Error::data("the operation is null or unknown; `changes.ops` says what others mean")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_the_order_whichever_columns_it_is() {
        let number = |name: &str| Field::new(name, DataType::Int64, true);
        let schema = |names: &str| Schema::new(names.split(' ').map(number).collect::<Vec<_>>());
        let plain = "id _seq source.lsn n _op";
        let with_offset = "id _seq _offset n _op";
        let cases: [(&str, &str, &[&str], &str); 11] = [
            ("append", plain, &["n"], "id _seq source.lsn n _order _op"),
            ("append", plain, &["_seq"], "id source.lsn n _order _op"),
            (
                "append",
                plain,
                &["n", "_seq"],
                "id source.lsn n _order_1 _order_2 _op",
            ),
            (
                "append",
                plain,
                &["_seq", "source.lsn"],
                "id n _order_1 _order_2 _op",
            ),
            ("append", plain, &[], "id _seq source.lsn n _op"),
            ("merge", plain, &["n"], "id _seq source.lsn n"),
            (
                "merge",
                plain,
                &["n", "_seq"],
                "id source.lsn n _calve_order",
            ),
            ("append", with_offset, &[], "id _seq n _order _op"),
            ("append", with_offset, &["n"], "id _seq n _order _op"),
            // An order of the user's own stays the only one.
            ("append", "id _order _offset", &[], "id _order _op"),
            ("merge", with_offset, &[], "id _seq n"),
        ];
        for (mode, rows, order_by, wanted) in cases {
            let config = serde_json::json!({"key": ["id"], "mode": mode, "order_by": order_by});
            let config = serde_json::from_value(config).expect("a configuration");
            let hidden = [OFFSET.to_owned()];
            let plan = ChangePlan::new(&config, &hidden, &schema(rows)).expect("a plan");
            assert_eq!(names(&plan), wanted, "{mode} {order_by:?}");
        }
        // A column of the events that has that name is one of the table.
        let config = serde_json::json!({"key": ["id"], "mode": "append"});
        let config = serde_json::from_value(config).expect("a configuration");
        let plan = ChangePlan::new(&config, &[], &schema(with_offset)).expect("a plan");
        assert_eq!(names(&plan), "id _seq _offset n _op");
    }

    fn names(plan: &ChangePlan) -> String {
        let fields = plan.table().fields().iter();
        let names: Vec<&str> = fields.map(|field| field.name().as_str()).collect();
        names.join(" ")
    }
}
