//! What the user says about changes: their key, their order, what they do, and how deletes are
//! written.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use calve_engine::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The rows are changes of a table: inserts, updates and deletes by key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangesConfig {
    /// Columns that identify a row. A change in which one of them is null is rejected. Changes of the
    /// format `debezium` may carry their key: it may be left out then.
    #[serde(default)]
    pub key: Vec<String>,
    /// Columns that order the changes of a key, the first one first: the highest wins, whenever it
    /// comes. Without it the change that comes last wins. What is no column of the table itself (its
    /// name has a dot, or begins with `_`) is stored as `_calve_order`. With `mode: append` the order is
    /// stored as `_order`; without `order_by` that is the offset of the change in its source partition.
    #[serde(default)]
    pub order_by: Vec<String>,
    /// The column that says what a change does; it is not a column of the table. Default: `_op`,
    /// where there is one. Without it every row is inserted, or updates the row of its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op_column: Option<String>,
    /// What the values of that column mean, where they are other than usual (`c`, `create`, `i`,
    /// `insert`, `r`, `read`, `u`, `update`, `upsert`, `d`, `delete`, `t`, `truncate`, `+`, `-`, in
    /// any case).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ops: BTreeMap<String, Operation>,
    /// What becomes of the changes.
    #[serde(default)]
    pub mode: Mode,
    /// How deleted rows are marked in the table.
    #[serde(default)]
    pub deletes: Deletes,
    /// With `mode: soft_delete`, the column that is true in rows that are deleted.
    #[serde(default = "deleted")]
    pub deleted_column: String,
    /// How long the order of a deleted row is kept, so that an older change which comes later cannot
    /// bring the row back. Only with `order_by`.
    #[serde(default = "a_day", with = "span")]
    #[schemars(with = "String")]
    pub tombstone_retention: Duration,
    /// Where the rows of keys are looked up.
    #[serde(default)]
    pub index: IndexConfig,
}

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// A new row; one that has its key is replaced.
    Insert,
    /// As `insert`.
    Update,
    /// Removes the row of the key.
    Delete,
    /// Removes all rows.
    Truncate,
    /// Does nothing.
    Skip,
}

/// What becomes of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The table equals the source's.
    #[default]
    Merge,
    /// The table is the log of changes: a row for each, with `_op`, and its `_order`: the columns of
    /// `order_by`, or without it the offset.
    Append,
    /// As `merge`, but deleted rows stay: with the values that they had, and a flag.
    SoftDelete,
}

/// How rows are deleted from an Iceberg table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Deletes {
    /// Files of positions, one for each data file that has deleted rows (format version 2).
    #[default]
    Position,
    /// Deletion vectors (format version 3).
    Vector,
    /// Data files that hold deleted rows are written again without them.
    CopyOnWrite,
    /// Files of the keys of deleted rows, one for each commit and table partition. PyIceberg refuses
    /// such a table, and DuckDB takes long to read it; for readers that are made for them.
    Equality,
}

/// The index of keys: a cache on the local disk, which is made anew from the table when it is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IndexConfig {
    /// Its folder. Default: `.calve-index` in the warehouse.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// What it may hold in memory, in MiB. Default: a sixteenth of `limits.memory`, 64 at the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<usize>,
}

fn deleted() -> String {
    // Not `_deleted`: Iceberg reserves that name, and Spark refuses tables that have it.
    "is_deleted".to_owned()
}

fn a_day() -> Duration {
    Duration::from_hours(24)
}

impl ChangesConfig {
    /// Checks what can be checked without a schema.
    ///
    /// # Errors
    /// `Config`.
    pub fn validate(&self, format_version: u8) -> Result<()> {
        for (what, columns) in [("key", &self.key), ("order_by", &self.order_by)] {
            for (n, column) in columns.iter().enumerate() {
                if columns[..n].contains(column) {
                    return Err(Error::config(format!(
                        "changes.{what} names a column twice: column={column}"
                    )));
                }
            }
        }
        let needed = match (self.mode, self.deletes) {
            (Mode::Append, _) | (_, Deletes::CopyOnWrite | Deletes::Equality) => return Ok(()),
            (_, Deletes::Position) => 2,
            (_, Deletes::Vector) => 3,
        };
        if format_version == needed {
            return Ok(());
        }
        let (mode, other) = match self.deletes {
            Deletes::Position => ("position", "deletes: vector"),
            _ => ("vector", "format_version: 3"),
        };
        Err(Error::config(format!(
            "changes.deletes is {mode}, which needs format version {needed}: format_version={format_version}"
        ))
        .hint(format!("write `{other}`, or `deletes: copy_on_write`")))
    }

    /// What must not change while a pipeline has checkpoints.
    pub fn fingerprint(&self) -> String {
        format!(
            "key={:?} order_by={:?} op={:?} ops={:?} mode={:?} deleted={}",
            self.key, self.order_by, self.op_column, self.ops, self.mode, self.deleted_column
        )
    }
}

/// A duration as people write it; the units of the rest of the file are those of another crate.
mod span {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    const UNITS: [(&str, u64); 5] = [
        ("d", 86_400),
        ("h", 3_600),
        ("m", 60),
        ("s", 1),
        ("w", 604_800),
    ];

    pub(super) fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{}s", span.as_secs()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &text[digits.len()..];
        let known = UNITS.iter().find(|(name, _)| *name == unit);
        match (digits.trim().parse::<u64>(), known) {
            (Ok(count), Some((_, seconds))) => {
                Ok(Duration::from_secs(count.saturating_mul(*seconds)))
            }
            _ => Err(D::Error::custom(format!(
                "not a duration, such as 30m, 24h or 7d: {text}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: serde_json::Value) -> Result<ChangesConfig, serde_json::Error> {
        serde_json::from_value(json)
    }

    #[test]
    fn a_key_is_enough() {
        let config = parse(serde_json::json!({"key": ["id"]})).expect("a configuration");
        assert_eq!(config.mode, Mode::Merge);
        assert_eq!(config.tombstone_retention, Duration::from_hours(24));
        config.validate(2).expect("valid");
        let error = config
            .validate(3)
            .expect_err("position deletes in version 3");
        assert!(error.to_string().contains("format_version=3"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let spans = ["7d", "30m", "0s"];
        for span in spans {
            let json = serde_json::json!({"key": ["id"], "tombstone_retention": span});
            parse(json).expect(span);
        }
        let json = serde_json::json!({"key": ["id"], "tombstone_retention": "long"});
        assert!(parse(json).is_err());
        for json in [
            serde_json::json!({"key": ["id", "id"]}),
            serde_json::json!({"key": ["id"], "deletes": "vector"}),
        ] {
            let config = parse(json.clone()).expect("it parses");
            assert!(config.validate(2).is_err(), "{json}");
        }
    }
}
