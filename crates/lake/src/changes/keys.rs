//! Keys and orders as bytes that compare as the values do: the row format of Arrow, over the types
//! that the table's files have, so that changes and stored rows give the same bytes.

use std::collections::HashMap;

use arrow::{
    array::{Array, ArrayRef, BooleanArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Field, Schema},
    row::{RowConverter, Rows, SortField},
};
use calve_engine::error::{Error, Result};
use parking_lot::RwLock;
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

use super::plan::ChangePlan;

/// Converts the columns of keys and orders of one table.
#[derive(Debug)]
pub(crate) struct KeyCodec {
    key: RowConverter,
    order: Option<RowConverter>,
    types: Vec<DataType>,
    keys: usize,
    names: Vec<String>,
    /// The column of the flag of deleted rows, where they stay.
    flag: Option<String>,
    /// Field ids in the schema that the pipeline was opened with; that of the flag is the last.
    planned: Vec<Option<String>>,
    /// Field ids in the table: what was written earlier may have other names.
    ids: RwLock<Vec<Option<String>>>,
    null_keys: bool,
}

/// The keys and the orders of some rows; no orders: rows are ordered as they come.
#[derive(Debug)]
pub(crate) struct KeyedRows {
    pub(crate) keys: Rows,
    pub(crate) orders: Option<Rows>,
}

impl KeyedRows {
    /// The order of a row; empty where there is none.
    pub(crate) fn order(&self, row: usize) -> &[u8] {
        self.orders
            .as_ref()
            .map_or(&[], |orders| orders.row(row).data())
    }
}

impl KeyCodec {
    /// For the table's files of this schema.
    ///
    /// # Errors
    /// `Schema` when a column is missing, or of a type that cannot be a key.
    pub(crate) fn new(plan: &ChangePlan, files: &Schema, null_keys: bool) -> Result<Self> {
        let mut types = Vec::new();
        let mut names = Vec::new();
        let mut ids = Vec::new();
        let find = |name: &str| files.field_with_name(name).map_err(|_| lacks(name));
        for name in plan.key_names().chain(plan.order_names()) {
            let field = find(name)?;
            types.push(plain(field.data_type()));
            names.push(name.to_owned());
            ids.push(id_of(field).map(str::to_owned));
        }
        if let Some(flag) = plan.flag() {
            ids.push(id_of(find(flag)?).map(str::to_owned));
        }
        let keys = plan.key_names().count();
        let converter = |types: &[DataType]| {
            let fields = types.iter().map(|of| SortField::new(of.clone())).collect();
            RowConverter::new(fields)
                .map_err(|e| Error::schema("a column cannot be a key or an order").because(e))
        };
        let order = if types.len() > keys {
            Some(converter(&types[keys..])?)
        } else {
            None
        };
        Ok(Self {
            key: converter(&types[..keys])?,
            order,
            types,
            keys,
            names,
            flag: plan.flag().map(str::to_owned),
            planned: ids.clone(),
            ids: RwLock::new(ids),
            null_keys,
        })
    }

    /// The table has the columns under these ids, or will have; planned to given. What is not there
    /// is as it was planned.
    pub(crate) fn readdress(&self, moved: &HashMap<i32, i32>) {
        let given = |id: &String| {
            let given = id.parse().ok().and_then(|id: i32| moved.get(&id));
            given.map_or_else(|| id.clone(), i32::to_string)
        };
        let planned = self.planned.iter();
        *self.ids.write() = planned.map(|id| id.as_ref().map(given)).collect();
    }

    /// Which of the columns a field is: by its id, or by its name where one has no id.
    pub(crate) fn place(&self, field: &Field) -> Option<usize> {
        let (id, ids) = (id_of(field), self.ids.read());
        (0..self.names.len()).find(|&n| match (id, &ids[n]) {
            (Some(id), Some(known)) => id == known,
            _ => self.names[n] == *field.name(),
        })
    }

    /// Deleted rows stay, with a flag.
    pub(crate) fn soft(&self) -> bool {
        self.flag.is_some()
    }

    fn is_flag(&self, field: &Field) -> bool {
        let Some(flag) = &self.flag else { return false };
        match (id_of(field), self.ids.read().last()) {
            (Some(id), Some(Some(known))) => id == known,
            _ => flag == field.name(),
        }
    }

    /// Rows of the table with the flag of deleted ones, and the orders that they get; none: their own.
    ///
    /// # Errors
    /// `Schema` when a column is missing.
    pub(crate) fn flagged(
        &self,
        rows: &RecordBatch,
        orders: &[Option<Box<[u8]>>],
    ) -> Result<RecordBatch> {
        let failed = |e| Error::internal("cannot flag deleted rows").because(e);
        let mut columns = rows.columns().to_vec();
        let schema = rows.schema();
        let fields = || schema.fields().iter().enumerate();
        if let Some(order) = &self.order {
            let keyed = self.encode_stored(rows)?;
            let parser = order.parser();
            let bytes = orders.iter().enumerate().map(|(row, new)| match new {
                Some(new) => new.as_ref(),
                None => keyed.order(row),
            });
            let new = order.convert_rows(bytes.map(|bytes| parser.parse(bytes)));
            let new = new.map_err(failed)?;
            for (at, field) in fields() {
                let of_order = self.place(field).and_then(|n| n.checked_sub(self.keys));
                if let Some(n) = of_order {
                    columns[at] = cast(&new[n], field.data_type()).map_err(failed)?;
                }
            }
        }
        let flag = fields().find(|(_, field)| self.is_flag(field));
        let (at, _) = flag.ok_or_else(|| lacks(self.flag.as_deref().unwrap_or_default()))?;
        columns[at] = std::sync::Arc::new(BooleanArray::from(vec![true; rows.num_rows()]));
        RecordBatch::try_new(schema.clone(), columns).map_err(failed)
    }

    /// Fields of some columns, the first ones, with their ids.
    pub(crate) fn fields(&self, columns: &[ArrayRef]) -> Vec<Field> {
        let ids = self.ids.read();
        let fields = self.names.iter().zip(ids.iter()).zip(columns);
        fields
            .map(|((name, id), column)| {
                let id = id
                    .clone()
                    .map(|id| (PARQUET_FIELD_ID_META_KEY.to_owned(), id));
                Field::new(name, column.data_type().clone(), true)
                    .with_metadata(id.into_iter().collect())
            })
            .collect()
    }

    /// Names of the key's columns.
    pub(crate) fn key_names(&self) -> &[String] {
        &self.names[..self.keys]
    }

    /// Changes have an order of their own.
    pub(crate) fn ordered(&self) -> bool {
        self.order.is_some()
    }

    /// What the bytes depend on: an index of other bytes is of no use.
    pub(crate) fn fingerprint(&self) -> String {
        format!(
            "rows-1 {:?} {:?} keys={}",
            self.names, self.types, self.keys
        )
    }

    /// The columns in the types of the table.
    ///
    /// # Errors
    /// `Data` when a value does not fit, or a key is null.
    pub(crate) fn columns<'a>(
        &self,
        from: impl Iterator<Item = &'a ArrayRef>,
    ) -> Result<Vec<ArrayRef>> {
        let columns = from.zip(&self.types).zip(&self.names);
        columns
            .map(|((column, of), name)| {
                let converted = cast(column, of).map_err(|e| {
                    Error::data(format!(
                        "a value does not fit the table's type: column={name} type={of}"
                    ))
                    .because(e)
                })?;
                // The cast makes null what does not fit.
                if converted.null_count() > column.null_count() {
                    return Err(Error::data(format!(
                        "a value does not fit the table's type: column={name} type={of}"
                    )));
                }
                Ok(converted)
            })
            .collect()
    }

    /// Bytes of the columns that [`KeyCodec::columns`] has made.
    ///
    /// # Errors
    /// `Internal` when they are others.
    pub(crate) fn encode(&self, columns: &[ArrayRef]) -> Result<KeyedRows> {
        let failed = |e| Error::internal("cannot encode keys").because(e);
        let keys = self
            .key
            .convert_columns(&columns[..self.keys])
            .map_err(failed)?;
        let orders = match &self.order {
            Some(order) => Some(
                order
                    .convert_columns(&columns[self.keys..])
                    .map_err(failed)?,
            ),
            None => None,
        };
        Ok(KeyedRows { keys, orders })
    }

    /// The columns of keys that were encoded.
    ///
    /// # Errors
    /// `Internal` when they are others.
    pub(crate) fn decode_keys<'a>(
        &self,
        keys: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Vec<ArrayRef>> {
        let parser = self.key.parser();
        self.key
            .convert_rows(keys.map(|key| parser.parse(key)))
            .map_err(|e| Error::internal("cannot read encoded keys").because(e))
    }

    /// Refuses null keys.
    ///
    /// # Errors
    /// `Data`, for the rows that count.
    pub(crate) fn check_keys(
        &self,
        columns: &[ArrayRef],
        counts: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let checked = if self.null_keys { 0 } else { self.keys };
        for (column, name) in columns[..checked].iter().zip(&self.names) {
            if column.null_count() > 0
                && let Some(nulls) = column.logical_nulls()
                && (0..column.len()).any(|row| nulls.is_null(row) && counts(row))
            {
                return Err(Error::data(format!("the key is null: column={name}")));
            }
        }
        Ok(())
    }

    /// Keys and orders of rows of the table.
    ///
    /// # Errors
    /// `Schema` when a column is missing.
    pub(crate) fn encode_stored(&self, rows: &RecordBatch) -> Result<KeyedRows> {
        self.encode_found(&self.found(rows), rows.num_rows())
    }

    /// Keys and orders of a run of deleted keys. Nothing else is in it: its names are enough where they
    /// are these, and others may have taken the ids since; after a rename its ids tell.
    ///
    /// # Errors
    /// `Schema` when a column is missing.
    pub(crate) fn encode_run(&self, rows: &RecordBatch) -> Result<KeyedRows> {
        let names = self.names.iter();
        let named: Vec<_> = names.map(|name| rows.column_by_name(name)).collect();
        let found = if named.iter().all(Option::is_some) {
            named
        } else {
            let by_id = self.found(rows).into_iter().zip(named);
            by_id.map(|(by_id, named)| by_id.or(named)).collect()
        };
        self.encode_found(&found, rows.num_rows())
    }

    /// The columns among those of some rows.
    fn found<'a>(&self, rows: &'a RecordBatch) -> Vec<Option<&'a ArrayRef>> {
        let mut found = vec![None; self.names.len()];
        for (field, column) in rows.schema_ref().fields().iter().zip(rows.columns()) {
            if let Some(n) = self.place(field) {
                found[n] = Some(column);
            }
        }
        found
    }

    fn encode_found(&self, found: &[Option<&ArrayRef>], rows: usize) -> Result<KeyedRows> {
        let columns: Vec<ArrayRef> = self
            .names
            .iter()
            .zip(&self.types)
            .zip(found)
            .enumerate()
            .map(|(n, ((name, of), found))| match found {
                Some(column) => cast(column, of)
                    .map_err(|e| Error::schema(format!("cannot read column={name}")).because(e)),
                // A file that was written before the column was there.
                None if n >= self.keys => Ok(arrow::array::new_null_array(of, rows)),
                None => Err(Error::schema(format!(
                    "rows that were written earlier lack a column of the key: column={name}"
                ))
                .hint("for another key take another table")),
            })
            .collect::<Result<_>>()?;
        self.encode(&columns)
    }
}

fn lacks(name: &str) -> Error {
    Error::schema(format!(
        "the table lacks a column of changes: column={name}"
    ))
}

fn id_of(field: &Field) -> Option<&str> {
    let id = field.metadata().get(PARQUET_FIELD_ID_META_KEY);
    id.map(String::as_str)
}

/// The type without what does not change values.
fn plain(of: &DataType) -> DataType {
    match of {
        DataType::Dictionary(_, value) => plain(value),
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        other => other.clone(),
    }
}
